"""Fold norms into the convolutions before them, for evaluation."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.abn import IDENTITY_SLOPE, ActivatedNorm
from modules.segmentation import SegmentationModel


class Activation(nn.Module):
    """The leaky ReLU of a folded norm, in place; slope 1 means none."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x if self.slope == IDENTITY_SLOPE else F.leaky_relu_(x, self.slope)


@torch.no_grad()
def fold_norms(model: SegmentationModel) -> SegmentationModel:
    """A copy of `model` in evaluation mode with its norms folded into the convolutions.

    With running statistics a norm is the affine map z = scale * x + shift of each channel, with
    scale = effective weight / sqrt(var + eps) and shift = bias - mean * scale. So the convolution
    before it gets the weight scale * W and the bias shift.
    """
    folded = copy.deepcopy(model).eval()
    for parent in list(folded.modules()):
        convolution = None
        for name, child in list(parent.named_children()):
            if isinstance(child, ActivatedNorm) and convolution is not None:
                _fold_pair(convolution, child)
                setattr(parent, name, Activation(child.slope))
            convolution = child if isinstance(child, nn.Conv2d) else None
    return folded


def _fold_pair(convolution: nn.Conv2d, norm: ActivatedNorm) -> None:
    scale = norm.effective_weight() * torch.rsqrt(norm.running_var + norm.eps)
    convolution.weight.mul_(scale.view(-1, 1, 1, 1))
    convolution.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
