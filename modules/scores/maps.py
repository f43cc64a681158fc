"""How each score of `registry` is computed from the evidence of one image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from modules.scores import dense_crf, formulas
from modules.scores.evidence import Evidence, mean_over_scales


@dataclass(frozen=True)
class ScoreMap:
    """The way from an image to the map of a score, in two steps.

    Attributes:
        parts_of: evidence of one image -> what its map is computed from: (1, h_s, w_s), one a
            scale. Where the map needs more than that, the map itself: (1, H, W).
        from_parts: parts and the size (H, W) -> (1, H, W), higher = more anomalous.
    """

    parts_of: Callable[[Evidence], Sequence[Tensor]]
    from_parts: Callable[[Sequence[Tensor], Sequence[int]], Tensor] = mean_over_scales


def _of_logits(formula: Callable[[Tensor], Tensor]) -> ScoreMap:
    """A score of each scale's logits, upsampled, mean over scales."""
    return ScoreMap(lambda evidence: [formula(logits) for logits in evidence.logits])


def _whole(parts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The map itself."""
    return parts[0]


def _distance(parts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    return 1 - mean_over_scales(parts, size)


def _unconfidence(evidence: Evidence) -> Sequence[Tensor]:
    return [1 - evidence.confidence]


def _standardized_max_logit(evidence: Evidence) -> Sequence[Tensor]:
    statistics = evidence.statistics
    assert statistics is not None
    return [formulas.standardized_max_logit(logits, statistics) for logits in evidence.logits]


def _mutual_information(evidence: Evidence) -> Sequence[Tensor]:
    return [formulas.mutual_information(samples) for samples in evidence.samples]


def _smoothed_msp(evidence: Evidence) -> Sequence[Tensor]:
    assert evidence.picture is not None
    smoothed = dense_crf.smoothed_probabilities(evidence.probabilities, evidence.picture)
    return [formulas.msp_score(smoothed)]


MAPS = {
    "prototype": ScoreMap(lambda evidence: [*map(formulas.nearness, evidence.logits)], _distance),
    "msp": ScoreMap(_unconfidence, _whole),
    "maxlogit": _of_logits(formulas.max_logit),
    "entropy": _of_logits(formulas.entropy),
    "energy": _of_logits(formulas.energy),
    "standardized_maxlogit": ScoreMap(_standardized_max_logit),
    "prototype_margin": _of_logits(formulas.prototype_margin),
    "mc_dropout": ScoreMap(_mutual_information),
    "msp_crf": ScoreMap(_smoothed_msp, _whole),
}
