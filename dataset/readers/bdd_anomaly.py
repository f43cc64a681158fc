"""BDD-Anomaly (Hendrycks et al., ICML 2022): BDD100K without three of its classes.

Protocol, according to its publishers' code (github.com/hendrycks/anomaly-seg,
create_bdd_dataset.py and defaults.py): images of BDD100K's train and val splits that contain a
train (train id 16), a motorcycle (17) or a bicycle (18) form the test split, and the others keep
their split: 6280, 910 and 810 of its 8000 images. 17 classes are trained (num_class): the 16 that
remain, and "other" for pixels that BDD100K leaves unlabelled (255), which are inliers in the test.
`bdd_anomaly_16` ignores them in training and test.

The splits are read from `train.odgt`, `validation.odgt` and `anom.odgt` (or `test.odgt`), in the
format of StreetHazards' lists, with paths relative to their folder.
`python -m dataset.bdd_anomaly --root ROOT` writes them. It accepts images and label maps in either
of these layouts of BDD100K (from its documentation, and from 8000 label maps: mode L, 1280x720,
values 0..18 and 255):

    bdd100k/images/10k/{train,val}/NAME.jpg     bdd100k/labels/sem_seg/masks/{train,val}/NAME.png
    bdd100k/seg/images/{train,val}/NAME.jpg     bdd100k/seg/labels/{train,val}/NAME_train_id.png

The publishers' own label maps in `seg/train_labels` contain train id + 2: 1 is other, and 18, 19
and 20 are anomalies. They are recognised by that folder, or by having neither 0 nor 255, and
refused.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image

from dataset.base import SampleFiles, SegmentationDataset, evenly, find_first
from dataset.description import IGNORE_INDEX, DatasetInfo, Split
from dataset.readers.odgt import is_in_place, read_list, refuse_misplaced
from utils.reading import Unreadable

FOLDER = "bdd100k"
SHIFTED_LABELS = "train_labels"
# The publishers' name of the test list comes first: that one is written.
LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("train.odgt",),
    "validation": ("validation.odgt",),
    "test": ("anom.odgt", "test.odgt"),
}
# Label maps inspected per split, and how many readable ones are enough for a verdict.
LOOKED_INTO, ENOUGH = 16, 8

BDD_ANOMALY_16 = DatasetInfo(
    name="bdd_anomaly_16",
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
    label_meaning="train ids of BDD100K: 0..15 classes, 16 train, 17 motorcycle and 18 bicycle "
    "anomalies, 255 other; the publishers' seg/train_labels, train id + 2, are not read",
    splits=("train", "validation", "test"),
    remedy="restore it from BDD100K's archive",
)
BDD_ANOMALY = replace(
    BDD_ANOMALY_16,
    name="bdd_anomaly",
    class_colours={**BDD_ANOMALY_16.class_colours, "other": (81, 0, 81)},
    anomaly_index=17,
    index_of={index: index for index in range(16)} | {255: 16, 16: 17, 17: 18, 18: 19},
)


class BddAnomaly(SegmentationDataset):
    """BDD-Anomaly, read from its lists in the root or in `bdd100k/` below it."""

    published_info = BDD_ANOMALY

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        remedy = f"run 'python -m dataset.bdd_anomaly --root {root}'"
        path = find_first(root, [FOLDER], LISTS[split], remedy)
        names = read_list(path)
        if not is_in_place(path, names):
            refuse_misplaced(path, names)
        refuse_shifted(path, path.parent, [label for _, label in names])
        return SampleFiles(path, path.parent, names)


class BddAnomaly16(BddAnomaly):
    """The same lists with 16 classes; unlabelled pixels are ignored, in the test too."""

    published_info = BDD_ANOMALY_16


def refuse_shifted(source: Path, folder: Path, labels: Sequence[str]) -> None:
    """Raise if label maps contain the publishers' train id + 2 instead of BDD100K's train ids.

    Args:
        source: the list or folder that names them.
        labels: their paths, relative to `folder`; some of them are inspected.

    Raises:
        Unreadable: they are in `train_labels/`, or have no 0, no 255 and nothing above 20.
    """
    shown = next((name for name in labels if SHIFTED_LABELS in PurePosixPath(name).parts), None)
    if shown is None and _look_shifted([folder / name for name in evenly(labels, LOOKED_INTO)]):
        shown = labels[0]
    if shown is not None:
        raise Unreadable(
            f"{source}: {shown} and others hold train id + 2 (1 other; 18, 19, 20 anomalies), as "
            f"BDD-Anomaly's publishers write them into seg/{SHIFTED_LABELS}; put BDD100K's own "
            f"label maps into {folder / 'seg/labels'} and run 'python -m dataset.bdd_anomaly"
            f" --root {folder}'"
        )


def _look_shifted(paths: Sequence[Path]) -> bool:
    readable = 0
    values: set[int] = set()
    for path in paths:
        # Unreadable files are reported when they are read as samples.
        if not path.is_file():  # opening a named pipe would block
            continue
        with suppress(Exception), Image.open(path, formats=["PNG"]) as label:
            if label.mode == "L":
                values |= {value for value, count in enumerate(label.histogram()) if count}
                readable += 1
    if not values or values & {0, 255} or max(values) > 20:
        return False
    # A few maps may have neither road nor unlabelled pixels, but train ids never reach 19.
    return max(values) >= 19 or readable >= ENOUGH
