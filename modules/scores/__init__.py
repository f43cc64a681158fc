"""Logits at several scales -> class probabilities and anomaly scores, higher = more anomalous.

Everywhere `logits_per_scale` is a list of low-resolution (N, C, h_s, w_s) logits, one a scale,
and `size` the (H, W) of the label. Scales are upsampled bilinearly (align_corners=False), then
averaged.
"""

from typing import TYPE_CHECKING

from modules.scores.registry import ALL, DROPOUT_PASSES, SCORES, Score, resolve
from utils.lazy import imported_on_demand

if TYPE_CHECKING:
    from modules.scores.evidence import Evidence, mean_over_scales, mean_probabilities, upsample
    from modules.scores.formulas import cosine_score, msp_score
    from modules.scores.scorer import Scorer
    from modules.scores.statistics import MaxLogitStatistics, max_logit_sums, statistics_of
else:
    __getattr__ = imported_on_demand(
        __name__,
        evidence=("Evidence", "mean_over_scales", "mean_probabilities", "upsample"),
        formulas=("cosine_score", "msp_score"),
        scorer=("Scorer",),
        statistics=("MaxLogitStatistics", "max_logit_sums", "statistics_of"),
    )

__all__ = [
    "ALL",
    "DROPOUT_PASSES",
    "SCORES",
    "Evidence",
    "MaxLogitStatistics",
    "Score",
    "Scorer",
    "cosine_score",
    "max_logit_sums",
    "mean_over_scales",
    "mean_probabilities",
    "msp_score",
    "resolve",
    "statistics_of",
    "upsample",
]
