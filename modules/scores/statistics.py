"""How large the largest logit is, class by class, on the training images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class MaxLogitStatistics:
    """Mean and standard deviation of the max logits of the pixels that are predicted as a class.

    Attributes:
        mean, deviation: (C,) float64.
    """

    mean: Tensor
    deviation: Tensor

    def on(self, device: torch.device) -> "MaxLogitStatistics":
        """The same where the logits are, so that no image waits for a copy."""
        return MaxLogitStatistics(self.mean.to(device), self.deviation.to(device))


def max_logit_sums(logits_per_scale: Sequence[Tensor]) -> Tensor:
    """Count, sum and sum of squares of the max logits of each predicted class.

    Args:
        logits_per_scale: (N, C, h_s, w_s), one a scale; their pixels count alike.

    Returns:
        (3, C) float64; sums of images add up.
    """
    sums = torch.zeros(3, logits_per_scale[0].shape[1], dtype=torch.float64)
    maxima = [logits.max(dim=1) for logits in logits_per_scale]
    largest = torch.cat([one.values.flatten() for one in maxima]).cpu().double()
    predicted = torch.cat([one.indices.flatten() for one in maxima]).cpu()
    for row, values in zip(sums, (torch.ones_like(largest), largest, largest**2), strict=True):
        row.index_add_(0, predicted, values)
    return sums


def statistics_of(sums: Tensor) -> MaxLogitStatistics:
    """(3, C) sums as of `max_logit_sums` -> mean and (biased) deviation of every class.

    A class that was predicted for no pixel, or always with the same logit, gets those of all
    pixels together.
    """
    overall_mean, overall_deviation = _moments(sums.sum(dim=1, keepdim=True))
    mean, deviation = _moments(sums)
    known = deviation > SMALLEST_DEVIATION  # False where it is NaN, for want of pixels
    return MaxLogitStatistics(
        torch.where(known, mean, overall_mean),
        torch.where(known, deviation, overall_deviation.clamp_min(SMALLEST_DEVIATION)),
    )


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0).sqrt()
