"""Winograd's filtering for the 3x3 convolutions of a folded network on a CPU."""

from typing import cast

import torch
from torch import Tensor, nn

from modules.pyramid import PyramidHead
from modules.residual import Bottleneck
from modules.segmentation import SegmentationModel
from modules.winograd import FOUR, TWO, Filtering, convolve, transformed_taps


def filtering_for(dtype: torch.dtype) -> tuple[Filtering, int]:
    """The filtering for a data type, and the minimum number of channels for which it pays off.

    bfloat16 is not precise enough for F(4x4): its errors change metrics by tenths of a point.
    """
    return (TWO, 256) if dtype == torch.bfloat16 else (FOUR, 128)


class WinogradConv2d(nn.Module):
    """`nn.Conv2d(C, O, 3, padding=dilation, dilation=dilation)` without gradients.

    (N, C, H, W) -> (N, O, H, W) in channels-last layout; fastest for channels-last input.

    Args:
        weight: (O, C, 3, 3).
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int, filtering: Filtering) -> None:
        super().__init__()
        taps = transformed_taps(weight.detach().double(), filtering)
        self.taps = nn.Buffer(taps.to(weight.dtype).contiguous())  # (n^2, C, O)
        self.bias = nn.Buffer(bias.detach().clone())
        self.dilation, self.filtering = dilation, filtering

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.taps, self.bias, self.dilation, self.filtering)


def use_winograd(model: SegmentationModel, dtype: torch.dtype) -> None:
    """Replace the 3x3 convolutions with many channels of a folded model, which runs in `dtype`."""
    filtering, fewest_channels = filtering_for(dtype)

    def winograd(convolution: nn.Conv2d, weight: Tensor) -> WinogradConv2d:
        assert convolution.bias is not None
        return WinogradConv2d(weight, convolution.bias, convolution.dilation[0], filtering)

    for module in model.modules():
        if isinstance(module, Bottleneck):
            convolution = cast(nn.Conv2d, module.convs.conv2)
            if convolution.stride == (1, 1) and convolution.in_channels >= fewest_channels:
                module.convs.conv2 = winograd(convolution, convolution.weight)
        elif isinstance(module, PyramidHead) and not module.plain:
            convolution = cast(nn.Conv2d, module.conv_last[0])
            weight = convolution.weight[:, : module.mod5_channels]
            module.mod5_convolution = winograd(convolution, weight)
