"""Winograd's filtering for the 3x3 convolutions of a folded network on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from modules.pyramid import PyramidHead
from modules.residual import Bottleneck
from modules.segmentation import SegmentationModel
from modules.winograd import FOUR, Filtering, Products, convolve, transformed_taps

FILTERING = FOUR
"""In bfloat16, too: rounding the maps between layers matters more than its errors (see
docs/performance.md)."""
FEWEST_CHANNELS = {torch.float32: 128, torch.bfloat16: 256}
"""With fewer, the additional sums cost more than the products save."""


def multiplication(taps: Tensor) -> Callable[[Tensor], Products]:
    """(n^2, C, O) -> the function from (n^2, T, C) to the products (n^2, T, O).

    In float32, `torch.bmm` would use MKL; oneDNN's product with a prepared matrix, which
    torch.compile calls as well, is a tenth faster.
    """
    if taps.dtype != torch.float32 or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return partial(torch.bmm, mat2=taps.contiguous())
    linear, prepare = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._reorder_linear_weight
    prepared = [prepare(tap.T.contiguous()) for tap in taps]

    def products(factors: Tensor) -> list[Tensor]:
        pairs = zip(factors, prepared, strict=True)
        return [linear(factor, tap, None, "none", [], "") for factor, tap in pairs]

    return products


class WinogradConv2d(nn.Module):
    """`nn.Conv2d(C, O, 3, padding=dilation, dilation=dilation)` without gradients.

    (N, C, H, W) -> (N, O, H, W) in channels-last layout; fastest for channels-last input.

    Args:
        weight: (O, C, 3, 3).
        bias: (O,).
        dtype: of x.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        dilation: int,
        dtype: torch.dtype,
        filtering: Filtering = FILTERING,
    ) -> None:
        super().__init__()
        taps = transformed_taps(weight.detach().double(), filtering)
        self.multiply = multiplication(taps.to(dtype))
        self.bias = nn.Buffer(bias.detach().to(dtype))
        self.dilation, self.filtering = dilation, filtering

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.multiply, len(self.bias), self.bias, self.dilation, self.filtering)


def use_winograd(model: SegmentationModel, dtype: torch.dtype) -> None:
    """Replace the 3x3 convolutions with many channels of a folded model, which runs in `dtype`."""

    def winograd(convolution: nn.Conv2d, weight: Tensor) -> WinogradConv2d:
        assert convolution.bias is not None
        return WinogradConv2d(weight, convolution.bias, convolution.dilation[0], dtype)

    for module in model.modules():
        if isinstance(module, Bottleneck):
            convolution = cast(nn.Conv2d, module.convs.conv2)
            if convolution.stride == (1, 1) and convolution.in_channels >= FEWEST_CHANNELS[dtype]:
                module.convs.conv2 = winograd(convolution, convolution.weight)
        elif isinstance(module, PyramidHead) and not module.plain:
            convolution = cast(nn.Conv2d, module.conv_last[0])
            weight = convolution.weight[:, : module.mod5_channels]
            module.mod5_convolution = winograd(convolution, weight)
