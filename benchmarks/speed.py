"""The fast path against the plain one: `make bench` writes docs/performance.md's tables.

Each turn of each path is a process of its own, and the paths take turns, so that whatever else the
machine does falls on all of them; ratios are within a turn. "plain" is --plain: the published order
of work in fp32. The paths' figures are compared on the network that `make demo` has trained.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from benchmarks.measure import CLASSES
from dataset.demo.writer import write_demo

PATHS = {"plain": ["--plain"], "fp32": [], "bf16": ["--precision", "bf16"]}
NAMES = {"train": "training step", "test": "test image"}
GOALS = {"train": {"fp32": 0.82, "bf16": 0.50}, "test": {"fp32": 0.70, "bf16": 0.33}}
GOAL_POINTS = {"plain": 0.0, "fp32": 0.005, "bf16": 0.2}
RATIO = "ratio to plain: median (min, max)"
SIZE = (1280, 720)
DEMO, DEMO_CHECKPOINT = Path("data/demo"), Path("checkpoints/streethazards/demo.pth")
DOCUMENT = Path("docs/performance.md")
CHART = Path("docs/performance.png")
START, END = "<!-- make bench: start -->", "<!-- make bench: end -->"

Turn = dict[str, float]
Found = dict[str, dict[str, list[Turn]]]  # {"train" or "test": {path: its turns}}


def run_python(words: Iterable[object], threads: int | None = None) -> str:
    """What a process of its own prints; without a GPU."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        sys.exit(f"{' '.join(command)}: {ended.stderr}")
    return ended.stdout


def measure(
    what: str, data: Path, flags: Sequence[str] = (), classes: int = CLASSES, processes: int = 1
) -> Turn:
    words = ["benchmarks.measure", what, "--data", data, "--classes", classes, *flags]
    if processes == 1:
        printed = run_python(["-m", *words])
    else:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        printed = run_python(["-m", *launcher, "-m", *words], threads)
    return json.loads(printed.splitlines()[-1])


def compare(data: Path, turns: int) -> Found:
    found: Found = {what: {path: [] for path in PATHS} for what in NAMES}
    for what, paths in found.items():
        for turn in range(1, turns + 1):
            for path, flags in PATHS.items():
                paths[path].append(measure(what, data, flags))
                seconds = paths[path][-1]["seconds"]
                print(f"{NAMES[what]}, turn {turn}, {path}: {seconds:.2f} s", flush=True)
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose first column is words and whose others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})"


def ratio_table(found: Found) -> str:
    rows = []
    for what, paths in found.items():
        for path, turns in paths.items():
            pairs = zip(turns, paths["plain"], strict=True)
            ratios = [one["seconds"] / plain["seconds"] for one, plain in pairs]
            seconds, gigabytes = (
                median(turn[key] for turn in turns) for key in ("seconds", "gigabytes")
            )
            roofline = f"{median(turn['roofline'] for turn in turns):.2f}" if what == "test" else ""
            goal = GOALS[what].get(path, "")
            numbers = [f"{seconds:.2f}", spread(ratios), goal, f"{gigabytes:.2f}", roofline]
            rows.append([f"{NAMES[what]}, {path}", *numbers])
    return table(["", "seconds", RATIO, "goal", "peak GB", "roofline"], rows)


def memory_table(data: Path, turns: int) -> str:
    """Peak memory of a training step by norm, over what the process holds before it."""
    norms = {
        "std": ["--norm_act", "std"],
        "iabn_sync": [],
        "iabn_sync --checkpoint_activations": ["--checkpoint_activations"],
    }
    measured = [
        {name: measure("train", data, flags)["gigabytes"] for name, flags in norms.items()}
        for _ in range(turns)
    ]
    rows = []
    for name in norms:
        ratios = [turn[name] / turn["std"] for turn in measured]
        rows.append([name, f"{median(turn[name] for turn in measured):.2f}", spread(ratios)])
    return table(["norm", "peak GB of a training step", "ratio to std: median (min, max)"], rows)


def input_table(data: Path, turns: int) -> str:
    """Time of a training input of 1280x720 on one core, and how much of it is decoding."""
    paths = {"plain": ["--plain"], "fast": []}
    measured = [
        {path: measure("input", data, flags) for path, flags in paths.items()} for _ in range(turns)
    ]
    rows = []
    for path in paths:
        ratios = [turn[path]["seconds"] / turn["plain"]["seconds"] for turn in measured]
        milliseconds = [
            f"{1000 * median(turn[path][key] for turn in measured):.1f}"
            for key in ("seconds", "decoding")
        ]
        rows.append([path, *milliseconds, spread(ratios)])
    head = ["training input", "ms an image a core", "of it Pillow's decoding"]
    return table([*head, RATIO], rows)


def figures_of(path: str, folder: Path) -> dict[str, float]:
    """Figures in percent of the demo's network on the demo's test split."""
    places = ["--logdir", folder, "--name", path, "--data_root", DEMO]
    flags = ["--default", "--test", "--ckpt_test", DEMO_CHECKPOINT, *places, *PATHS[path]]
    run_python(["run.py", *flags])
    results = json.loads((folder / "streethazards" / path / "results.json").read_text())
    figures = {"mean IoU": 100 * results["Mean IoU"]}
    for protocol in ("per image", "pooled"):
        for name in ("AUPR", "AUROC", "FPR95"):
            figures[f"{name} {protocol}"] = results["protocols"][protocol]["figures"][name]
    return figures


def figures_table(folder: Path) -> str:
    figures = {path: figures_of(path, folder) for path in PATHS}
    rows = []
    for path, values in figures.items():
        largest = max(abs(value - figures["plain"][name]) for name, value in values.items())
        numbers = [f"{value:.4f}" for value in values.values()]
        rows.append([path, *numbers, f"{largest:.4f}", GOAL_POINTS[path]])
    return table(["path", *figures["plain"], "largest difference", "goal"], rows)


def growth_table(data: Path, folder: Path) -> str:
    """How the fp32 path's cost grows: area and classes of a test image, a training step's batch."""
    rows = []

    def add(what: str, turn: Turn, images: int = 1) -> None:
        seconds, gigabytes = turn["seconds"], turn["gigabytes"]
        each = f"{seconds / images:.2f}"
        rows.append([what, f"{seconds:.2f}", each, f"{gigabytes:.2f}"])
        print(f"{what}: {seconds:.2f} s", flush=True)

    for size in ((640, 360), SIZE, (1920, 1080)):
        pictures = folder / f"{size[0]}"
        write_demo(pictures, train=1, validation=1, test=2, size=size, seed=0)
        add(f"test image of {size[0]}x{size[1]}", measure("test", pictures))
    for classes in (19, 150):
        add(f"test image, {classes} classes", measure("test", data, classes=classes))
    for batch in (2, 4, 8):
        turn = measure("train", data, ["--batch_size", str(batch)])
        add(f"training step, batch of {batch}", turn, batch)
    turn = measure("train", data, ["--batch_size", "1"], processes=2)
    add("training step, 2 processes with a batch of 1", turn, 2)
    return table(["", "seconds", "seconds an image", "peak GB of a process"], rows)


def draw(found: Found) -> None:
    figure = Figure((8, 3.2), dpi=100, layout="constrained")
    for number, (what, paths) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), number)
        seconds = [median(turn["seconds"] for turn in turns) for turns in paths.values()]
        bars = axes.bar(list(paths), seconds, color=["tab:grey", "tab:blue", "tab:orange"])
        axes.bar_label(bars, [f"{value:.1f} s" for value in seconds])
        axes.set_title(f"{NAMES[what]}, seconds")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(CHART)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="of each path")
    turns = parser.parse_args().turns
    if not DEMO_CHECKPOINT.is_file():
        sys.exit(f"error: {DEMO_CHECKPOINT} is missing; run make demo first")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        write_demo(data, train=16, validation=1, test=2, size=SIZE, seed=0)
        tables = [
            growth_table(data, folder),
            memory_table(data, turns),
            input_table(data, turns),
            figures_table(folder / "logs"),
        ]
        found = compare(data, turns)
        draw(found)
    text = "\n\n".join([ratio_table(found), *tables])
    print(text)
    before, _, rest = DOCUMENT.read_text().partition(START)
    DOCUMENT.write_text(f"{before}{START}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
