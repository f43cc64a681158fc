"""Standardized max logits: -(max_c logit_c - mean_k) / deviation_k, k the class of the maximum.

mean_k and deviation_k are those of the max logits of the training pixels that were predicted as k.
Jung et al., "Standardized Max Logits: A Simple yet Effective Approach for Identifying Unexpected
Road Obstacles in Urban-Scene Segmentation", ICCV 2021, without its boundary suppression and
smoothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.scores.network_output import NetworkOutput, State
from modules.scores.score_map import Fit, ScoreMap, exact, rounded

SMALLEST_DEVIATION = 1e-6


def standardized_max_logit(logits: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(N, C, h, w) logits, (C,) means and deviations -> (N, h, w), unbounded.

    >>> import torch
    >>> logits = torch.tensor([4.0, 3.0]).view(1, 2, 1, 1)
    >>> standardized_max_logit(logits, torch.tensor([5.0, 1.0]), torch.tensor([2.0, 0.5]))
    tensor([[[0.5000]]])
    """
    largest, predicted = logits.max(dim=1)
    mean, deviation = (
        values.to(logits.device, logits.dtype)[predicted] for values in (mean, deviation)
    )
    return (mean - largest) / deviation


def max_logit_sums(logits_per_scale: Sequence[Tensor]) -> Tensor:
    """Count, sum and sum of squares of the max logits of each predicted class.

    Args:
        logits_per_scale: (N, C, h_s, w_s), one per scale; all pixels have equal weight.

    Returns:
        (3, C) float64 on the CPU, additive over images.
    """
    sums = torch.zeros(3, logits_per_scale[0].shape[1], dtype=torch.float64)
    maxima = [logits.max(dim=1) for logits in logits_per_scale]
    largest = torch.cat([one.values.flatten() for one in maxima]).cpu().double()
    predicted = torch.cat([one.indices.flatten() for one in maxima]).cpu()
    for row, values in zip(sums, (torch.ones_like(largest), largest, largest**2), strict=True):
        row.index_add_(0, predicted, values)
    return sums


def statistics_of(sums: Tensor) -> dict[str, Tensor]:
    """(3, C) sums of `max_logit_sums` -> (C,) "mean" and (biased) "deviation" of every class.

    A class that was never predicted, or always with the same logit, gets those of all pixels.
    """
    overall_mean, overall_deviation = _moments(sums.sum(dim=1, keepdim=True))
    mean, deviation = _moments(sums)
    known = deviation > SMALLEST_DEVIATION  # False for NaN, where there are no pixels
    return {
        "mean": torch.where(known, mean, overall_mean),
        "deviation": torch.where(known, deviation, overall_deviation.clamp_min(SMALLEST_DEVIATION)),
    }


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0).sqrt()


def observe(output: NetworkOutput, label: Tensor, seed: int) -> State:
    return {"sums": exact(max_logit_sums(output.logits))}


def finish(state: State) -> State:
    return statistics_of(rounded(state["sums"]))


def parts_of(output: NetworkOutput) -> Sequence[Tensor]:
    state = output.states["standardized_maxlogit"]
    return [standardized_max_logit(logits, **state) for logits in output.logits]


MAP = ScoreMap(parts_of, fit=Fit(observe, finish))
