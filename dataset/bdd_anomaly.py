"""`python -m dataset.bdd_anomaly`: BDD-Anomaly's lists, derived from the labels of BDD100K.

The protocol is described in `dataset.readers.bdd_anomaly`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dataset.base import DatasetNotFound, images_in
from dataset.description import IGNORE_INDEX, Split
from dataset.pictures import read_label
from dataset.readers.bdd_anomaly import (
    BDD_ANOMALY_16,
    FOLDER,
    LISTS,
    SHIFTED_LABELS,
    refuse_shifted,
)
from utils.errors import exit_code
from utils.files import write_text

IMAGE_FOLDERS = ("seg/images", "images/10k")
# Folder of the label maps, and the suffix that their names add to the images' names.
LABEL_FOLDERS = (("seg/labels", "_train_id"), ("labels/sem_seg/masks", ""))
SPLIT_FOLDERS: dict[Split, str] = {"train": "train", "validation": "val"}


def find_pairs(root: Path) -> tuple[Path, dict[Split, list[tuple[str, str]]]]:
    """Find BDD100K's folder and, for train and validation, the (image, label) names in it.

    Raises:
        DatasetNotFound: `root` holds no known layout of BDD100K.
    """
    for folder in (root / FOLDER, root):
        for images, (labels, ending) in product(IMAGE_FOLDERS, LABEL_FOLDERS):
            pairs = {
                split: [
                    (f"{images}/{name}/{image}", f"{labels}/{name}/{stem}{ending}.png")
                    for stem, image in images_in(folder / images / name).items()
                ]
                for split, name in SPLIT_FOLDERS.items()
            }
            if all(pairs.values()) and any((folder / name).exists() for _, name in pairs["train"]):
                return folder, pairs
    for folder in (root / FOLDER, root):
        if (folder / "seg" / SHIFTED_LABELS).is_dir():
            refuse_shifted(folder, folder, [f"seg/{SHIFTED_LABELS}"])
    raise DatasetNotFound(
        f"{root / FOLDER} holds no images and labels of BDD100K in a known layout, such as "
        "images/10k/{train,val}/*.jpg beside labels/sem_seg/masks/{train,val}/*.png or "
        "seg/labels/{train,val}/*_train_id.png; unpack its semantic segmentation archive there, or "
        "pass its folder as --root"
    )


def write_lists(root: Path) -> dict[Split, int]:
    """Split the images by their labels and write the three lists.

    Returns:
        The number of images in each split.

    Raises:
        DatasetNotFound: see `find_pairs`.
        Unreadable: a label map is missing or not as published.
    """
    folder, pairs = find_pairs(root)
    splits: dict[Split, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    everything = [(split, pair) for split, names in pairs.items() for pair in names]
    refuse_shifted(folder, folder, [label for _, (_, label) in everything])
    for split, (image, label) in tqdm(everything, desc="reading labels", unit="image"):
        indices = read_label(folder / label, BDD_ANOMALY_16, with_anomalies=True)
        splits["test" if holds_anomaly(indices) else split].append(
            {
                "dbName": "BDD100k",
                "width": indices.width,
                "height": indices.height,
                "fpath_img": image,
                "fpath_segm": label,
            }
        )
    for split, entries in splits.items():
        write_text(folder / LISTS[split][0], json.dumps(entries) + "\n")
    return {split: len(entries) for split, entries in splits.items()}


def holds_anomaly(indices: Image.Image) -> bool:
    """Whether a label map of `bdd_anomaly_16` contains a train, a motorcycle or a bicycle."""
    return any(indices.histogram()[BDD_ANOMALY_16.anomaly_index : IGNORE_INDEX])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.bdd_anomaly",
        description="Derive BDD-Anomaly's lists of images from the label maps of BDD100K.",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data"), help="folder of bdd100k/ (default: data)"
    )
    root = parser.parse_args(arguments).root
    return exit_code(lambda: _write_and_count(root))


def _write_and_count(root: Path) -> None:
    for split, images in write_lists(root).items():
        print(f"{split:<12}{images:>6} images")


if __name__ == "__main__":
    sys.exit(main())
