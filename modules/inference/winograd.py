"""3x3 convolutions with less than half of the products, for evaluation on a CPU.

Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016). Along one axis, two neighbouring outputs of the taps g see four inputs d:

    m0 = (d0 - d2) g0                    y0 = d0 g0 + d1 g1 + d2 g2 = m0 + m1 + m2
    m1 = (d1 + d2) (g0 + g1 + g2) / 2    y1 = d1 g0 + d2 g1 + d3 g2 = m1 - m2 - m3
    m2 = (d2 - d1) (g0 - g1 + g2) / 2
    m3 = (d1 - d3) g2

four products instead of six; nested over both axes 16 instead of 36 for 2x2 outputs. Summed over
channels each of the 16 is a matrix product. Rounding errors are about twice those of the direct
sum. With dilation, "neighbouring" means `dilation` pixels apart.
"""

from typing import cast

import torch
from torch import Tensor, nn

from modules.pyramid import PyramidHead
from modules.residual import Bottleneck
from modules.resnet import MOD5_CHANNELS
from modules.segmentation import SegmentationModel

FEWEST_CHANNELS = 256
"""With fewer the sums before and after the products cost what these save."""
STRIP_BYTES = 64 << 20
"""Rows of tiles are computed together as long as their factors take no more than this."""

_TAPS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]).double()


def _input_sums(d0: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, out: Tensor) -> None:
    """The four factors of the inputs along one axis, into the first axis of `out`."""
    torch.sub(d0, d2, out=out[0])
    torch.add(d1, d2, out=out[1])
    torch.sub(d2, d1, out=out[2])
    torch.sub(d1, d3, out=out[3])


def _output_sums(products: Tensor, y0: Tensor, y1: Tensor) -> None:
    """Both outputs along the first axis of `products`, into y0 and y1."""
    m0, m1, m2, m3 = products
    torch.add(m0, m1, out=y0).add_(m2)
    torch.sub(m1, m2, out=y1).sub_(m3)


class WinogradConv2d(nn.Module):
    """What `nn.Conv2d(C, O, 3, padding=dilation, dilation=dilation)` computes, without gradients.

    (N, C, H, W) -> (N, O, H, W), fastest if channels-last, which the output is.

    Args:
        weight: (O, C, 3, 3).
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int) -> None:
        super().__init__()
        taps = _TAPS.to(weight.device)
        products = torch.einsum("ia,ocab,jb->ijco", taps, weight.detach().double(), taps)
        self.weight = nn.Buffer(products.flatten(0, 1).to(weight.dtype))  # (16, C, O)
        self.bias = nn.Buffer(bias.detach().clone())
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        dilation, outputs = self.dilation, len(self.bias)
        tile = 2 * dilation  # outputs along an axis of a tile; its inputs reach into the next one
        rows, columns = -(-height // tile), -(-width // tile)
        bottom, right = (rows + 1) * tile - height, (columns + 1) * tile - width
        margins = (0, 0, dilation, right - dilation, dilation, bottom - dilation)
        padded = nn.functional.pad(x.permute(0, 2, 3, 1), margins)
        tiles = padded.view(batch, rows + 1, 2, dilation, columns + 1, 2, dilation, channels)
        result = x.new_empty(batch, rows, 2, dilation, columns, 2, dilation, outputs)
        bytes_of_row = 4 * padded[:, :tile].nbytes
        step = max(1, STRIP_BYTES // bytes_of_row)
        for top in range(0, rows, step):
            self._fill(tiles[:, top : top + step + 1], result[:, top : top + step])
        result = result.view(batch, rows * tile, columns * tile, outputs)
        return result[:, :height, :width].permute(0, 3, 1, 2)

    def _fill(self, tiles: Tensor, result: Tensor) -> None:
        """Rows of tiles, and one below and to the right of them, -> the outputs of these tiles."""
        batch, rows, _, dilation, columns, _, _, outputs = result.shape
        channels = tiles.shape[-1]
        here, below = tiles[:, :-1], tiles[:, 1:]
        sums = tiles.new_empty(4, batch, rows, dilation, columns + 1, 2, dilation, channels)
        _input_sums(here[:, :, 0], here[:, :, 1], below[:, :, 0], below[:, :, 1], sums)
        here, beside = sums[..., :-1, :, :, :], sums[..., 1:, :, :, :]
        d0, d1, d2, d3 = (side[..., place, :, :] for side in (here, beside) for place in (0, 1))
        factors = tiles.new_empty(4, 4, batch, rows, dilation, columns, dilation, channels)
        _input_sums(d0, d1, d2, d3, factors.transpose(0, 1))

        products = torch.bmm(factors.view(16, -1, channels), self.weight)
        products[5] += self.bias  # the m1 of both axes, which every output holds once
        products = products.view(4, 4, batch, rows, dilation, columns, dilation, outputs)
        halves = torch.empty_like(products[:2])
        _output_sums(products, halves[0], halves[1])
        for place, half in enumerate(halves):
            target = result[:, :, place]
            _output_sums(half, target[..., 0, :, :], target[..., 1, :, :])


def use_winograd(model: SegmentationModel) -> None:
    """Have the broad 3x3 convolutions of a folded model computed so, for evaluation alone."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            convolution = cast(nn.Conv2d, module.convs.conv2)
            if convolution.stride == (1, 1) and convolution.in_channels >= FEWEST_CHANNELS:
                module.convs.conv2 = _winograd(convolution, convolution.weight)
        elif isinstance(module, PyramidHead) and not module.plain:
            convolution = cast(nn.Conv2d, module.conv_last[0])
            module.mod5_convolution = _winograd(convolution, convolution.weight[:, :MOD5_CHANNELS])


def _winograd(convolution: nn.Conv2d, weight: Tensor) -> WinogradConv2d:
    assert convolution.bias is not None
    return WinogradConv2d(weight, convolution.bias, convolution.dilation[0])
