"""What one process of `make bench` measures: prints one line of JSON.

`python -m benchmarks.measure train|test --data DIR [--classes N] [FLAGS]`, FLAGS being run.py's;
under torchrun all processes take part and the first one prints.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from argparser import parse_options
from dataset.description import UNKNOWN_INDEX
from metrics.evaluation import AnomalyEvaluation
from modules.inference import Inference
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
    """The second of two steps, and what the process's peak rose by."""
    trainer._prepare_training()
    trainer.model.train()
    batches = iter(trainer.loader)
    before = peak_gigabytes()
    trainer.train_step(batches)
    seconds = seconds_of(lambda: trainer.train_step(batches))
    return {"seconds": seconds, "gigabytes": peak_gigabytes() - before}


def measure_test(trainer: Trainer) -> dict[str, float]:
    """The second of two test images: five scales, prediction, score and metrics."""
    precision, plain = trainer.precision, trainer.options.plain
    inference = Inference(trainer.model, torch.device("cpu"), precision, plain=plain)
    scorer = Scorer(inference, ["prototype"])
    classes = trainer.options.num_classes
    evaluation = AnomalyEvaluation(classes, classes)
    samples = list(trainer._evaluation_loader("test", True))

    def one(sample: Any) -> None:
        evidence = scorer.look(sample.images, sample.label.shape, sample.picture, sample.index)
        (score,) = scorer.maps(evidence).values()
        label = sample.label.masked_fill(sample.label == UNKNOWN_INDEX, classes)
        evaluation.update(sample.index, sample.name, score, evidence.prediction, label)

    one(samples[0])
    seconds = seconds_of(lambda: one(samples[1]))
    with FlopCounterMode(display=False) as counter:
        inference.logits(samples[1].images)
    return {
        "seconds": seconds,
        "gigabytes": peak_gigabytes(),
        "roofline": counter.get_total_flops() / seconds / matmul_ceiling(inference.dtype),
    }


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
    parser.add_argument("what", choices=("train", "test"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--classes", type=int, default=CLASSES, help="that the network tells")
    arguments, flags = parser.parse_known_args()
    trainer = make_trainer(arguments.data, arguments.classes, flags)
    measure = {"train": measure_training, "test": measure_test}[arguments.what]
    found = measure(trainer)
    if trainer.process.is_main:
        print(json.dumps(found))
    end_process()


if __name__ == "__main__":
    main()
