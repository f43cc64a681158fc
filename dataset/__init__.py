"""Files on disk to image and label tensors: StreetHazards, its transforms and its loaders."""

from dataset.loaders import (
    EpochSampler,
    EvaluationSample,
    evaluation_loader,
    training_loader,
    worker_count,
)
from dataset.streethazards import (
    ANOMALY_INDEX,
    CLASS_NAMES,
    IGNORE_INDEX,
    NUM_CLASSES,
    PALETTE,
    BadSample,
    Split,
    StreetHazards,
    StreetHazardsNotFound,
    class_indices,
)
from dataset.transforms import Sample

__all__ = [
    "ANOMALY_INDEX",
    "CLASS_NAMES",
    "IGNORE_INDEX",
    "NUM_CLASSES",
    "PALETTE",
    "BadSample",
    "EpochSampler",
    "EvaluationSample",
    "Sample",
    "Split",
    "StreetHazards",
    "StreetHazardsNotFound",
    "class_indices",
    "evaluation_loader",
    "training_loader",
    "worker_count",
]
