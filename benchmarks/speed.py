"""The fast path against the plain one: `make bench` writes docs/performance.md's tables.

Each turn of each path is a process of its own, and the paths take turns, so that whatever else the
machine does falls on all of them; ratios are within a turn. "plain" is --plain: the published order
of operations in fp32. The paths' metrics are compared on the network that `make demo` has trained.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from benchmarks.measure import CLASSES
from benchmarks.peers import PEERS, missing_packages, only_logits
from dataset.demo.writer import write_demo
from dataset.prepare.copies import write_copies
from dataset.registry import open_dataset

PATHS = {"plain": ["--plain"], "fp32": [], "bf16": ["--precision", "bf16"]}
NAMES = {"train": "training step", "test": "test image"}
GOALS = {"train": {"fp32": 0.60, "bf16": 0.38}, "test": {"fp32": 0.44, "bf16": 0.26}}
GOAL_POINTS = {"plain": 0.0, "fp32": 0.005, "bf16": 0.1}
RATIO = "ratio to plain: median (min, max)"
MANY_CLASSES = f"test image, fp32, 150 classes; to {CLASSES} classes"
NEIGHBOUR = "training step, fp32, beside a busy process; to alone"
INPUT_GOALS = {"decoded copies": 15}
SPECIAL_GOALS = {MANY_CLASSES: (1.2, 3), NEIGHBOUR: (2.5, "")}  # of the ratio, of the peak GB
METRICS = ("mean IoU", "AUPR", "AUROC", "FPR95")
SIZE = (1280, 720)
DEMO, DEMO_CHECKPOINT = Path("data/demo"), Path("checkpoints/streethazards/demo.pth")
DOCUMENT = Path("docs/performance.md")
CHART = Path("docs/performance.png")
START, END = "<!-- make bench: start -->", "<!-- make bench: end -->"

Turn = dict[str, float]
Found = dict[str, dict[str, list[Turn]]]  # {"train" or "test": {path: its turns}}


def run_python(words: Iterable[object], threads: int | None = None) -> str:
    """Output of a separate Python process without a GPU."""
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


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Run another process that keeps a core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()


def compare(data: Path, turns: int) -> tuple[Found, dict[str, list[Turn]]]:
    """Measure the paths in turn, and in each turn fp32 with many classes and beside a neighbour."""
    found: Found = {what: {path: [] for path in PATHS} for what in NAMES}
    special: dict[str, list[Turn]] = {name: [] for name in SPECIAL_GOALS}

    def add(name: str, turns: list[Turn], turn: Turn) -> None:
        turns.append(turn)
        print(f"{name}, turn {len(turns)}: {turn['seconds']:.2f} s", flush=True)

    for _ in range(turns):
        for what, paths in found.items():
            for path, flags in PATHS.items():
                add(f"{NAMES[what]}, {path}", paths[path], measure(what, data, flags))
        add(MANY_CLASSES, special[MANY_CLASSES], measure("test", data, classes=150))
        with busy_neighbour():
            add(NEIGHBOUR, special[NEIGHBOUR], measure("train", data))
    return found, special


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


def special_table(found: Found, special: dict[str, list[Turn]]) -> str:
    rows = []
    for (name, turns), what in zip(special.items(), ("test", "train"), strict=True):
        pairs = zip(turns, found[what]["fp32"], strict=True)
        ratios = [one["seconds"] / fp32["seconds"] for one, fp32 in pairs]
        seconds, gigabytes = (
            median(turn[key] for turn in turns) for key in ("seconds", "gigabytes")
        )
        ratio_goal, memory_goal = SPECIAL_GOALS[name]
        numbers = [f"{seconds:.2f}", spread(ratios), ratio_goal, f"{gigabytes:.2f}", memory_goal]
        rows.append([name, *numbers])
    return table(["", "seconds", "ratio: median (min, max)", "goal", "peak GB", "goal"], rows)


def peers_table(data: Path, folder: Path, turns: int) -> str:
    """Other programs on the demo's network: a forward pass, a five-scale image, the metrics."""
    if missing := missing_packages():
        return (
            f"Peers: not measured; install {', '.join(missing)} with `pip install -e '.[bench]'`."
        )
    file = folder / "network.onnx"
    network = ["--ckpt_test", DEMO_CHECKPOINT]
    run_python(
        ["run.py", "--default", "--export", "onnx", *network, "--data_root", DEMO, "--out", file]
    )
    only_logits(file)
    places = [*network, "--onnx", file, "--timing", data, "--demo", DEMO]
    found: dict[str, list[Turn]] = {name: [] for name in ("fp32", *PEERS, "bf16")}
    for _ in range(turns):
        for name, own in found.items():
            printed = run_python(["-m", "benchmarks.peers", name, *places])
            own.append(json.loads(printed.splitlines()[-1]))
            print(f"{name}: test image {own[-1]['image']:.2f} s", flush=True)
    rows = []
    for name, own in found.items():
        ours = found["bf16" if "bf16" in name else "fp32"]
        numbers = []
        for what in ("forward", "image"):
            ratios = [a[what] / b[what] for a, b in zip(own, ours, strict=True)]
            numbers += [f"{median(turn[what] for turn in own):.2f}", spread(ratios)]
        rows.append([name, *numbers, *(f"{own[0][metric]:.4f}" for metric in METRICS)])
    ratio = "ratio to ours of the same precision"
    return table(["", "forward, s", ratio, "five scales, s", ratio, *METRICS], rows)


def memory_table(data: Path) -> str:
    """Peak memory of a training step by norm, above that of the process before it."""
    norms = {
        "std": ["--norm_act", "std"],
        "iabn_sync": [],
        "iabn_sync --checkpoint_activations": ["--checkpoint_activations"],
    }
    found = {name: measure("train", data, flags)["gigabytes"] for name, flags in norms.items()}
    rows = [[name, f"{own:.2f}", f"{own / found['std']:.2f}"] for name, own in found.items()]
    return table(["norm", "peak GB of a training step", "ratio to std"], rows)


def input_table(data: Path, folder: Path, turns: int) -> str:
    """Time of a training input of 1280x720 on one core, and how much of it is decoding."""
    decoded = folder / "decoded"
    shutil.copytree(data, decoded)
    write_copies(open_dataset("streethazards", decoded, "train"))
    places = {"plain": (data, ["--plain"]), "fast": (data, []), "decoded copies": (decoded, [])}
    measured = [
        {name: measure("input", *place) for name, place in places.items()} for _ in range(turns)
    ]
    rows = []
    for name in places:
        ratios = [turn[name]["seconds"] / turn["plain"]["seconds"] for turn in measured]
        milliseconds = [
            f"{1000 * median(turn[name][key] for turn in measured):.1f}"
            for key in ("seconds", "decoding")
        ]
        rows.append([name, *milliseconds, spread(ratios), INPUT_GOALS.get(name, "")])
    head = ["training input", "ms an image a core", "of it decoding", RATIO, "goal, ms"]
    return table(head, rows)


def metrics_of(path: str, folder: Path) -> dict[str, float]:
    """Metrics, in percent, of the demo's network on the demo's test split."""
    places = ["--logdir", folder, "--name", path, "--data_root", DEMO]
    flags = ["--default", "--test", "--ckpt_test", DEMO_CHECKPOINT, *places, *PATHS[path]]
    run_python(["run.py", *flags])
    results = json.loads((folder / "streethazards" / path / "results.json").read_text())
    metrics = {"mean IoU": 100 * results["Mean IoU"]}
    for protocol in ("per image", "pooled"):
        for name in ("AUPR", "AUROC", "FPR95"):
            metrics[f"{name} {protocol}"] = results["protocols"][protocol]["figures"][name]
    return metrics


def metrics_table(folder: Path) -> str:
    metrics = {path: metrics_of(path, folder) for path in PATHS}
    rows = []
    for path, values in metrics.items():
        largest = max(abs(value - metrics["plain"][name]) for name, value in values.items())
        numbers = [f"{value:.4f}" for value in values.values()]
        rows.append([path, *numbers, f"{largest:.4f}", GOAL_POINTS[path]])
    return table(["path", *metrics["plain"], "largest difference", "goal"], rows)


def growth_table(data: Path, folder: Path) -> str:
    """How the fp32 path's cost grows: area of a test image, a training step's batch."""
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
    for batch in (2, 4):
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
        found, special = compare(data, turns)
        tables = [
            ratio_table(found),
            special_table(found, special),
            peers_table(data, folder, turns),
            growth_table(data, folder),
            memory_table(data),
            input_table(data, folder, turns),
            metrics_table(folder / "logs"),
        ]
        draw(found)
    text = "\n\n".join(tables)
    print(text)
    before, _, rest = DOCUMENT.read_text().partition(START)
    DOCUMENT.write_text(f"{before}{START}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
