"""The fast path against the plain one: `make bench` writes docs/performance.md's table.

Each turn of each path is a process of its own, and the paths take turns, so that whatever else the
machine does falls on all of them; ratios are within a turn. "plain" is --plain: the published order
of work in fp32.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from argparser import parse_options
from dataset.demo import write_demo
from metrics.evaluation import AnomalyEvaluation
from modules.inference import Inference
from modules.scores import Scorer
from train import Trainer
from utils.distributed import Process
from utils.logger import Logger
from utils.memory import keep_freed_memory

PATHS = {"plain": ["--plain"], "fp32": [], "bf16": ["--precision", "bf16"]}
ASKED = {"train step": {"fp32": 0.82, "bf16": 0.50}, "test image": {"fp32": 0.70, "bf16": 0.33}}
SIZE = (1280, 720)
DOCUMENT = Path("docs/performance.md")
CHART = Path("docs/performance.png")
START, END = "<!-- make bench: start -->", "<!-- make bench: end -->"


def make_trainer(data: Path, flags: list[str]) -> Trainer:
    words = ["--default", "--no_pretrained", "--num_workers", "0", "--data_root", str(data)]
    words += ["--checkpoints", str(data / "checkpoints"), *flags]
    options = parse_options(words)
    if not options.plain:
        keep_freed_memory()
    return Trainer(options, Process(0, 0, 1, torch.device("cpu")), Logger(None))


def seconds_of(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure_training(data: Path, flags: list[str]) -> dict[str, float]:
    """The second of two steps, and what the process's peak rose by."""
    trainer = make_trainer(data, flags)
    trainer._prepare_training()
    trainer.model.train()
    batches = iter(trainer.loader)
    before = peak_gigabytes()
    trainer.train_step(batches)
    seconds = seconds_of(lambda: trainer.train_step(batches))
    return {"seconds": seconds, "gigabytes": peak_gigabytes() - before}


def measure_test(data: Path, flags: list[str]) -> dict[str, float]:
    """The second of two test images: five scales, prediction, score and metrics."""
    trainer = make_trainer(data, flags)
    precision, plain = trainer.precision, trainer.options.plain
    inference = Inference(trainer.model, torch.device("cpu"), precision, plain=plain)
    scorer = Scorer(inference, ["prototype"])
    evaluation = AnomalyEvaluation(trainer.options.num_classes)
    samples = list(trainer._evaluation_loader("test", True))

    def one(sample: Any) -> None:
        evidence = scorer.look(sample.images, sample.label.shape, sample.picture, sample.index)
        maps = scorer.maps(evidence)
        evaluation.update(
            sample.index, sample.name, maps["prototype"], evidence.prediction, sample.label
        )

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


MEASUREMENTS = {"train step": measure_training, "test image": measure_test}


def in_its_own_process(what: str, data: Path, flags: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.speed", "--measure", what, "--data", str(data)]
    ended = subprocess.run([*command, "--", *flags], capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(flags)}: {ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def compare(data: Path, turns: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """{measurement: {path: its turns}}."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for what in MEASUREMENTS:
        found[what] = {name: [] for name in PATHS}
        for turn in range(turns):
            for name, flags in PATHS.items():
                found[what][name].append(in_its_own_process(what, data, flags))
                seconds = found[what][name][-1]["seconds"]
                print(f"{what}, turn {turn + 1}, {name}: {seconds:.2f} s", flush=True)
    return found


def table_of(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    lines = [
        "| | path | seconds | ratio to plain: median (min, max) | asked | peak GB | roofline |"
    ]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for what, paths in found.items():
        for name, turns in paths.items():
            pairs = zip(turns, paths["plain"], strict=True)
            ratios = [one["seconds"] / plain["seconds"] for one, plain in pairs]
            spread = f"{median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})"
            asked = ASKED[what].get(name, "")
            seconds, gigabytes = (
                median(turn[key] for turn in turns) for key in ("seconds", "gigabytes")
            )
            roofline = f"{turns[0]['roofline']:.2f}" if "roofline" in turns[0] else ""
            cells = [what, name, f"{seconds:.2f}", spread, asked, f"{gigabytes:.2f}", roofline]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def memory_table(data: Path) -> str:
    """Peak memory of a training step by norm, over what the process holds before it."""
    flags = {
        "std": ["--norm_act", "std"],
        "iabn_sync": [],
        "iabn_sync --checkpoint_activations": ["--checkpoint_activations"],
    }
    peaks = {
        name: in_its_own_process("train step", data, words)["gigabytes"]
        for name, words in flags.items()
    }
    lines = ["| norm | peak GB of a training step | ratio to std |", "| --- | ---: | ---: |"]
    lines += [f"| {n} | {peak:.2f} | {peak / peaks['std']:.3f} |" for n, peak in peaks.items()]
    return "\n".join(lines)


def draw(found: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    figure = Figure((8, 3.2), dpi=100, layout="constrained")
    for number, (what, paths) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), number)
        seconds = [median(turn["seconds"] for turn in turns) for turns in paths.values()]
        bars = axes.bar(list(paths), seconds, color=["tab:grey", "tab:blue", "tab:orange"])
        axes.bar_label(bars, [f"{value:.1f} s" for value in seconds])
        axes.set_title(f"{what}, seconds")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(CHART)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="of each path")
    parser.add_argument("--measure", choices=MEASUREMENTS, help="one turn of one path, as JSON")
    parser.add_argument("--data", type=Path, help="the data of --measure")
    parser.add_argument("flags", nargs="*", help="run.py's flags of --measure")
    arguments = parser.parse_args()
    if arguments.measure:
        measure = MEASUREMENTS[arguments.measure]
        print(json.dumps(measure(arguments.data, arguments.flags)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_demo(data, train=4, validation=1, test=2, size=SIZE, seed=0)
        found = compare(data, arguments.turns)
        tables = f"{table_of(found)}\n\n{memory_table(data)}"
    print(tables)
    draw(found)
    before, _, rest = DOCUMENT.read_text().partition(START)
    DOCUMENT.write_text(f"{before}{START}\n\n{tables}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
