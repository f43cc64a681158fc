"""BDD-Anomaly (Hendrycks et al., ICML 2022): BDD100K without three of its classes.

The label maps hold BDD100K's train ids, 0..18 and 255 to ignore. Classes 16 train, 17 motorcycle
and 18 bicycle are the anomalies: images with any of them make up the test split, the others stay
in the train and validation split that they are in.

The splits are read from `train.odgt`, `validation.odgt` and `test.odgt`, in the form of
StreetHazards' lists, whose paths are relative to their folder. Which images the published lists
name, and whether the published label maps are shifted by one, could not be verified here, and so
`python -m dataset.bdd_anomaly --root ROOT` derives the lists from the labels themselves, by the
rule above. It finds images and label maps in BDD100K's layouts:

    bdd100k/seg/images/{train,val}/NAME.jpg     bdd100k/seg/labels/{train,val}/NAME_train_id.png
                                                (or seg/train_labels/)
    bdd100k/images/10k/{train,val}/NAME.jpg     bdd100k/labels/sem_seg/masks/{train,val}/NAME.png
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dataset.base import DatasetNotFound, SampleFiles, SegmentationDataset, find_first
from dataset.description import IGNORE_INDEX, DatasetInfo, Split
from dataset.odgt import read_list
from dataset.pictures import read_label
from errors import exit_code

FOLDER = "bdd100k"
# Folder of the images, folder of the label maps, what the labels' names add to the images'.
LAYOUTS = (
    ("seg/images", "seg/labels", "_train_id"),
    ("seg/images", "seg/train_labels", "_train_id"),
    ("images/10k", "labels/sem_seg/masks", ""),
)
SPLIT_FOLDERS: dict[Split, str] = {"train": "train", "validation": "val"}

BDD_ANOMALY = DatasetInfo(
    name="bdd_anomaly",
    class_colours={
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "building": (70, 70, 70),
        "wall": (102, 102, 156),
        "fence": (190, 153, 153),
        "pole": (153, 153, 153),
        "traffic light": (250, 170, 30),
        "traffic sign": (220, 220, 0),
        "vegetation": (107, 142, 35),
        "terrain": (152, 251, 152),
        "sky": (70, 130, 180),
        "person": (220, 20, 60),
        "rider": (255, 0, 0),
        "car": (0, 0, 142),
        "truck": (0, 0, 70),
        "bus": (0, 60, 100),
    },
    anomaly_index=16,
    index_of={index: index for index in range(19)} | {255: IGNORE_INDEX},
    label_meaning="train ids of BDD100K; 16 train, 17 motorcycle, 18 bicycle are the anomalies",
    splits=("train", "validation", "test"),
    remedy="restore it from BDD100K's archive",
)


class BddAnomaly(SegmentationDataset):
    """BDD-Anomaly, read from its lists; the root is their folder, or holds it as `bdd100k/`."""

    published_info = BDD_ANOMALY

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        remedy = f"run 'python -m dataset.bdd_anomaly --root {root}'"
        path = find_first(root, FOLDER, [f"{split}.odgt"], remedy)
        return SampleFiles(path, path.parent, read_list(path))


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
