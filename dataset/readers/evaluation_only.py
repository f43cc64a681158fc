"""The description of data sets whose labels only distinguish normal from anomalous pixels."""

from collections.abc import Mapping

from dataset.description import UNKNOWN_INDEX, DatasetInfo
from dataset.readers.streethazards import STREETHAZARDS


def evaluation_only(name: str, index_of: Mapping[int, int], label_meaning: str) -> DatasetInfo:
    """Describe a test split for networks that were trained elsewhere.

    The classes are StreetHazards', for the names and colours of predictions;
    `dataset.registry.describe` replaces them by those of another training set.
    """
    return DatasetInfo(
        name=name,
        class_colours=STREETHAZARDS.class_colours,
        anomaly_index=UNKNOWN_INDEX,
        index_of=index_of,
        label_meaning=label_meaning,
        splits=("test",),
        remedy=f"run 'python -m dataset.prepare {name}' to fetch it again",
    )
