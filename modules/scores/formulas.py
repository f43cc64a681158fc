"""Anomaly scores of logits and probabilities, one pure function each; higher = more anomalous.

Functions of `logits` (N, C, h, w) return (N, h, w) at the logits' resolution; `mean_over_scales`
upsamples and averages them. logit_c is 10 * cos(feature, prototype_c) with the cosine classifier,
and unbounded with the standard one; p is the softmax.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from modules.classifier import COSINE_SCALE
from modules.scores.network_output import mean_over_scales


def cosine_score(logits_per_scale: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Distance from the nearest prototype: 1 - mean over scales of up((max_c logit_c + 10) / 20).

    Logits of the cosine classifier, (N, C, h_s, w_s) per scale, give (N, H, W) in [0, 1]. The
    maximum is taken before upsampling (Fontanel et al., "Detecting Anomalies in Semantic
    Segmentation with Prototypes", CVPR workshops 2021, section 3.3).

    >>> import torch
    >>> cosine_score([torch.tensor([6.0, -2.0]).view(1, 2, 1, 1)], (1, 2))
    tensor([[[0.2000, 0.2000]]])
    """
    return 1 - mean_over_scales([nearness(logits) for logits in logits_per_scale], size)


def nearness(logits: Tensor) -> Tensor:
    """(max_c logit_c + 10) / 20: the cosine to the nearest prototype, scaled to [0, 1].

    >>> import torch
    >>> nearness(torch.tensor([6.0, -2.0]).view(1, 2, 1, 1))
    tensor([[[0.8000]]])
    """
    return (logits.amax(dim=1) + COSINE_SCALE) / (2 * COSINE_SCALE)


def msp_score(probabilities: Tensor) -> Tensor:
    """1 - max_c p_c of (N, C, H, W) probabilities: (N, H, W) in [0, 1 - 1/C].

    The maximum softmax probability of Hendrycks and Gimpel, "A Baseline for Detecting
    Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR 2017.

    >>> import torch
    >>> msp_score(torch.tensor([0.7, 0.2, 0.1]).view(1, 3, 1, 1))
    tensor([[[0.3000]]])
    """
    return 1 - probabilities.amax(dim=1)


def max_logit(logits: Tensor) -> Tensor:
    """-max_c logit_c: in [-10, 10] with the cosine classifier, else unbounded.

    Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022.

    >>> import torch
    >>> max_logit(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1))
    tensor([[[-2.]]])
    """
    return -logits.amax(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """-sum_c p_c log p_c, in nats: in [0, log C].

    Chan et al., "Entropy Maximization and Meta Classification for Out-of-Distribution Detection
    in Semantic Segmentation", ICCV 2021, who divide it by log C.

    >>> import torch
    >>> entropy(torch.zeros(1, 2, 1, 1))  # log 2
    tensor([[[0.6931]]])
    """
    log_probabilities = logits.log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def energy(logits: Tensor) -> Tensor:
    """-log sum_c exp(logit_c), the free energy at temperature 1.

    In [-10 - log C, 10 - log C] with the cosine classifier, else unbounded. Liu et al.,
    "Energy-based Out-of-distribution Detection", NeurIPS 2020.

    >>> import torch
    >>> energy(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1))
    tensor([[[-2.1269]]])
    """
    return -logits.logsumexp(dim=1)


def prototype_margin(logits: Tensor) -> Tensor:
    """1 - (cos_1 - cos_2) / 2 with the cosines to the nearest and the second nearest prototype.

    In [0, 1]: 1 where two prototypes are equally near. Needs the cosine classifier and two
    classes. The best-versus-second-best margin of Joshi et al., "Multi-class Active Learning for
    Image Classification", CVPR 2009, with cosines in place of probabilities.

    >>> import torch
    >>> prototype_margin(torch.tensor([10.0, 6.0]).view(1, 2, 1, 1))
    tensor([[[0.8000]]])
    """
    nearest, second = logits.topk(2, dim=1).values.unbind(dim=1)
    return 1 - (nearest - second) / (2 * COSINE_SCALE)


def mutual_information(samples: Tensor) -> Tensor:
    """H(mean_n p_n) - mean_n H(p_n), in nats, of the softmax p_n of T stochastic passes.

    (T, C, h, w) logits -> (1, h, w) in [0, min(log C, log T)]: the disagreement of the passes,
    clipped at 0. The passes are from Gal and Ghahramani, "Dropout as a Bayesian Approximation",
    ICML 2016, the measure from Mukhoti and Gal, "Evaluating Bayesian Deep Learning Methods for
    Semantic Segmentation", 2018.

    >>> import torch
    >>> opposed = torch.tensor([[50.0, -50.0], [-50.0, 50.0]]).view(2, 2, 1, 1)
    >>> mutual_information(opposed)  # log 2
    tensor([[[0.6931]]])
    """
    log_probabilities = samples.log_softmax(dim=1)
    log_mean = log_probabilities.logsumexp(dim=0) - math.log(len(samples))
    entropy_of_mean = -(log_mean.exp() * log_mean).sum(dim=0)
    mean_entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1).mean(dim=0)
    return (entropy_of_mean - mean_entropy).clamp_min(0)[None]


def bounds_of(name: str, classes: int, classifier: str) -> tuple[float, float] | None:
    """The (lowest, highest) possible value of a score of `SCORES`; None if it is unbounded.

    >>> bounds_of("msp", classes=4, classifier="cosine")
    (0.0, 0.75)

    Args:
        classifier: "cosine", whose logits are in [-10, 10], or another with unbounded logits.
    """
    nats = math.log(classes)
    bounds = {
        "prototype": (0.0, 1.0),
        "prototype_margin": (0.0, 1.0),
        "msp": (0.0, 1 - 1 / classes),
        "msp_crf": (0.0, 1 - 1 / classes),
        "entropy": (0.0, nats),
        "mc_dropout": (0.0, nats),
    }
    if classifier == "cosine":
        bounds["maxlogit"] = -COSINE_SCALE, COSINE_SCALE
        bounds["energy"] = -COSINE_SCALE - nats, COSINE_SCALE - nats
    return bounds.get(name)
