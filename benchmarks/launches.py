"""Kernel launches and waits of a training step on a GPU, counted without one.

`python -m benchmarks.launches` prints a Markdown table. The pretend GPU of the tests counts what
torch sends to the device; a fused or foreach operation is one launch here, though the largest ones
are split on a real GPU.
"""

import argparse
import tempfile
from pathlib import Path

from argparser import parse_options
from dataset.demo import write_demo
from modules import abn
from tests.gpu.pretend_gpu import CUDA, PretendGpu
from train import Trainer
from utils.distributed import Process
from utils.logger import Logger

VARIANTS = {
    "iabn_sync": "--precision fp32",
    "iabn_sync, bf16": "--precision bf16",
    "std": "--precision fp32 --norm_act std",
    "--plain": "--plain",
}
GOAL = 1300


def count(data: Path, folder: Path, words: str) -> tuple[int, int]:
    """Launches and waits of the second step of a training with these flags."""
    flags = f"--default --no_pretrained --crop_size 48 --num_workers 0 --data_root {data}"
    options = parse_options(f"{flags} --logdir {folder} --checkpoints {folder} {words}".split())
    with PretendGpu() as gpu:
        trainer = Trainer(options, Process(0, 0, 1, CUDA), Logger(None))
        trainer._prepare_training()
        trainer.model.train()
        batches = iter(trainer.loader)
        trainer.train_step(batches)
        gpu.clear()
        trainer.train_step(batches)
        return sum(gpu.launches.values()), sum(gpu.waits.values())


def table() -> str:
    """The rows of `VARIANTS`, as Markdown."""
    lines = ["| training step on a GPU | launches | goal | waits |", "| --- | ---: | ---: | ---: |"]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        write_demo(data, train=4, validation=1, test=1, size=(96, 64), seed=0)
        for variant, words in VARIANTS.items():
            launches, waits = count(data, Path(name), words)
            goal = GOAL if variant.startswith("iabn") else ""
            lines.append(f"| {variant} | {launches} | {goal} | {waits} |")
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser("python -m benchmarks.launches", description=__doc__).parse_args()
    abn.package_function = None  # its launches are not seen
    print(table())
