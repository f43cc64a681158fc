"""Files on disk to image and label tensors: StreetHazards, its transforms and its loaders."""

from dataset.loaders import TestSample, evaluation_loader, training_loader, worker_count
from dataset.streethazards import (
    ANOMALY_INDEX,
    CLASS_NAMES,
    IGNORE_INDEX,
    NUM_CLASSES,
    PALETTE,
    BadSample,
    StreetHazards,
    StreetHazardsNotFound,
)
from dataset.transforms import Sample

__all__ = [
    "ANOMALY_INDEX",
    "CLASS_NAMES",
    "IGNORE_INDEX",
    "NUM_CLASSES",
    "PALETTE",
    "BadSample",
    "Sample",
    "StreetHazards",
    "StreetHazardsNotFound",
    "TestSample",
    "evaluation_loader",
    "training_loader",
    "worker_count",
]
