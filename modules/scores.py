"""Logits at several scales -> class probabilities and anomaly scores, higher = more anomalous.

Everywhere `logits_per_scale` is a list of low-resolution (N, C, h_s, w_s) logits, one a scale,
and `size` the (H, W) of the label. Scales are upsampled bilinearly (align_corners=False), then
averaged.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from modules.classifier import COSINE_SCALE

SCORES = ("cosine", "msp")


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), bilinear, align_corners=False."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def mean_probabilities(logits_per_scale: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Softmax of the upsampled logits, mean over scales: (N, C, H, W), sums to 1 over C."""
    total = upsample(logits_per_scale[0], size).softmax(dim=1)
    for logits in logits_per_scale[1:]:
        total += upsample(logits, size).softmax(dim=1)
    return total.div_(len(logits_per_scale))


def cosine_score(logits_per_scale: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Distance from the nearest prototype: 1 - mean over scales of up((max_c logit + 10) / 20).

    Logits are 10 * cos(feature, prototype), so the score (N, H, W) lies in [0, 1]. The maximum is
    taken before upsampling (Fontanel et al., CVPR workshops 2021, section 3.3).
    """
    nearest = [
        upsample((logits.amax(dim=1, keepdim=True) + COSINE_SCALE) / (2 * COSINE_SCALE), size)
        for logits in logits_per_scale
    ]
    return 1 - (sum(nearest[1:], nearest[0]) / len(nearest)).squeeze(1)


def msp_score(probabilities: Tensor) -> Tensor:
    """1 - max_c p_c of (N, C, H, W) probabilities: (N, H, W) in [0, 1 - 1/C].

    The maximum softmax probability of Hendrycks and Gimpel, "A Baseline for Detecting
    Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR 2017.
    """
    return 1 - probabilities.amax(dim=1)
