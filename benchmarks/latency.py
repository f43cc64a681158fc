"""Time and memory of one network on one picture of noise, on the GPU if there is one.

`python -m benchmarks.latency [--size 720x1280] [--runs 5] [FLAGS]`, FLAGS being run.py's, such as
`--backbone resnet101`, `--precision bf16`, `--multi_scala`, `--plain` or `--ckpt_test FILE`
(else weights are random). The picture is run at its own size, with --multi_scala at the test's
five scales.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from argparser import Options
from benchmarks.measure import peak_gigabytes, seconds_of
from build import model_of
from dataset.transforms import TEST_SCALES, scaled_size
from modules.inference.network import Inference
from predict import load_network
from stored_flags import with_stored_flags
from utils.errors import PansError, exit_code
from utils.gpu import describe_device, usable_gpus
from utils.memory import keep_freed_memory

Sizes = list[tuple[int, int]]


@dataclass(frozen=True)
class Latency:
    """FLOPs are those of direct convolution for one picture; a multiply-add is two."""

    parameters: int
    flops: int
    seconds: float
    gigabytes: float


def sizes_of(size: str, *, multi_scale: bool) -> Sizes:
    """(height, width) of each scale for a picture of `size`, such as "720x1280".

    Raises:
        PansError: it is not two numbers of 8 or more.
    """
    sides = size.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 8 for side in sides):
        raise PansError(
            f"--size is {size!r}; expected HEIGHTxWIDTH, 8 or more each, as in 720x1280"
        )
    height, width = map(int, sides)
    if not multi_scale:
        return [(height, width)]
    return [scaled_size(height, width, scale) for scale in TEST_SCALES]


def flops_of(options: Options, sizes: Sizes) -> int:
    """FLOPs up to the logits, without deep supervision."""
    with torch.device("meta"):
        model = model_of(options).eval()
        images = [torch.empty(1, 3, *size) for size in sizes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = [model.head(model.body(image)[1]) for image in images]
    classified = sum(2 * one.numel() * options.num_classes for one in features)
    return counter.get_total_flops() + classified


def measure(options: Options, sizes: Sizes, runs: int, device: torch.device) -> Latency:
    """Run inference `runs` times after two warm-up runs; seconds are the median."""
    model = load_network(options) if options.ckpt_test else model_of(options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    inference = Inference(model.to(device), device, options.precision, plain=options.plain)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes]

    def infer() -> None:
        inference.logits(images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        infer()
    seconds = median(seconds_of(infer) for _ in range(runs))
    on_gpu = device.type == "cuda"
    gigabytes = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else peak_gigabytes()
    return Latency(parameters, flops_of(options, sizes), seconds, gigabytes)


def report(words: Sequence[str]) -> None:
    """Measure and print the network that the command line describes."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.latency", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--size", default="720x1280", help="HEIGHTxWIDTH (default 720x1280)")
    parser.add_argument("--runs", type=int, default=5, help="number of timed runs (default 5)")
    own, flags = parser.parse_known_args(words)
    if own.runs < 1:
        raise PansError(f"--runs is {own.runs}; expected 1 or more")
    options, _ = with_stored_flags([*["--test"] * ("--ckpt_test" in flags), *flags])
    sizes = sizes_of(own.size, multi_scale=options.multi_scala)
    if not options.plain:
        keep_freed_memory()
    device = torch.device("cuda" if usable_gpus() else "cpu")
    found = measure(options, sizes, own.runs, device)
    print(f"{options.backbone}, {own.size}, {options.precision}, {describe_device(device)}")
    print(f"parameters  {found.parameters / 1e6:.1f} M")
    print(f"FLOPs       {found.flops / 1e9:.1f} G")
    print(f"images/s    {1 / found.seconds:.2f}")
    print(f"seconds     {found.seconds:.4f} (median of {own.runs})")
    print(f"peak memory {found.gigabytes:.2f} GB")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: report(sys.argv[1:])))
