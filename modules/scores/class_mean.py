"""Distance from the nearest class mean: 1 - max_c cos(f, mean_c).

mean_c is the mean of the features of the training pixels labelled c: measured instead of learned
prototypes (Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017, with the
cosine of Fontanel et al., "Detecting Anomalies in Semantic Segmentation with Prototypes", CVPR
workshops 2021).
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from modules.scores.network_output import NetworkOutput, State
from modules.scores.score_map import Fit, ScoreMap, class_sums, exact, labelled_features, rounded
from utils.errors import PansError


def distance_from_means(features: Tensor, means: Tensor) -> Tensor:
    """(N, D, h, w) features and (C, D) means -> (N, h, w) in [0, 2]; 1 for a feature of length 0.

    >>> import torch
    >>> means = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    >>> distance_from_means(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), means)
    tensor([[[0.2000]]])
    """
    directions = F.normalize(means, dim=1).to(features.dtype)
    length = features.norm(dim=1).clamp_min(1e-12)
    return 1 - F.conv2d(features, directions[:, :, None, None]).amax(dim=1) / length


def observe(output: NetworkOutput, label: Tensor, seed: int) -> State:
    features, classes = labelled_features(output, label)
    counts, sums = class_sums(features, classes, output.logits[0].shape[1])
    return {"counts": exact(counts), "sums": exact(sums)}


def finish(state: State) -> State:
    """The means of the classes that occur in training labels."""
    counts, sums = rounded(state["counts"]), rounded(state["sums"])
    if not counts.any():
        raise PansError("class_mean: no training label has a known class")
    return {"means": sums[counts > 0] / counts[counts > 0, None]}


def parts_of(output: NetworkOutput) -> Sequence[Tensor]:
    means = output.states["class_mean"]["means"]
    return [distance_from_means(features.float(), means) for features in output.features]


MAP = ScoreMap(parts_of, fit=Fit(observe, finish))
