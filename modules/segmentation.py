"""The network: body, head and classifier."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.abn import ActivatedNorm, norm_factory
from modules.backbones import BACKBONES
from modules.classifier import Classifier
from modules.pyramid import PyramidHead
from modules.resnet import STRIDES_AND_DILATIONS, ResNet


class TrainingLogits(NamedTuple):
    """Both (N, num_classes, h, w), at the output stride."""

    logits: Tensor
    deepsup_logits: Tensor


class SegmentationModel(nn.Module):
    """images (N, 3, H, W), normalised -> low-resolution logits (N, num_classes, h, w).

    h and w are H and W over the output stride, rounded up; the caller upsamples, because scores do
    so at different points. In training mode the output is a `TrainingLogits` pair; evaluation
    computes the logits of deep supervision only for a plain head, as published, and drops them.
    """

    def __init__(self, body: ResNet, head: PyramidHead, classifier: Classifier) -> None:
        super().__init__()
        self.body, self.head, self.cls = body, head, classifier
        for norm in self._norms():
            norm.counted_together = True

    def _norms(self) -> list[ActivatedNorm]:
        return [module for module in self.modules() if isinstance(module, ActivatedNorm)]

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        if not self.training:
            return self.cls(self.features(images))
        # One launch on a GPU instead of one per norm.
        torch._foreach_add_([norm.num_batches_tracked for norm in self._norms()], 1)
        mod4, mod5 = self.body(images)
        return TrainingLogits(self.cls(self.head(mod5)), self._deep_supervision(mod4))

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 512, h, w), the classifier's input; for evaluation."""
        mod4, mod5 = self.body(images)
        features = self.head(mod5)
        if self.head.plain:
            self._deep_supervision(mod4)  # as published: computed and dropped
        return features

    def _deep_supervision(self, mod4: Tensor) -> Tensor:
        return self.cls.deep_supervision(self.head.deep_supervision(mod4))

    def freeze_norms(self) -> None:
        """Freeze weight and bias of every norm; running statistics are still updated."""
        for norm in self._norms():
            norm.weight.requires_grad_(False)
            norm.bias.requires_grad_(False)


def build_model(
    backbone: str = "resnet50",
    classifier: str = "cosine",
    norm_act: str = "iabn_sync",
    num_classes: int = 13,
    output_stride: int = 8,
    *,
    plain: bool = False,
    checkpoint_activations: bool = False,
) -> SegmentationModel:
    """The PAnS network with random weights; state dict keys are those of published checkpoints.

    The weights are torch's defaults, as published: every convolution uniform in
    +-1 / sqrt(fan_in), norms 1 and 0.

    Args:
        backbone: a name in `BACKBONES`, such as "resnet50".
        classifier: "cosine" (prototypes) or "standard".
        norm_act: "iabn_sync", "iabn", "abn" or "std" (see `modules.abn`).
        output_stride: 8 or 16.
        plain: compute the head as published, over 4096 concatenated channels, with deep supervision
            in evaluation too, and all convolutions by the library.
        checkpoint_activations: recompute the activations of the body's blocks in backward.

    Raises:
        ValueError: any other value.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
    if output_stride not in STRIDES_AND_DILATIONS:
        raise ValueError(f"output_stride must be 8 or 16, got {output_stride!r}")
    norm = norm_factory(norm_act)
    body = ResNet(
        backbone, output_stride, norm, plain=plain, checkpoint_activations=checkpoint_activations
    )
    head = PyramidHead(body.out_channels, norm, plain=plain)
    return SegmentationModel(body, head, Classifier(classifier, head.channels, num_classes))
