"""Metrics of anomaly segmentation: pure functions on arrays and tensors, and small accumulators
over a data set.
"""

from metrics.anomaly import (
    AnomalyMetrics,
    InvalidScores,
    image_anomaly_metrics,
    populations,
)
from metrics.components import component_scores, connected_components, match_components
from metrics.curve import PooledMetrics, ThresholdCurve
from metrics.evaluation import AnomalyEvaluation
from metrics.pooled import PooledCounts, ScoreHistogram
from metrics.segmentation import (
    ConfusionMatrix,
    open_mean_iou,
    open_set_counts,
    segmentation_scores,
)

__all__ = [
    "AnomalyEvaluation",
    "AnomalyMetrics",
    "ConfusionMatrix",
    "InvalidScores",
    "PooledCounts",
    "PooledMetrics",
    "ScoreHistogram",
    "ThresholdCurve",
    "component_scores",
    "connected_components",
    "image_anomaly_metrics",
    "match_components",
    "open_mean_iou",
    "open_set_counts",
    "populations",
    "segmentation_scores",
]
