"""Write a small procedural data set in the layout of StreetHazards: `python -m dataset.demo`.

The pictures come from `dataset.scene`; scene i of a split is a function of (seed, split, i) alone.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.scene import draw_scene
from errors import PansError

FOLDER = "StreetHazards"
STAMP = "demo.json"
# Part of the stamp: to be raised when the drawing changes, so that older pictures are drawn anew
DRAWING = 2
# Archive folder, folder of the pictures and towns of each split, as in the published archives
LAYOUT = {
    "train": ("train", "training", ("t1", "t2", "t3")),
    "validation": ("train", "validation", ("t4",)),
    "test": ("test", "test", ("t5", "t6")),
}


class NotDemoData(PansError):
    """The target folder holds something that this program has not written."""


@dataclass(frozen=True)
class Scene:
    """One picture to draw; `image` and `label` are relative to `folder`, where the odgt lies."""

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
        Image.fromarray(pixels).save(path, compress_level=3)


def write_odgt(path: Path, scenes: list[Scene]) -> None:
    """One line holding one JSON array, as in the published archives."""
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
    path.write_text(json.dumps(records) + "\n")


def draw_all(scenes: list[Scene]) -> Iterator[None]:
    workers = min(len(os.sched_getaffinity(0)), len(scenes) // 8)
    if workers < 2:
        yield from map(write_scene, scenes)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(write_scene, scenes, chunksize=4)


def read_stamp(folder: Path) -> dict[str, object] | None:
    """What an earlier run wrote there, None where nothing lies yet.

    Raises:
        NotDemoData: the folder holds files but no stamp.
    """
    stamp = folder / STAMP
    if stamp.is_file():
        return dict(json.loads(stamp.read_text()))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise NotDemoData(
            f"{folder} holds files but no {STAMP}, so it is not demo data; "
            "choose another folder with --root"
        )
    return None


def write_demo(
    root: Path | str,
    *,
    train: int = 240,
    validation: int = 16,
    test: int = 32,
    size: tuple[int, int] = (384, 216),
    seed: int = 0,
) -> Path:
    """Write the data set under `root`/StreetHazards unless it lies there already.

    Args:
        root: what `run.py --data_root` shall be given.
        train, validation, test: number of scenes in each split; only `test` has anomalies.
        size: width and height in pixels.
        seed: the same seed gives the same pictures.

    Returns:
        The folder that holds train/ and test/.

    Raises:
        NotDemoData: the folder holds something else.
    """
    folder = Path(root) / FOLDER
    counts = {"train": train, "validation": validation, "test": test}
    wanted = {"drawing": DRAWING, "seed": seed, "size": list(size), **counts}
    found = read_stamp(folder)
    if found == {**wanted, "complete": True}:
        return folder
    for archive in ("train", "test"):
        shutil.rmtree(folder / archive, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAMP).write_text(json.dumps({**wanted, "complete": False}))
    splits = {split: scenes_of(folder, split, count, size, seed) for split, count in counts.items()}
    scenes = [scene for split in splits.values() for scene in split]
    for _ in tqdm(draw_all(scenes), total=len(scenes), desc="drawing", unit="scene"):
        pass
    for split, chosen in splits.items():
        write_odgt(folder / LAYOUT[split][0] / f"{split}.odgt", chosen)
    (folder / STAMP).write_text(json.dumps({**wanted, "complete": True}))
    return folder


def parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dataset.demo", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data/demo"))
    parser.add_argument("--train", type=int, default=240)
    parser.add_argument("--validation", type=int, default=16)
    parser.add_argument("--test", type=int, default=32)
    parser.add_argument("--size", type=parse_size, default=(384, 216))
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    try:
        folder = write_demo(options.pop("root"), **options)
    except PansError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"demo data: {folder}")


if __name__ == "__main__":
    main()
