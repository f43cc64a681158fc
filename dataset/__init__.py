"""From files on disk to image and label tensors: data sets, transforms and loaders."""

from typing import TYPE_CHECKING

from dataset.base import DatasetNotFound, SegmentationDataset
from dataset.description import IGNORE_INDEX, DatasetInfo, Split, UnknownClass
from dataset.readers.streethazards import STREETHAZARDS, StreetHazards
from dataset.registry import DATASETS, TRAINING_SETS, describe, open_dataset
from utils.lazy import imported_on_demand

if TYPE_CHECKING:
    from dataset.loaders import (
        EpochSampler,
        EvaluationLoader,
        EvaluationSample,
        evaluation_loader,
        training_loader,
        worker_count,
    )
    from dataset.transforms import Sample
else:
    __getattr__ = imported_on_demand(
        __name__,
        loaders=(
            "EpochSampler",
            "EvaluationLoader",
            "EvaluationSample",
            "evaluation_loader",
            "training_loader",
            "worker_count",
        ),
        transforms=("Sample",),
    )

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "STREETHAZARDS",
    "TRAINING_SETS",
    "DatasetInfo",
    "DatasetNotFound",
    "EpochSampler",
    "EvaluationLoader",
    "EvaluationSample",
    "Sample",
    "SegmentationDataset",
    "Split",
    "StreetHazards",
    "UnknownClass",
    "describe",
    "evaluation_loader",
    "open_dataset",
    "training_loader",
    "worker_count",
]
