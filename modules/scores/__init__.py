"""Class probabilities and anomaly scores from logits at several scales; higher = more anomalous.

`logits_per_scale` is a list of low-resolution (N, C, h_s, w_s) logits, one per scale, and `size`
the (H, W) of the label. Scales are upsampled bilinearly (align_corners=False), then averaged.
"""

from typing import TYPE_CHECKING

from modules.scores.registry import ALL, DROPOUT_PASSES, SCORES, Score, resolve
from utils.lazy import imported_on_demand

if TYPE_CHECKING:
    from modules.scores.fitted import fitted_states, kept_state
    from modules.scores.formulas import cosine_score, msp_score
    from modules.scores.network_output import (
        NetworkOutput,
        mean_over_scales,
        mean_probabilities,
        upsample,
    )
    from modules.scores.scorer import Scorer
else:
    __getattr__ = imported_on_demand(
        __name__,
        fitted=("fitted_states", "kept_state"),
        formulas=("cosine_score", "msp_score"),
        network_output=("NetworkOutput", "mean_over_scales", "mean_probabilities", "upsample"),
        scorer=("Scorer",),
    )

__all__ = [
    "ALL",
    "DROPOUT_PASSES",
    "SCORES",
    "NetworkOutput",
    "Score",
    "Scorer",
    "cosine_score",
    "fitted_states",
    "kept_state",
    "mean_over_scales",
    "mean_probabilities",
    "msp_score",
    "resolve",
    "upsample",
]
