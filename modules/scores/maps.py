"""Computes the scores of `registry` that are not fitted from the network's output."""

from collections.abc import Callable, Sequence

from torch import Tensor

from modules.scores import dense_crf, formulas
from modules.scores.network_output import NetworkOutput, mean_over_scales
from modules.scores.score_map import ScoreMap


def _of_logits(formula: Callable[[Tensor], Tensor]) -> ScoreMap:
    """A score of each scale's logits, upsampled, mean over scales."""
    return ScoreMap(lambda output: [formula(logits) for logits in output.logits])


def _whole(parts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The map itself."""
    return parts[0]


def _distance(parts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    return 1 - mean_over_scales(parts, size)


def _unconfidence(output: NetworkOutput) -> Sequence[Tensor]:
    return [1 - output.confidence]


def _mutual_information(output: NetworkOutput) -> Sequence[Tensor]:
    return [formulas.mutual_information(samples) for samples in output.samples]


def _smoothed_msp(output: NetworkOutput) -> Sequence[Tensor]:
    assert output.picture is not None
    smoothed = dense_crf.smoothed_probabilities(output.probabilities, output.picture)
    return [formulas.msp_score(smoothed)]


MAPS = {
    "prototype": ScoreMap(lambda output: [*map(formulas.nearness, output.logits)], _distance),
    "msp": ScoreMap(_unconfidence, _whole),
    "maxlogit": _of_logits(formulas.max_logit),
    "entropy": _of_logits(formulas.entropy),
    "energy": _of_logits(formulas.energy),
    "prototype_margin": _of_logits(formulas.prototype_margin),
    "mc_dropout": ScoreMap(_mutual_information),
    "msp_crf": ScoreMap(_smoothed_msp, _whole),
}
