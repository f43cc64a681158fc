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

from pathlib import Path

from dataset.base import SampleFiles, SegmentationDataset, find_first
from dataset.description import IGNORE_INDEX, DatasetInfo, Split
from dataset.readers.odgt import read_list

FOLDER = "bdd100k"
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
