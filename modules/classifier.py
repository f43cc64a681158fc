"""Pixel classifiers: cosine to class prototypes, or a plain 1x1 convolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COSINE_SCALE = 10.0
CLASSIFIERS = ("standard", "cosine")


class CosineClassifier(nn.Module):
    """logits = 10 * cos(feature, prototype), in [-10, 10].

    `weight` (num_classes, channels, 1, 1) has one prototype per class; the scale is fixed and there
    is no bias (Fontanel et al., "Detecting Anomalies in Semantic Segmentation with Prototypes",
    CVPR workshops 2021, section 3). Features (N, channels, h, w) -> logits (N, num_classes, h, w).
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        # As published, prototypes are initialised like the weight of a 1x1 convolution.
        self.weight = nn.Conv2d(channels, num_classes, 1, bias=False).weight

    def forward(self, features: Tensor) -> Tensor:
        prototypes = F.normalize(self.weight, dim=1)
        # Dividing the logits by the length is cheaper than dividing the many features.
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(1e-12)
        return F.conv2d(features, prototypes) * (COSINE_SCALE / length)


class Classifier(nn.Module):
    """The classifier of the head's features, `cls`, and that of deep supervision.

    Logits are at least float32, even under autocast: with 8 bits of mantissa most scores would tie.
    """

    def __init__(self, kind: str, channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls = self._make(kind, channels, num_classes)
        self.cls_deepsup = self._make(kind, channels, num_classes)

    @staticmethod
    def _make(kind: str, channels: int, num_classes: int) -> nn.Module:
        if kind == "cosine":
            return CosineClassifier(channels, num_classes)
        if kind == "standard":
            return nn.Conv2d(channels, num_classes, 1)
        raise ValueError(f"classifier must be one of {', '.join(CLASSIFIERS)}, got {kind!r}")

    def forward(self, features: Tensor) -> Tensor:
        return _in_float32(self.cls, features)

    def deep_supervision(self, features: Tensor) -> Tensor:
        return _in_float32(self.cls_deepsup, features)


def _in_float32(classifier: nn.Module, features: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return classifier(features.to(torch.promote_types(features.dtype, torch.float32)))
