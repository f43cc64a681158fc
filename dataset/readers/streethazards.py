"""StreetHazards: its classes, colours and file layout."""

from pathlib import Path

from dataset.base import SampleFiles, SegmentationDataset, find_all
from dataset.description import IGNORE_INDEX, DatasetInfo, Split
from dataset.readers.odgt import is_in_place, read_list, refuse_misplaced

FOLDERS = ("StreetHazards",)
LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("train/train.odgt",),
    "validation": ("validation/validation.odgt", "train/validation.odgt"),
    "test": ("test/test.odgt",),
}

STREETHAZARDS = DatasetInfo(
    name="streethazards",
    class_colours={
        "unlabeled": (0, 0, 0),  # includes the sky
        "building": (70, 70, 70),
        "fence": (190, 153, 153),
        "other": (250, 170, 160),
        "pedestrian": (220, 20, 60),
        "pole": (153, 153, 153),
        "road line": (157, 234, 50),
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "vegetation": (107, 142, 35),
        "car": (0, 0, 142),
        "wall": (102, 102, 156),
        "traffic sign": (220, 220, 0),
    },
    anomaly_index=13,
    index_of={0: IGNORE_INDEX} | {index + 1: index for index in range(255)},
    label_meaning="class index + 1",
    splits=("train", "validation", "test"),
    remedy="run 'python -m dataset.prepare'",
)


class StreetHazards(SegmentationDataset):
    """StreetHazards (Hendrycks et al., ICML 2022), read from its odgt lists.

    `train/` and `test/` are in the root or in `StreetHazards/` below it. The layout is that of the
    archives, or that of the README of the published implementation of PAnS, which has
    `validation/` beside them. Of two lists, the one beside its files is read. Labels are class
    indices 0..12, anomalies 13..254 (test split only) and 255 for ignored pixels; the files
    contain class index + 1, and 0 for ignored pixels.
    """

    published_info = STREETHAZARDS

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        remedy = f"run 'python -m dataset.prepare --root {root}'"
        found = []
        for path in find_all(root, FOLDERS, LISTS[split], remedy):
            found.append((path, read_list(path)))
            if is_in_place(*found[-1]):
                break
        else:
            refuse_misplaced(*found[0])
        path, names = found[-1]
        return SampleFiles(path, path.parent, names)
