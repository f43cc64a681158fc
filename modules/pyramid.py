"""The pyramid pooling head, whose last convolution is computed without building its input."""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.abn import NormFactory
from modules.winograd import Conv3x3, conv3x3

GRID_SIZES = (1, 2, 3, 6)
DROPOUT = 0.1


def upsampling_matrix(cells: int, size: int, like: Tensor) -> Tensor:
    """(size, cells) weights of bilinear upsampling along one axis, align_corners=False.

    On the device of `like` and in its dtype, computed in at least float32.
    """
    wide_dtype = torch.promote_types(like.dtype, torch.float32)
    identity = torch.eye(cells, device=like.device, dtype=wide_dtype)
    return F.interpolate(identity[None], size=size, mode="linear")[0].T.to(like.dtype)


def shifted_taps(matrix: Tensor) -> Tensor:
    """(size, cells) -> (size, 3, cells): row y of tap t is row y + t - 1, zero outside."""
    padded = F.pad(matrix, (0, 0, 1, 1))
    size = matrix.shape[0]
    return torch.stack([padded[tap : tap + size] for tap in range(3)], dim=1)


def _taps(cells: int, size: int, like: Tensor) -> Tensor:
    """(size, 3 cells): `shifted_taps` of the upsampling matrix, the taps of a row side by side."""
    if like.is_cuda:
        return _kept_taps(cells, size, like.dtype, like.device)
    return shifted_taps(upsampling_matrix(cells, size, like)).flatten(1)


@lru_cache(maxsize=256)
def _kept_taps(cells: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Every training step needs the same ones, which take seven launches each.
    with torch.inference_mode(False), torch.no_grad():
        like = torch.empty(0, dtype=dtype, device=device)
        return shifted_taps(upsampling_matrix(cells, size, like)).flatten(1)


def convolve_upsampled(grids: list[Tensor], weights: list[Tensor], size: torch.Size) -> Tensor:
    """The 3x3 convolution (zero padding 1) of bilinearly upsampled grids, summed over the grids.

    Both steps are linear, so the order can change. With U (size, cells) the upsampling matrix of
    an axis, and W[a, b] the weight of the tap at row a - 1, column b - 1,

        out[y, x] = sum_{a,b} W[a, b] . sum_{i,j} U[y + a - 1, i] U'[x + b - 1, j] grid[i, j]
                  = sum_{a,i} U[y + a - 1, i] sum_{b,j} U'[x + b - 1, j] (W[a, b] . grid[i, j])

    The products with W now run over the k*k cells of a grid, not over all h*w pixels. Zero padding
    is the zero rows of the shifted U.

    Args:
        grids: each (N, C, k, k).
        weights: each (O, C, 3, 3).
        size: (h, w) that the grids are upsampled to.

    Returns:
        (N, O, h, w), in autocast's dtype of matrix products.
    """
    height, width = size
    rows, columns = [], []
    for grid, weight in zip(grids, weights, strict=True):
        cells = grid.shape[-1]
        products = torch.einsum("ocab,ncij->noaibj", weight, grid)
        taps_x = _taps(cells, width, products)
        # (N, O, 3 k, w): taps and cells of the vertical axis, columns already spread.
        columns.append((products.flatten(4) @ taps_x.T).flatten(2, 3))
        rows.append(_taps(cells, height, products))
    return torch.cat(rows, dim=1) @ torch.cat(columns, dim=2)


def pooling_matrix(cells: int, size: int, like: Tensor) -> Tensor:
    """(cells, size) weights of adaptive average pooling along one axis.

    Cell i averages positions floor(i size / cells) to ceil((i + 1) size / cells) - 1, like torch's
    AdaptiveAvgPool. `size` may be symbolic.
    """
    cell = torch.arange(cells, device=like.device)[:, None]
    place = torch.arange(size, device=like.device)
    start, end = cell * size // cells, -(-(cell + 1) * size // cells)
    inside = ((place >= start) & (place < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class MatrixPooling(nn.Module):
    """AdaptiveAvgPool2d(cells) as two matrix products.

    For export with a variable input size: ONNX's exporter would fix torch's own layer to one size.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        rows = pooling_matrix(self.cells, x.shape[2], x)
        columns = pooling_matrix(self.cells, x.shape[3], x)
        return rows @ x @ columns.T


class GridPooling(MatrixPooling):
    """(N, C, h, w) -> (N, C, cells, cells), summed in a fixed order if determinism is on."""

    def forward(self, x: Tensor) -> Tensor:
        if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
            return F.adaptive_avg_pool2d(x, self.cells)
        with torch.autocast(x.device.type, enabled=False):  # averages in float32, like the layer
            return super().forward(x.float()).to(x.dtype)


class PyramidHead(nn.Module):
    """Pyramid pooling (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017) to 512 channels.

    mod5 (N, 2048, h, w) -> (N, 512, h, w): mod5 is averaged to grids of 1, 2, 3 and 6 cells per
    side; each grid is reduced to 512 channels, upsampled and concatenated with mod5; a 3x3
    convolution with norm and dropout follows.

    `plain=True` concatenates all 4096 channels before that convolution, as published. Otherwise
    the pyramid's half of it is computed on the grids (`convolve_upsampled`): the same result up to
    rounding, with the same parameters and half the work.

    Args:
        in_channels: of mod4 and mod5; the head's own are a quarter of mod5's.

    Attributes:
        mod5_convolution: if set, computes mod5's half instead of `conv_last`'s own weight.
    """

    def __init__(
        self, in_channels: tuple[int, int], norm: NormFactory, *, plain: bool = False
    ) -> None:
        super().__init__()
        self.plain = plain
        mod4_channels, self.mod5_channels = in_channels
        self.channels = channels = self.mod5_channels // 4
        self.mod5_convolution: nn.Module | None = None
        self.ppm = nn.ModuleList(
            nn.Sequential(
                GridPooling(cells),
                nn.Conv2d(self.mod5_channels, channels, 1, bias=False),
                norm(channels),
            )
            for cells in GRID_SIZES
        )
        concatenated = self.mod5_channels + len(GRID_SIZES) * channels
        self.conv_last = nn.Sequential(
            nn.Conv2d(concatenated, channels, 3, padding=1, bias=False),
            norm(channels),
            nn.Dropout2d(DROPOUT),
        )
        self.cbr_deepsup = nn.Sequential(
            Conv3x3(mod4_channels, channels, plain=plain),
            norm(channels),
            nn.Dropout2d(DROPOUT),
        )

    def forward(self, mod5: Tensor) -> Tensor:
        grids = [branch(mod5) for branch in self.ppm]
        convolution, *norm_and_dropout = self.conv_last
        assert isinstance(convolution, nn.Conv2d)
        size = mod5.shape[2:]
        if self.plain:
            grids = [F.interpolate(grid, size=size, mode="bilinear") for grid in grids]
            features = convolution(torch.cat([mod5, *grids], dim=1))
        else:
            sections = [self.mod5_channels] + [self.channels] * len(grids)
            weight, *grid_weights = convolution.weight.split(sections, dim=1)
            if self.mod5_convolution is not None:
                features = self.mod5_convolution(mod5)
            else:
                features = conv3x3(mod5, weight, convolution.bias)
            features = features + convolve_upsampled(grids, grid_weights, size)
        for layer in norm_and_dropout:
            features = layer(features)
        return features

    def deep_supervision(self, mod4: Tensor) -> Tensor:
        """mod4 (N, 1024, h, w) -> (N, 512, h, w), for the auxiliary loss in training."""
        return self.cbr_deepsup(mod4)
