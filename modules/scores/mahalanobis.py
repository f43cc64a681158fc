"""Mahalanobis distance from the nearest class: min_c (f - mean_c)^T covariance^-1 (f - mean_c).

mean_c is the mean of the features of the training pixels labelled c. The covariance is shared by
the classes: the mean over these pixels of (f - mean_c) (f - mean_c)^T, c the pixel's class. Lee et
al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
NeurIPS 2018, with the last features only and without input preprocessing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.scores.network_output import NetworkOutput, State
from modules.scores.score_map import (
    Fit,
    ScoreMap,
    class_sums,
    exact,
    labelled_features,
    pixels,
    rounded,
)
from utils.errors import PansError

SMALLEST_VARIANCE = 1e-10
"""Directions whose variance is a smaller share of the largest are rounding errors, and ignored."""


def squared_distance(features: Tensor, centre: Tensor, whitening: Tensor, means: Tensor) -> Tensor:
    """min_c |(f - centre) whitening - mean_c|^2: (P, D) features -> (P,), 0 or more.

    Args:
        centre: (D,).
        whitening: (D, R), after which the shared covariance is the identity.
        means: (C, R), the class means, centred and whitened too.

    >>> import torch
    >>> halved, means = torch.tensor([[0.5, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0]])
    >>> squared_distance(torch.tensor([[4.0, 1.0]]), torch.zeros(2), halved, means)
    tensor([5.])
    """
    whitened = (features - centre.to(features.dtype)) @ whitening.to(features.dtype)
    means = means.to(features.dtype)
    squares = means.square().sum(1) - 2 * whitened @ means.T
    return (whitened.square().sum(1) + squares.amin(1)).clamp_min(0)


def observe(output: NetworkOutput, label: Tensor, seed: int) -> State:
    features, classes = labelled_features(output, label)
    counts, sums = class_sums(features, classes, output.logits[0].shape[1])
    features = features.double()
    products = features.T @ features
    return {"counts": exact(counts), "sums": exact(sums), "products": exact(products)}


def finish(state: State) -> State:
    """The arguments of `squared_distance`, for the classes that occur in training labels."""
    counts, sums = rounded(state["counts"]), rounded(state["sums"])
    total = counts.sum()
    if not total:
        raise PansError("mahalanobis: no training label has a known class")
    sums, counts = sums[counts > 0], counts[counts > 0, None]
    means, centre = sums / counts, sums.sum(0) / total
    covariance = (rounded(state["products"]) - sums.T @ means) / total
    variances, directions = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = variances > SMALLEST_VARIANCE * variances[-1].clamp_min(0)
    whitening = directions[:, kept] / variances[kept].sqrt()
    return {"centre": centre, "whitening": whitening, "means": (means - centre) @ whitening}


def parts_of(output: NetworkOutput) -> Sequence[Tensor]:
    state = output.states["mahalanobis"]
    return [
        squared_distance(pixels(features), **state).view(1, *features.shape[2:])
        for features in output.features
    ]


MAP = ScoreMap(parts_of, fit=Fit(observe, finish))
