"""The parts of a score's file: the computation of its map, how it is fitted, and exact sums.

States of images are merged exactly, so that the fitted state does not depend on their order or on
the number of processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.scores.network_output import NetworkOutput, State, mean_over_scales
from utils.errors import PansError

_FRACTION_BITS = 60
_LARGEST_SUM = 2.0**62


def exact(values: Tensor) -> Tensor:
    """Float64 values (...) -> fixed-point numbers (2, ...): integer part and 2^-60ths, both int64.

    Raises:
        PansError: a value is not finite, or its magnitude is 2^62 or more.
    """
    if not bool((values.abs() < _LARGEST_SUM).all()):
        raise PansError(
            "the network's output for a training image is not finite, or too large to be summed; "
            "its training had failed, use an earlier checkpoint"
        )
    whole = values.floor()
    fraction = ((values - whole) * 2.0**_FRACTION_BITS).round()
    return torch.stack([whole, fraction]).to(torch.int64)


def add_exact(first: State, second: State) -> State:
    """Elementwise sums of `exact` numbers, independent of the order."""
    return {name: _carried(first[name] + second[name]) for name in first}


def _carried(total: Tensor) -> Tensor:
    carry = total[1] >> _FRACTION_BITS
    return torch.stack([total[0] + carry, total[1] - (carry << _FRACTION_BITS)])


def rounded(total: Tensor) -> Tensor:
    """`exact` numbers (2, ...) -> (...) float64."""
    return total[0].double() + total[1].double() / 2.0**_FRACTION_BITS


@dataclass(frozen=True)
class Fit:
    """How a score is fitted to the training images.

    Attributes:
        observe: (network output, label (H, W) uint8, seed) -> the state of one image. The seed
            depends on the run's seed and on the image's index.
        finish: merged state -> the fitted state, called on the main process only.
        merge: two states -> the merged state; by default sums of `exact` numbers.
        drawn: whether the seed matters.
        settings: constants of the fit; if they change, the score is fitted again.
    """

    observe: Callable[[NetworkOutput, Tensor, int], State]
    finish: Callable[[State], State]
    merge: Callable[[State, State], State] = add_exact
    drawn: bool = False
    settings: tuple[Any, ...] = ()


def labelled_features(output: NetworkOutput, label: Tensor) -> tuple[Tensor, Tensor]:
    """Features and classes of the pixels with a known class, at all scales together.

    Args:
        label: (H, W) uint8; resized to the features' resolution by nearest neighbour.

    Returns:
        (P, D), at least float32, and (P,) int64 below the number of classes.
    """
    features, classes = [], []
    for one in output.features:
        own = F.interpolate(label[None, None].to(one.device), one.shape[2:], mode="nearest-exact")
        known = own.flatten() < output.logits[0].shape[1]
        features.append(pixels(one)[known])
        classes.append(own.flatten()[known].long())
    return torch.cat(features), torch.cat(classes)


def pixels(features: Tensor) -> Tensor:
    """(1, D, h, w) features -> (h * w, D), at least float32."""
    rows = features.flatten(2)[0].T
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def class_sums(features: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(P, D) features and (P,) classes -> counts (C,) and sums (C, D) per class, float64."""
    indicator = F.one_hot(classes, count).double()
    return indicator.sum(0), indicator.T @ features.double()


@dataclass(frozen=True)
class ScoreMap:
    """Computes the map of a score from the network's output, in two steps.

    Attributes:
        parts_of: network output for one image -> parts from which the map is computed:
            (1, h_s, w_s), one per scale, or the map itself: (1, H, W).
        from_parts: parts and the size (H, W) -> (1, H, W), higher = more anomalous.
        fit: how it is fitted to the training images; None if it is not.
    """

    parts_of: Callable[[NetworkOutput], Sequence[Tensor]]
    from_parts: Callable[[Sequence[Tensor], Sequence[int]], Tensor] = mean_over_scales
    fit: Fit | None = None
