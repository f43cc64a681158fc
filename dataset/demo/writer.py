"""Write a small procedural data set in the layout of StreetHazards: `python -m dataset.demo`.

Pictures come from `dataset.demo.scene`; scene i of a split depends on (seed, split, i) alone.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.demo.scene import draw_scene
from dataset.loaders import worker_count
from utils.errors import PansError, exit_code
from utils.files import write_text

FOLDER = "StreetHazards"
STAMP = "demo.json"
SMALLEST_SIDE = 32
# Part of the stamp: increment it when the drawing changes, so that old data is redrawn.
DRAWING = 1
# Archive, folder of the images and towns of each split, as in the published archives.
LAYOUT = {
    "train": ("train", "training", ("t1", "t2", "t3")),
    "validation": ("train", "validation", ("t4",)),
    "test": ("test", "test", ("t5", "t6")),
}


@dataclass(frozen=True)
class Scene:
    """One scene to draw; `image` and `label` are relative to `folder`, as in the odgt file."""

    folder: Path
    image: str
    label: str
    size: tuple[int, int]
    key: tuple[int, int, int]
    with_anomaly: bool


def scenes_of(root: Path, split: str, count: int, size: tuple[int, int], seed: int) -> list[Scene]:
    archive, pictures, towns = LAYOUT[split]
    return [
        Scene(
            folder=root / archive,
            image=f"images/{pictures}/{towns[index % len(towns)]}/{index:05d}.png",
            label=f"annotations/{pictures}/{towns[index % len(towns)]}/{index:05d}.png",
            size=size,
            key=(seed, list(LAYOUT).index(split), index),
            with_anomaly=split == "test",
        )
        for index in range(count)
    ]


def write_scene(scene: Scene) -> None:
    rng = np.random.default_rng(scene.key)
    image, label = draw_scene(rng, *scene.size, scene.with_anomaly)
    for name, pixels in ((scene.image, image), (scene.label, label)):
        path = scene.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)


def write_odgt(path: Path, scenes: list[Scene]) -> None:
    """Write a JSON array on one line, as in the published archives."""
    records = [
        {
            "dbName": FOLDER,
            "width": scene.size[0],
            "height": scene.size[1],
            "fpath_img": scene.image,
            "fpath_segm": scene.label,
        }
        for scene in scenes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(records) + "\n")


def draw_all(scenes: list[Scene]) -> None:
    workers = worker_count(len(scenes) // 8)
    with ExitStack() as stack:
        drawn: Iterator[None] = map(write_scene, scenes)
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(workers))
            drawn = pool.map(write_scene, scenes, chunksize=4)
        for _ in tqdm(drawn, total=len(scenes), desc="drawing", unit="scene"):
            pass


def is_there(folder: Path, stamp: str) -> bool:
    """Whether an earlier run has completed this same data set.

    Raises:
        PansError: the folder holds files but no stamp.
    """
    if (folder / STAMP).is_file():
        return (folder / STAMP).read_text() == stamp
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PansError(
            f"{folder} has no {STAMP}, so it is not demo data and is left as it is; "
            "choose another folder with --root"
        )
    return False


def write_demo(
    root: Path | str,
    *,
    train: int = 240,
    validation: int = 16,
    test: int = 32,
    size: tuple[int, int] = (384, 216),
    seed: int = 0,
) -> Path:
    """Write the data set into `root`/StreetHazards unless it exists already.

    Args:
        root: the folder to pass to `run.py --data_root`.
        train, validation, test: number of scenes in each split; only `test` has anomalies.
        size: width and height in pixels.
        seed: the same seed gives the same pictures.

    Returns:
        The folder that holds train/ and test/.

    Raises:
        PansError: the folder contains something else.
    """
    folder = Path(root) / FOLDER
    counts = {"train": train, "validation": validation, "test": test}
    stamp = json.dumps({"drawing": DRAWING, "seed": seed, "size": size, **counts})
    if is_there(folder, stamp):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAMP).write_text("unfinished")
    for archive in ("train", "test"):
        shutil.rmtree(folder / archive, ignore_errors=True)
    splits = {split: scenes_of(folder, split, count, size, seed) for split, count in counts.items()}
    draw_all([scene for scenes in splits.values() for scene in scenes])
    for split, scenes in splits.items():
        write_odgt(folder / LAYOUT[split][0] / f"{split}.odgt", scenes)
    (folder / STAMP).write_text(stamp)
    return folder


def natural_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)


def picture_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(size := (int(match[1]), int(match[2]))) < SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size: use WIDTHxHEIGHT, each at least {SMALLEST_SIDE} pixels"
        )
    return size


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dataset.demo",
        description="Draw a small data set of street scenes in the layout of StreetHazards.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=Path("data/demo"), help="folder to write to")
    for split, count in (("train", 240), ("validation", 16), ("test", 32)):
        parser.add_argument(
            f"--{split}", type=natural_number, default=count, help=f"scenes in the {split} split"
        )
    parser.add_argument(
        "--size", type=picture_size, default="384x216", help="width and height of the pictures"
    )
    parser.add_argument("--seed", type=natural_number, default=0, help="seed of the random scenes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(arguments)
    return exit_code(lambda: print(f"demo data: {write_demo(**vars(options))}"))
