"""The network and its anomaly scores: tensors in, tensors out."""

from typing import TYPE_CHECKING

from utils.lazy import imported_on_demand

if TYPE_CHECKING:
    from modules.segmentation import SegmentationModel, TrainingLogits, build_model
else:
    __getattr__ = imported_on_demand(
        __name__, segmentation=("SegmentationModel", "TrainingLogits", "build_model")
    )

__all__ = ["SegmentationModel", "TrainingLogits", "build_model"]
