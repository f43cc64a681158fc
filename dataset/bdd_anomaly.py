"""`python -m dataset.bdd_anomaly`: BDD-Anomaly's lists, derived from the labels of BDD100K.

What they hold, and why, stands in `dataset.readers.bdd_anomaly`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dataset.base import DatasetNotFound
from dataset.description import IGNORE_INDEX, Split
from dataset.pictures import read_label
from dataset.readers.bdd_anomaly import BDD_ANOMALY, FOLDER
from utils.errors import exit_code

# Folder of the images, folder of the label maps, what the labels' names add to the images'.
LAYOUTS = (
    ("seg/images", "seg/labels", "_train_id"),
    ("seg/images", "seg/train_labels", "_train_id"),
    ("images/10k", "labels/sem_seg/masks", ""),
)
SPLIT_FOLDERS: dict[Split, str] = {"train": "train", "validation": "val"}


def find_pairs(root: Path) -> tuple[Path, dict[Split, list[tuple[str, str]]]]:
    """The folder of BDD100K and, for train and validation, the (image, label) names in it.

    Raises:
        DatasetNotFound: no layout of BDD100K is under `root`.
    """
    for folder in (root / FOLDER, root):
        for images, labels, ending in LAYOUTS:
            pairs = {
                split: [
                    (f"{images}/{name}/{path.name}", f"{labels}/{name}/{path.stem}{ending}.png")
                    for path in sorted((folder / images / name).glob("*.jpg"))
                ]
                for split, name in SPLIT_FOLDERS.items()
            }
            if all(pairs.values()) and (folder / labels).is_dir():
                return folder, pairs
    raise DatasetNotFound(
        f"{root / FOLDER} holds no images and labels of BDD100K in a known layout, such as "
        f"{LAYOUTS[0][0]}/train/*.jpg and val/ with {LAYOUTS[0][1]}/ beside it; unpack its "
        "semantic segmentation archive there, or name its folder with --root"
    )


def write_lists(root: Path) -> dict[Split, int]:
    """Share out the images by what their label maps hold, and write the three lists.

    Returns:
        The number of images of each split.

    Raises:
        DatasetNotFound: as `find_pairs`.
        BadSample: a label map is missing or not as published.
    """
    folder, pairs = find_pairs(root)
    splits: dict[Split, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    everything = [(split, pair) for split, names in pairs.items() for pair in names]
    for split, (image, label) in tqdm(everything, desc="reading labels", unit="image"):
        splits["test" if holds_anomaly(folder / label) else split].append((image, label))
    for split, names in splits.items():
        entries = [
            {"dbName": "BDD100K", "fpath_img": image, "fpath_segm": label} for image, label in names
        ]
        (folder / f"{split}.odgt").write_text(json.dumps(entries) + "\n")
    return {split: len(names) for split, names in splits.items()}


def holds_anomaly(path: Path) -> bool:
    """Whether a label map holds a train, a motorcycle or a bicycle."""
    counts = read_label(path, BDD_ANOMALY, with_anomalies=True).histogram()
    return any(counts[BDD_ANOMALY.anomaly_index : IGNORE_INDEX])


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
