"""What one process of `make bench` measures: prints one line of JSON.

`python -m benchmarks.measure train|test|input --data DIR [--classes N] [FLAGS]`, FLAGS being
run.py's; under torchrun all processes take part and the first one prints.
"""

import argparse
import json
import random
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import functional

from argparser import parse_options
from dataset.base import SegmentationDataset
from dataset.decoded import read_copy
from dataset.description import UNKNOWN_INDEX
from dataset.loaders import TrainingSamples, random_stream
from dataset.registry import open_dataset
from dataset.skipping import SampleReader
from dataset.transforms import random_crop, random_flip, random_scale
from metrics.evaluation import AnomalyEvaluation
from modules.inference.network import Inference
from modules.normalisation import MEAN, STD
from modules.scores import Scorer
from train import Trainer
from utils.distributed import end_process, start_process
from utils.logger import Logger
from utils.memory import keep_freed_memory

CLASSES = 13


def make_trainer(data: Path, classes: int, flags: list[str]) -> Trainer:
    words = ["--default", "--no_pretrained", "--num_workers", "0", "--data_root", str(data)]
    words += ["--checkpoints", str(data / "checkpoints"), *flags]
    options = parse_options(words)
    if not options.plain:
        keep_freed_memory()
    options = replace(options, num_classes=classes, unk_class=classes)
    return Trainer(options, start_process(), Logger(None))


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure_training(trainer: Trainer) -> dict[str, float]:
    """The second of two steps, and the rise of the process's peak memory."""
    trainer._prepare_training()
    trainer.model.train()
    batches = iter(trainer.loader)
    before = peak_gigabytes()
    trainer.train_step(batches)
    seconds = seconds_of(lambda: trainer.train_step(batches))
    return {"seconds": seconds, "gigabytes": peak_gigabytes() - before}


def image_test(
    inference: Inference, classes: int
) -> tuple[AnomalyEvaluation, Callable[[Any], None]]:
    """An empty evaluation, and the function that tests a sample at five scales and adds it."""
    scorer, evaluation = Scorer(inference, ["prototype"]), AnomalyEvaluation(classes, classes)

    def one(sample: Any) -> None:
        output = scorer.forward(sample.images, sample.label.shape, sample.picture, sample.index)
        (score,) = scorer.maps(output).values()
        label = sample.label.masked_fill(sample.label == UNKNOWN_INDEX, classes)
        evaluation.update(sample.index, sample.name, score, output.prediction, label)

    return evaluation, one


def measure_test(trainer: Trainer) -> dict[str, float]:
    """The second of two test images: five scales, prediction, score and metrics."""
    precision, plain = trainer.options.precision, trainer.options.plain
    inference = Inference(trainer.model, torch.device("cpu"), precision, plain=plain)
    _, one = image_test(inference, trainer.options.num_classes)
    first, second = list(trainer.evaluator._evaluation_loader("test", True))
    one(first)
    seconds = seconds_of(lambda: one(second))
    counted = {torch.ops.mkldnn._linear_pointwise: linear_flops}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        inference.logits(second.images)
    return {
        "seconds": seconds,
        "gigabytes": peak_gigabytes(),
        "roofline": counter.get_total_flops() / seconds / matmul_ceiling(inference.dtype),
    }


def linear_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of oneDNN's matrix product, from the shapes of its inputs."""
    return 2 * x.numel() * weight[0]


def measure_input(trainer: Trainer) -> dict[str, float]:
    """Seconds of a training input on one core, from files to tensors, and of decoding alone.

    The mean over the training set in the second of two passes, which finds the files in memory.
    """
    torch.set_num_threads(1)
    options = trainer.options
    pictures = open_dataset(options.dataset, options.data_root, "train")
    reader = SampleReader(pictures, skip_bad_files=False)
    samples = TrainingSamples(reader, options.crop_size, options.random_seed)

    def one(index: int) -> None:
        if options.plain:
            rng = random_stream(options.random_seed, 0, index)
            published_input(pictures, index, options.crop_size, rng)
        else:
            samples[0, index]

    def decode(index: int) -> None:
        path = pictures.folder / pictures.names[index]
        if options.plain or read_copy(path) is None:
            Image.open(path).load()
        Image.open(pictures.folder / pictures.label_names[index]).load()

    def seconds_an_image(call: Callable[[int], None]) -> float:
        def whole_set() -> None:
            for index in range(len(pictures)):
                call(index)

        whole_set()
        return seconds_of(whole_set) / len(pictures)

    return {"seconds": seconds_an_image(one), "decoding": seconds_an_image(decode)}


def published_input(
    pictures: SegmentationDataset, index: int, crop_size: int, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """A training input in the published order: the same crop, then torchvision's own steps."""
    image = Image.open(pictures.folder / pictures.names[index]).convert("RGB")
    values = np.array(Image.open(pictures.folder / pictures.label_names[index]))
    label = Image.fromarray(np.array(pictures.info.lookup, dtype=np.uint8)[values])
    image, label = random_scale(image, label, rng)
    image, label = random_flip(*random_crop(image, label, rng, crop_size), rng)
    normalised = functional.normalize(functional.to_tensor(image), list(MEAN), list(STD))
    return normalised, torch.from_numpy(np.array(label)).long()


def matmul_ceiling(dtype: torch.dtype) -> float:
    """FLOP/s of a large convolution of one pixel, the fastest product of this machine's library."""
    pixels, channels = torch.randn(1, 2048, 71, 125, dtype=dtype), 512
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 2048, 1, 1, dtype=dtype)
    with torch.inference_mode():
        times = [seconds_of(lambda: torch.conv2d(pixels, weight)) for _ in range(6)]
    return 2 * channels * pixels.numel() / min(times)


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.measure", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("train", "test", "input"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--classes", type=int, default=CLASSES, help="number of classes")
    arguments, flags = parser.parse_known_args()
    trainer = make_trainer(arguments.data, arguments.classes, flags)
    measures = {"train": measure_training, "test": measure_test, "input": measure_input}
    found = measures[arguments.what](trainer)
    if trainer.process.is_main:
        print(json.dumps(found))
    end_process()


if __name__ == "__main__":
    main()
