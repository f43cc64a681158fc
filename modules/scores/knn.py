"""Distance to the k-th nearest neighbour in a random sample of training features of length 1.

|f / |f| - g_k|, where g_k is the k-th nearest of 8192 features of labelled training pixels, drawn
uniformly; k = 10. Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML
2022.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.scores.network_output import NetworkOutput, State
from modules.scores.score_map import Fit, ScoreMap, labelled_features, pixels
from utils.errors import PansError

SAMPLE_SIZE = 8192
NEIGHBOUR = 10
CHUNK = 1024
"""Pixels compared with the sample at a time: 32 MB of products."""


def neighbour_distance(features: Tensor, sample: Tensor, k: int = NEIGHBOUR) -> Tensor:
    """(P, D) features -> (P,) in [0, 2], the distance of each direction to its k-th neighbour.

    Args:
        sample: (S, D) of length 1; the farthest is taken if S < k.

    >>> import torch
    >>> sample = torch.eye(3)
    >>> neighbour_distance(torch.tensor([[0.0, 3.0, 4.0]]), sample, k=2) ** 2
    tensor([0.8000])
    """
    directions, sample = F.normalize(features, dim=1), sample.to(features.dtype)
    k = min(k, len(sample))
    cosines = [(chunk @ sample.T).topk(k, dim=1).values[:, -1] for chunk in directions.split(CHUNK)]
    return (2 - 2 * torch.cat(cosines)).clamp_min(0).sqrt()


def observe(output: NetworkOutput, label: Tensor, seed: int) -> State:
    """Draw a random number per pixel; the pixels with the smallest ones form the sample."""
    features, _ = labelled_features(output, label)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(features), dtype=torch.float64, generator=generator)
    return _smallest({"draws": draws.to(features.device), "features": features})


def merge(first: State, second: State) -> State:
    return _smallest({name: torch.cat([first[name], second[name]]) for name in first})


def _smallest(state: State) -> State:
    draws = state["draws"]
    kept = draws.topk(min(SAMPLE_SIZE, len(draws)), largest=False).indices
    return {name: values[kept] for name, values in state.items()}


def finish(state: State) -> State:
    if not len(state["features"]):
        raise PansError("knn: no training label has a known class")
    return {"sample": F.normalize(state["features"], dim=1)}


def parts_of(output: NetworkOutput) -> Sequence[Tensor]:
    sample = output.states["knn"]["sample"]
    return [
        neighbour_distance(pixels(features), sample).view(1, *features.shape[2:])
        for features in output.features
    ]


MAP = ScoreMap(
    parts_of, fit=Fit(observe, finish, merge, drawn=True, settings=(SAMPLE_SIZE, NEIGHBOUR))
)
