"""`make gpu-check`: test the results of this machine's GPU, and measure its speed.

A few minutes on one GPU, no data needed. It prints a table to paste into a bug report, and ends
with 1 if a check failed, with 2 on a machine without a usable GPU.
"""

import argparse
import math
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from argparser import parse_options
from dataset.demo import write_demo
from modules.abn import inplace_abn, package_function
from modules.inference.network import Inference
from modules.scores import Scorer
from train import Trainer
from utils.distributed import Process
from utils.errors import USER_ERROR, PansError
from utils.gpu import refuse_old_gpu, timed_convolutions, usable_gpus
from utils.logger import Logger

STEPS = {
    "fp32": "--precision fp32",
    "bf16": "--precision bf16",
    "bf16, batch 8": "--precision bf16 --batch_size 8",
    "fp32, --norm_act std": "--precision fp32 --norm_act std",
    "fp32, --plain": "--plain",
}
SIDE = 8192
"""Of the matrices whose product is the ceiling."""

TEST_SIZES = ((304, 536), (376, 672), (456, 800), (528, 936), (568, 1000))
LABEL_SIZE = (720, 1280)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.03}
"""Largest difference from the CPU's results in float64, relative to the largest of these."""

Row = tuple[str, str, str]  # what, result, "ok", "FAILED" or ""


def verdict(holds: bool) -> str:
    return "ok" if holds else "FAILED"


def environment_rows(device: torch.device) -> list[Row]:
    """The machine, for a bug report."""
    major, minor = torch.cuda.get_device_capability(device)
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    gpu = f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}, {memory:.0f} GiB"
    built = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return [
        ("GPU", f"{torch.cuda.device_count()} x {gpu}", ""),
        ("software", f"{built}, cuDNN {torch.backends.cudnn.version()}", ""),
        ("inplace-abn", "installed" if package_function else "not installed", ""),
    ]


# The norm


def norm_results(x: Tensor, grad: Tensor, group: Any = None) -> list[Tensor]:
    """Output, gradients of x, weight and bias, running statistics, in float64 on the CPU."""
    wide = torch.promote_types(x.dtype, torch.float32)
    places = torch.linspace(-1, 1, x.shape[1], dtype=torch.float64)
    weight, bias = (vector.to(x.device, wide) for vector in (places + 1.5, places / 2))
    leaves = [leaf.requires_grad_() for leaf in (x.clone(), weight, bias)]
    mean = torch.zeros(x.shape[1], dtype=wide, device=x.device)
    x, weight, bias = leaves
    y = inplace_abn(x * 1, weight, bias, mean, mean + 1, training=True, group=group)
    y.backward(grad)
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [tensor.detach().double().cpu() for tensor in (y, *gradients, mean)]


def norm_data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x * 2 + 1, grad


def largest_difference(got: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The largest over all results, each relative to its own largest value."""
    pairs = zip(got, wanted, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def norm_rows(device: torch.device) -> list[Row]:
    """The CUDA norm against the CPU's in float64, for both layouts, maps and single pixels."""
    rows = []
    for dtype, tolerance in TOLERANCES.items():
        differences = []
        for shape in ((4, 64, 33, 31), (4, 64, 1, 1)):
            x, grad = (tensor.to(dtype) for tensor in norm_data(shape))
            wanted = norm_results(x.double(), grad.double())
            for layout in (torch.contiguous_format, torch.channels_last):
                moved = [t.to(device).contiguous(memory_format=layout) for t in (x, grad)]
                found = norm_results(moved[0], moved[1])
                differences.append(largest_difference(found, wanted))
        what = f"norm in {str(dtype).removeprefix('torch.')} to the CPU's in float64"
        worst = max(differences)
        rows.append((what, f"{worst:.1e}", verdict(worst < tolerance)))
    return rows


def _norm_in_two_processes(rank: int, port: int, folder: str) -> None:
    torch.cuda.set_device(rank)
    address = f"tcp://localhost:{port}"
    dist.init_process_group("nccl", init_method=address, rank=rank, world_size=2)
    x, grad = (tensor.cuda() for tensor in norm_data((4, 64, 33, 31)))
    share = slice(0, 3) if rank == 0 else slice(3, 4)  # uneven
    found = norm_results(x[share], grad[share], dist.group.WORLD)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def nccl_rows() -> list[Row]:
    """The synchronised norm on two GPUs against the CPU's with the whole batch."""
    what = "norm over two processes (NCCL)"
    if torch.cuda.device_count() < 2:
        return [(what, "not run: one GPU", "")]
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_norm_in_two_processes, (port, folder), 2, start_method="spawn")
        one, other = (torch.load(f"{folder}/{rank}.pt") for rank in range(2))
    shared = [torch.cat(pair) for pair in zip(one[:2], other[:2], strict=True)]
    summed = [first + second for first, second in zip(one[2:4], other[2:4], strict=True)]
    difference = largest_difference(
        [*shared, *summed, one[4]], norm_results(*norm_data((4, 64, 33, 31)))
    )
    return [(what, f"{difference:.1e}", verdict(difference < 1e-10))]


# Speed


def seconds_a_call(call: Callable[[], object], warm_up: int, times: int) -> float:
    for _ in range(warm_up):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def ceiling(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, in TF32 for fp32, as in convolutions."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    matrix = torch.randn(SIDE, SIDE, device=device, dtype=dtype)
    seconds = seconds_a_call(lambda: matrix @ matrix, 3, 10)
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * SIDE**3 / seconds


def waits_of(call: Callable[[], object]) -> int:
    """How often CUDA says that the host waited for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def step_rows(device: torch.device, data: Path, name: str, crop: int, times: int) -> list[Row]:
    """One kind of training step: finite, without waits, images/s, memory, share of the ceiling."""
    flags = f"--default --no_pretrained --num_workers 0 --crop_size {crop} --data_root {data}"
    places = f"--logdir {data} --checkpoints {data / 'checkpoints'} --name check"
    options = parse_options(f"{flags} {places} {STEPS[name]}".split())
    trainer = Trainer(options, Process(0, 0, 1, device), Logger(None))
    trainer._prepare_training()
    trainer.model.train()
    batch = options.batch_size
    images = torch.randint(256, (batch, 3, crop, crop), dtype=torch.uint8)
    labels = torch.randint(options.num_classes, (batch, crop, crop), dtype=torch.uint8)
    batches: Any = repeat((images.pin_memory(), labels.pin_memory()))
    torch.cuda.reset_peak_memory_stats()
    with timed_convolutions(device):
        seconds = seconds_a_call(lambda: trainer.train_step(batches), times // 3, times)
        peak = torch.cuda.max_memory_allocated() / 1e9
        waits = waits_of(lambda: trainer.train_step(batches))
        with FlopCounterMode(display=False) as counter:
            loss = float(trainer.train_step(batches))
    rate = counter.get_total_flops() / seconds
    share = rate / ceiling(device, trainer.options.precision)
    speed = f"{batch / seconds:.1f} images/s, {1000 * seconds:.1f} ms a step, {peak:.2f} GB"
    found = f"{speed}, {rate / 1e12:.1f} TFLOP/s, {share:.0%} of a large product's, {waits} waits"
    return [(f"training step, {name}", found, verdict(math.isfinite(loss) and waits == 0))]


def test_rows(device: torch.device, data: Path, times: int) -> list[Row]:
    """Forward passes of a test image at five scales, with prediction and score."""
    rows = []
    for precision in ("fp32", "bf16"):
        flags = f"--default --no_pretrained --data_root {data} --precision {precision}"
        options = parse_options([*flags.split(), "--logdir", str(data)])
        model = Trainer(options, Process(0, 0, 1, device), Logger(None)).model
        scorer = Scorer(Inference(model, device, precision), ["prototype"])
        images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in TEST_SIZES]

        def test_image(scorer: Scorer = scorer, images: list[Tensor] = images) -> object:
            output = scorer.forward(images, LABEL_SIZE)
            return output.prediction, scorer.maps(output)

        torch.cuda.reset_peak_memory_stats()
        seconds = seconds_a_call(test_image, times // 3, times)
        peak = torch.cuda.max_memory_allocated() / 1e9
        rows.append((f"test image, {precision}", f"{1 / seconds:.1f} images/s, {peak:.2f} GB", ""))
    return rows


def report(device: torch.device, crop: int = 450, times: int = 30) -> list[Row]:
    """All rows; a check that raised has its message in its row."""
    rows = environment_rows(device)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        write_demo(data, train=8, validation=1, test=1, size=(96, 64), seed=0)
        checks: list[tuple[str, Callable[[], list[Row]]]] = [
            ("norm", lambda: norm_rows(device)),
            ("two processes", nccl_rows),
            *(
                (f"training step, {step}", lambda s=step: step_rows(device, data, s, crop, times))
                for step in STEPS
            ),
            ("test image", lambda: test_rows(device, data, times)),
        ]
        for what, check in checks:
            try:
                rows += check()
            except Exception as error:
                rows.append(
                    (what, f"{type(error).__name__}: {str(error).splitlines()[0]}", "FAILED")
                )
            print(f"{rows[-1][0]}: {rows[-1][1]} {rows[-1][2]}", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Returns the exit code."""
    argparse.ArgumentParser("python -m benchmarks.gpu_check", description=__doc__).parse_args()
    device = torch.device("cuda", 0)
    try:
        if not usable_gpus():
            raise PansError("make gpu-check: no NVIDIA GPU can be seen here")
        refuse_old_gpu(device)
    except PansError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    rows = report(device)
    print("| check | result | |\n| --- | --- | --- |")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return int(any(row[2] == "FAILED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
