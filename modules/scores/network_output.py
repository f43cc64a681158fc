"""The network's output for an image, from which all scores are computed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.pyramid import upsampling_matrix

STRIP_BYTES = 8 << 20
"""Rows whose probabilities are computed at a time, to fit into a CPU's cache."""


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), bilinear, align_corners=False."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def mean_probabilities(logits_per_scale: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Softmax of the upsampled logits, mean over scales: (N, C, H, W), sums to 1 over C.

    Args:
        logits_per_scale: (N, C, h_s, w_s), one per scale; without gradients.
        size: (H, W).
    """
    first, *others = logits_per_scale
    total = upsample(first, size).softmax(dim=1)
    for logits in others:
        total += upsample(logits, size).softmax(dim=1)
    return total.div_(len(logits_per_scale))


def confidence_and_prediction(
    logits_per_scale: Sequence[Tensor], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Maximum and argmax over classes of `mean_probabilities`, each (N, H, W).

    On a CPU the probabilities are computed and reduced in strips of rows, so that memory and its
    traffic do not grow with the number of classes. A GPU computes the whole map at once.
    """
    if logits_per_scale[0].device.type != "cpu":
        # max with its index takes a sixth of the time of argmax alone.
        confidence, prediction = mean_probabilities(logits_per_scale, size).max(dim=1)
        return confidence, prediction
    pairs = [strip.max(dim=1) for strip in _strips_of_mean_probabilities(logits_per_scale, size)]
    confidences, predictions = zip(*pairs, strict=True)
    return torch.cat(confidences, dim=1), torch.cat(predictions, dim=1)


def _strips_of_mean_probabilities(
    logits_per_scale: Sequence[Tensor], size: Sequence[int]
) -> Iterator[Tensor]:
    """`mean_probabilities` from top to bottom as (N, C, rows, W), up to rounding.

    Bilinear upsampling is separable: the low-resolution rows of a strip are upsampled horizontally,
    then combined by the strip's rows of the vertical upsampling matrix.
    """
    height, width = size
    matrices = [upsampling_matrix(logits.shape[2], height, logits) for logits in logits_per_scale]
    row_bytes = logits_per_scale[0][:, :, 0, 0].nbytes * width
    rows = max(1, STRIP_BYTES // row_bytes)
    for top in range(0, height, rows):
        total: Tensor | None = None
        for logits, matrix in zip(logits_per_scale, matrices, strict=True):
            weights = matrix[top : top + rows]
            seen = weights.any(dim=0).nonzero()
            start, stop = int(seen[0]), int(seen[-1]) + 1
            wide = upsample(logits[:, :, start:stop], (stop - start, width))
            probabilities = (weights[:, start:stop] @ wide).softmax(dim=1)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        yield total.div_(len(logits_per_scale))


def mean_over_scales(maps_per_scale: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Low-resolution maps (N, h_s, w_s), one per scale -> their upsampled mean (N, H, W)."""
    upsampled = [upsample(maps[:, None], size) for maps in maps_per_scale]
    return (sum(upsampled[1:], upsampled[0]) / len(upsampled)).squeeze(1)


State = Mapping[str, Tensor]
"""The state of a fitted score: tensors by name; on the CPU in its file."""


@dataclass(frozen=True)
class NetworkOutput:
    """The network's output for one image. Only `logits` and `size` are always set.

    Attributes:
        logits: (1, C, h_s, w_s) float32, one per scale.
        size: (H, W) of the label.
        features: (1, D, h_s, w_s), the classifier's input, one per scale.
        picture: (H, W, 3) uint8, for scores that use colours.
        samples: (passes, C, h_s, w_s) logits of stochastic passes, one per scale.
        states: {score: fitted state} of the fitted scores.
    """

    logits: Sequence[Tensor]
    size: Sequence[int]
    features: Sequence[Tensor] = ()
    picture: Tensor | None = None
    samples: Sequence[Tensor] = ()
    states: Mapping[str, State] = field(default_factory=dict)

    @cached_property
    def probabilities(self) -> Tensor:
        """(1, C, H, W): softmax of the upsampled logits, mean over scales."""
        return mean_probabilities(self.logits, self.size)

    @cached_property
    def _confidence_and_prediction(self) -> tuple[Tensor, Tensor]:
        if "probabilities" in self.__dict__:  # already computed for another score
            confidence, prediction = self.probabilities.max(dim=1)
            return confidence, prediction
        return confidence_and_prediction(self.logits, self.size)

    @property
    def confidence(self) -> Tensor:
        """(1, H, W): the largest class probability."""
        return self._confidence_and_prediction[0]

    @property
    def prediction(self) -> Tensor:
        """(H, W) int64: the most probable class."""
        return self._confidence_and_prediction[1][0]
