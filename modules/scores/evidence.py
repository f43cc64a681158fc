"""What one forward pass shows of an image: all that the scores are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.scores.statistics import MaxLogitStatistics


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), bilinear, align_corners=False."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def mean_probabilities(logits_per_scale: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Softmax of the upsampled logits, mean over scales: (N, C, H, W), sums to 1 over C.

    Args:
        logits_per_scale: (N, C, h_s, w_s), one a scale; without gradients.
        size: (H, W).
    """
    first, *others = logits_per_scale
    upsampled = upsample(first, size)
    total = upsampled.softmax(dim=1)
    # On a CPU fresh memory costs as much time as the arithmetic: all other scales share two maps.
    probabilities = torch.empty_like(upsampled)
    for logits in others:
        torch.ops.aten.upsample_bilinear2d.out(logits, list(size), False, None, None, out=upsampled)
        total += torch.softmax(upsampled, dim=1, out=probabilities)
    return total.div_(len(logits_per_scale))


def mean_over_scales(maps_per_scale: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Low-resolution maps (N, h_s, w_s), one a scale -> their upsampled mean (N, H, W)."""
    upsampled = [upsample(maps[:, None], size) for maps in maps_per_scale]
    return (sum(upsampled[1:], upsampled[0]) / len(upsampled)).squeeze(1)


@dataclass(frozen=True)
class Evidence:
    """One image as the network sees it. Only `logits` and `size` are always there.

    Attributes:
        logits: (1, C, h_s, w_s) float32, one a scale.
        size: (H, W) of the label.
        picture: (H, W, 3) uint8, for scores that look at colours.
        samples: (passes, C, h_s, w_s) logits of stochastic passes, one a scale.
        statistics: of the max logits on the training images.
    """

    logits: Sequence[Tensor]
    size: Sequence[int]
    picture: Tensor | None = None
    samples: Sequence[Tensor] = ()
    statistics: MaxLogitStatistics | None = None

    @cached_property
    def probabilities(self) -> Tensor:
        """(1, C, H, W): softmax of the upsampled logits, mean over scales."""
        return mean_probabilities(self.logits, self.size)

    @cached_property
    def _confidence_and_prediction(self) -> tuple[Tensor, Tensor]:
        # On a CPU both together take a sixth of the time of argmax alone.
        confidence, prediction = self.probabilities.max(dim=1)
        return confidence, prediction

    @property
    def confidence(self) -> Tensor:
        """(1, H, W): the largest class probability."""
        return self._confidence_and_prediction[0]

    @property
    def prediction(self) -> Tensor:
        """(H, W) int64: the most probable class."""
        return self._confidence_and_prediction[1][0]
