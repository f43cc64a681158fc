"""From the options to the objects that training, evaluation and prediction share."""

import torch
from torch.utils.data import DataLoader

from argparser import Options
from dataset import EvaluationSample, Split, evaluation_loader
from modules import SegmentationModel, build_model
from utils.distributed import Process


def default_precision(device: torch.device) -> str:
    """bf16 on a GPU that has it, else fp32."""
    # Without emulation, which torch takes for support too.
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_it else "fp32"


def model_of(options: Options) -> SegmentationModel:
    """The network that the options describe, with random weights."""
    return build_model(
        options.backbone,
        options.classifier,
        options.norm_act,
        options.num_classes,
        options.output_stride,
        plain=options.plain,
        checkpoint_activations=options.checkpoint_activations,
    )


def evaluation_loader_of(
    options: Options, process: Process, split: Split, multi_scale: bool | None
) -> DataLoader[EvaluationSample]:
    """Whole images: at full size for None, else at one or at five of the test scales."""
    return evaluation_loader(
        options.data_root,
        split,
        multi_scale=multi_scale,
        num_workers=options.num_workers,
        rank=process.rank,
        world_size=process.world_size,
        dataset=options.dataset,
        skip_bad_files=options.skip_bad_files,
        timeout=options.timeout,
    )
