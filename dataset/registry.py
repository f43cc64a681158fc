"""All data sets by their names for --dataset."""

from dataclasses import replace
from pathlib import Path

from dataset.base import DatasetNotFound, SegmentationDataset
from dataset.description import DatasetInfo, Split
from dataset.readers.bdd_anomaly import BddAnomaly, BddAnomaly16
from dataset.readers.fishyscapes import FishyscapesLostAndFound
from dataset.readers.folder import Folder
from dataset.readers.road_anomaly import RoadAnomaly
from dataset.readers.segment_me_if_you_can import RoadAnomaly21, RoadObstacle21
from dataset.readers.streethazards import StreetHazards
from utils.errors import PansError

DATASETS: dict[str, type[SegmentationDataset]] = {
    "streethazards": StreetHazards,
    "bdd_anomaly": BddAnomaly,
    "bdd_anomaly_16": BddAnomaly16,
    "fishyscapes_lostandfound": FishyscapesLostAndFound,
    "road_anomaly": RoadAnomaly,
    "road_anomaly_21": RoadAnomaly21,
    "road_obstacle_21": RoadObstacle21,
    "folder": Folder,
}
TRAINING_SETS = ("streethazards", "bdd_anomaly", "bdd_anomaly_16")
"""The data sets that --trained_on accepts."""


def describe(name: str, root: str | Path, trained_on: str | None = None) -> DatasetInfo:
    """The description of a data set.

    Args:
        trained_on: for evaluation-only sets, the data set that defines the classes; StreetHazards
            if None.

    Raises:
        DatasetNotFound, Unreadable: the classes of `folder` cannot be read from `root`.
    """
    try:
        info = DATASETS[name].describe(Path(root))
    except DatasetNotFound as error:
        there = next((other for other in DATASETS if other != name and _holds(root, other)), None)
        if there is None:
            raise
        raise DatasetNotFound(f"{root} holds {there}: type --dataset {there}") from error
    if trained_on is None or info.has_class_labels:
        return info
    return replace(info, class_colours=DATASETS[trained_on].published_info.class_colours)


def _holds(root: str | Path, name: str) -> bool:
    """Whether a data set's test split lies below `root`."""
    try:
        return len(open_dataset(name, root, "test")) > 0
    except PansError:
        return False


def open_dataset(name: str, root: str | Path, split: Split) -> SegmentationDataset:
    """Open a split of a data set.

    Raises:
        PansError, DatasetNotFound, Unreadable: see `SegmentationDataset`.
    """
    return DATASETS[name](root, split)
