"""The network and its anomaly scores: tensors in, tensors out."""

from modules.segmentation import SegmentationModel, TrainingLogits, build_model

__all__ = ["SegmentationModel", "TrainingLogits", "build_model"]
