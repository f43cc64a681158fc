"""The scores' maps, a function a score of `registry`: evidence of an image -> (1, H, W)."""

from collections.abc import Callable

from torch import Tensor

from modules.scores import dense_crf, formulas
from modules.scores.evidence import Evidence, mean_over_scales


def _of_logits(formula: Callable[[Tensor], Tensor]) -> Callable[[Evidence], Tensor]:
    """A score of each scale's logits, upsampled, mean over scales."""

    def map_of(evidence: Evidence) -> Tensor:
        return mean_over_scales([formula(logits) for logits in evidence.logits], evidence.size)

    return map_of


maxlogit = _of_logits(formulas.max_logit)
entropy = _of_logits(formulas.entropy)
energy = _of_logits(formulas.energy)
prototype_margin = _of_logits(formulas.prototype_margin)


def prototype(evidence: Evidence) -> Tensor:
    return formulas.cosine_score(evidence.logits, evidence.size)


def msp(evidence: Evidence) -> Tensor:
    return 1 - evidence.confidence


def standardized_maxlogit(evidence: Evidence) -> Tensor:
    statistics = evidence.statistics
    assert statistics is not None
    maps = [formulas.standardized_max_logit(logits, statistics) for logits in evidence.logits]
    return mean_over_scales(maps, evidence.size)


def mc_dropout(evidence: Evidence) -> Tensor:
    maps = [formulas.mutual_information(samples) for samples in evidence.samples]
    return mean_over_scales(maps, evidence.size)


def msp_crf(evidence: Evidence) -> Tensor:
    assert evidence.picture is not None
    return formulas.msp_score(
        dense_crf.smoothed_probabilities(evidence.probabilities, evidence.picture)
    )
