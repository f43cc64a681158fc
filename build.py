"""Build the objects that training, evaluation and prediction share from the options."""

from typing import Any

from torch.utils.data import DataLoader

from argparser import Options
from dataset.description import Split
from dataset.loaders import EvaluationSample, evaluation_loader, training_loader
from dataset.transforms import Sample
from modules.segmentation import SegmentationModel, build_model
from utils.distributed import Process


def model_of(options: Options) -> SegmentationModel:
    """Build the network that the options describe, with random weights."""
    return build_model(
        options.backbone,
        options.classifier,
        options.norm_act,
        options.num_classes,
        options.output_stride,
        plain=options.plain,
        checkpoint_activations=options.checkpoint_activations,
    )


def training_loader_of(options: Options, process: Process) -> DataLoader[Sample]:
    """Batches of random crops: this process's share of every epoch."""
    return training_loader(
        options.data_root,
        batch_size=options.batch_size,
        crop_size=options.crop_size,
        seed=options.random_seed,
        accumulate=options.accumulate,
        **_of_any_loader(options, process),
    )


def evaluation_loader_of(
    options: Options, process: Process, split: Split, multi_scale: bool | None
) -> DataLoader[EvaluationSample]:
    """Load whole images: at full size for None, else at one or at five test scales.

    Labels and pictures of the test split have the size chosen by --eval_size.
    """
    return evaluation_loader(
        options.data_root,
        split,
        multi_scale=multi_scale,
        at_input_size=options.at_input_size and split == "test",
        **_of_any_loader(options, process),
    )


def _of_any_loader(options: Options, process: Process) -> dict[str, Any]:
    return {
        "num_workers": options.num_workers,
        "rank": process.rank,
        "world_size": process.world_size,
        "dataset": options.dataset,
        "skip_bad_files": options.skip_bad_files,
        "timeout": options.timeout,
    }


def inference_settings(options: Options) -> list[Any]:
    """The settings that change the network's output for given weights."""
    return [
        options.multi_scala,
        options.norm_act,
        options.output_stride,
        options.precision,
        options.plain,
    ]
