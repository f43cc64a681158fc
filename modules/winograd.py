"""3x3 convolutions of stride 1 with a half or a quarter of the products, and their gradients.

Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016). Along one axis, m neighbouring outputs y of the taps g depend on n = m + 2 inputs d:

    y = A' ((G g) * (B' d))        A' (m, n), G (n, 3), B' (n, n), * elementwise

with n products instead of 3 m, or nested over both axes n^2 instead of 9 m^2: 16 instead of 36 for
F(2x2), 36 instead of 144 for F(4x4). Summed over channels, each of the n^2 is a matrix product.
For F(2x2)

    m0 = (d0 - d2) g0                    y0 = m0 + m1 + m2
    m1 = (d1 + d2) (g0 + g1 + g2) / 2    y1 = m1 - m2 - m3
    m2 = (d2 - d1) (g0 - g1 + g2) / 2
    m3 = (d1 - d3) g2

and F(4x4) follows likewise from interpolation at 0, a, -a, b, -b and infinity. With a = 3/4 and
b = 3/2 its rounding errors are half of those with the usual 1 and 2 (Alam, Anderson, Barabasz,
Gregg, "Winograd Convolution for Deep Neural Networks: Efficient Point Selection", ACM TECS 2022).
With dilation, neighbours are `dilation` pixels apart.

Gradients: the input's is the convolution of the output's gradient e with the taps mirrored and the
channels exchanged. The taps' is, because the map is linear in them,

    G' ((A e) * (B' d)), summed over tiles and images,

which are matrix products again, over tiles instead of channels.

In float32, rounding errors are twice those of the direct sum with F(2x2), six times with F(4x4);
in bfloat16 three and eight times.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEWEST_CHANNELS, FEWEST_CHANNELS_BF16 = 256, 512
"""With fewer input or output channels, the additional sums cost more than the products save."""
LARGEST_SHARE = 0.7
"""Maximum share of the direct sum's products; small maps fill their tiles too badly."""
STRIP_BYTES = 64 << 20
"""Maximum size of the factors of the rows of tiles that are computed together."""


@dataclass(frozen=True)
class Filtering:
    """One of Winograd's filterings, along one axis; the functions write to `out` and `y`.

    Attributes:
        outputs: m.
        taps: G, (n, 3) float64.
        input_sums: (d, out) with n inputs d: out = B' d.
        output_sums: (products, y) with n products: y = A' products, m outputs.
        gradient_sums: (e, out) with the gradients of the m outputs: out = A e.
    """

    outputs: int
    taps: Tensor
    input_sums: Callable[[Sequence[Tensor], Tensor], None]
    output_sums: Callable[[Iterable[Tensor], Sequence[Tensor]], None]
    gradient_sums: Callable[[Sequence[Tensor], Tensor], None]

    @property
    def factors(self) -> int:
        """n along one axis."""
        return self.outputs + 2

    def products(self, size: Sequence[int], dilation: int) -> int:
        """Products of one input with one output channel for an (H, W) output."""
        tile = self.outputs * dilation
        tiles = [-(-length // tile) * dilation for length in size]
        return self.factors**2 * tiles[0] * tiles[1]


def _input_sums_of_two(d: Sequence[Tensor], out: Tensor) -> None:
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _output_sums_of_two(products: Iterable[Tensor], y: Sequence[Tensor]) -> None:
    m0, m1, m2, m3 = products
    torch.add(m0, m1, out=y[0]).add_(m2)
    torch.sub(m1, m2, out=y[1]).sub_(m3)


def _gradient_sums_of_two(e: Sequence[Tensor], out: Tensor) -> None:
    out[0].copy_(e[0])
    torch.add(e[0], e[1], out=out[1])
    torch.sub(e[0], e[1], out=out[2])
    torch.neg(e[1], out=out[3])


A, B = 3 / 4, 3 / 2
"""The interpolation points of F(4x4)."""


def _input_sums_of_four(d: Sequence[Tensor], out: Tensor) -> None:
    even, odd = torch.sub(d[4], d[2], alpha=A**2), torch.sub(d[3], d[1], alpha=A**2)
    torch.add(even, odd, alpha=B, out=out[3])
    torch.sub(even, odd, alpha=B, out=out[4])
    torch.sub(d[2], d[0], alpha=A**2, out=out[0])
    torch.sub(even, out[0], alpha=B**2, out=out[0])  # d4 - (a^2 + b^2) d2 + a^2 b^2 d0
    torch.sub(d[5], d[3], alpha=A**2, out=out[5]).sub_(odd, alpha=B**2)
    torch.sub(d[4], d[2], alpha=B**2, out=even)
    torch.sub(d[3], d[1], alpha=B**2, out=odd)
    torch.add(even, odd, alpha=A, out=out[1])
    torch.sub(even, odd, alpha=A, out=out[2])


def _output_sums_of_four(products: Iterable[Tensor], y: Sequence[Tensor]) -> None:
    m0, m1, m2, m3, m4, m5 = products
    even_a, odd_a, even_b, odd_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    torch.add(m0, even_a, out=y[0]).add_(even_b)
    torch.add(odd_a, odd_b, alpha=B / A, out=y[1]).mul_(A)
    torch.add(even_a, even_b, alpha=(B / A) ** 2, out=y[2]).mul_(A**2)
    torch.add(odd_a, odd_b, alpha=(B / A) ** 3, out=y[3]).mul_(A**3).add_(m5)


def _gradient_sums_of_four(e: Sequence[Tensor], out: Tensor) -> None:
    out[0].copy_(e[0])
    even, odd = torch.add(e[0], e[2], alpha=A**2), torch.add(e[1], e[3], alpha=A**2)
    torch.add(even, odd, alpha=A, out=out[1])
    torch.sub(even, odd, alpha=A, out=out[2])
    torch.add(e[0], e[2], alpha=B**2, out=even)
    torch.add(e[1], e[3], alpha=B**2, out=odd)
    torch.add(even, odd, alpha=B, out=out[3])
    torch.sub(even, odd, alpha=B, out=out[4])
    out[5].copy_(e[3])


def _taps_of_four() -> Tensor:
    """Rows (1, p, p^2) / prod(p - q) over the other points q; infinity's row is (0, 0, 1)."""
    near, far = 2 * A**2 * (A**2 - B**2), 2 * B**2 * (B**2 - A**2)
    points = {0.0: A**2 * B**2, A: near, -A: near, B: far, -B: far}
    rows = [[1 / scale, p / scale, p**2 / scale] for p, scale in points.items()]
    return torch.tensor([*rows, [0, 0, 1]], dtype=torch.float64)


TWO = Filtering(
    2,
    torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64),
    _input_sums_of_two,
    _output_sums_of_two,
    _gradient_sums_of_two,
)
FOUR = Filtering(
    4,
    _taps_of_four(),
    _input_sums_of_four,
    _output_sums_of_four,
    _gradient_sums_of_four,
)


Products = Tensor | Sequence[Tensor]
"""n^2 matrices (tiles, C)."""


class Tiling:
    """The tiling of one size; all tensors are (N, H, W, C) in memory.

    A tile has m x m outputs, `dilation` apart; `dilation`^2 interleaved tiles fill a square.
    """

    def __init__(self, filtering: Filtering, dilation: int, size: Sequence[int]) -> None:
        self.filtering, self.dilation, self.size = filtering, dilation, tuple(size)
        self.side = filtering.outputs * dilation
        self.rows, self.columns = (-(-length // self.side) for length in size)

    def padded(self, x: Tensor, border: int) -> Tensor:
        """(N, C, H, W) -> (N, rows * side + 2 border, columns * side + 2 border, C)."""
        bottom = self.rows * self.side - self.size[0] + border
        right = self.columns * self.side - self.size[1] + border
        return nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, border, right, border, bottom))

    def strips(self, x: Tensor) -> list[slice]:
        """Rows of tiles that are computed together, for padded (N, h, w, C)."""
        expansion = self.filtering.factors**2 / self.filtering.outputs**2
        row_bytes = x[:, : self.side].nbytes * expansion
        step = max(1, int(STRIP_BYTES / row_bytes))
        return [slice(top, min(top + step, self.rows)) for top in range(0, self.rows, step)]

    def _places(self, x: Tensor, axis: int, tiles: int, count: int) -> list[Tensor]:
        """Axis -> (tiles, dilation) at the tiles' first to `count`-th places, as views."""
        views = []
        for place in range(count):
            rest = x.narrow(axis, place * self.dilation, x.shape[axis] - place * self.dilation)
            windows = rest.unfold(axis, self.dilation, self.side).narrow(axis, 0, tiles)
            views.append(windows.movedim(-1, axis + 1))
        return views

    def factors(self, x: Tensor, rows: slice, sums: Callable[..., None], count: int) -> Tensor:
        """Both axes' sums of a strip: padded (N, h, w, C) -> (n^2, tiles of the strip, C).

        In the n^2, the horizontal index varies slowest.

        Args:
            sums, count: `input_sums` of n places, or `gradient_sums` of m.
        """
        number, tiles = self.filtering.factors, rows.stop - rows.start
        strip = x[:, rows.start * self.side : (rows.stop - 1) * self.side + count * self.dilation]
        places = self._places(strip, 1, tiles, count)
        vertical = x.new_empty(number, *places[0].shape)
        sums(places, vertical)
        places = self._places(vertical, 4, self.columns, count)
        both = x.new_empty(number, *places[0].shape)
        sums(places, both)
        return both.view(number**2, -1, x.shape[-1])

    def fill(self, result: Tensor, rows: slice, products: Products) -> None:
        """Write the outputs of a strip of tiles.

        Args:
            result: (N, rows, m, dilation, columns, m, dilation, C).
        """
        number, outputs = self.filtering.factors, self.filtering.outputs
        strip = result[:, rows]
        shape = strip[:, :, 0, :, :, 0].shape
        halves = products[0].new_empty(outputs, number, *shape)
        for row in range(number):
            of_row = [product.view(shape) for product in products[row::number]]
            self.filtering.output_sums(of_row, [half[row] for half in halves])
        for column, half in enumerate(halves):
            places = [strip[:, :, row, :, :, column] for row in range(outputs)]
            self.filtering.output_sums(half, places)


def both_axes(filtering: Filtering, *, mirrored: bool = False) -> Tensor:
    """(n^2, 9) float64, the sums of taps over both axes; horizontal index slowest among n^2."""
    one = filtering.taps.flip(1) if mirrored else filtering.taps
    return torch.kron(one, one).view(-1, 3, 3).transpose(1, 2).reshape(-1, 9)


def transformed_taps(weight: Tensor, filtering: Filtering, *, mirrored: bool = False) -> Tensor:
    """(O, C, 3, 3) -> (n^2, C, O), the matrices that multiply the input's factors.

    With `mirrored`, (n^2, O, C): those that multiply the factors of the output's gradient, for the
    gradient of the input.
    """
    sums = both_axes(filtering, mirrored=mirrored).to(weight)
    taps = (sums @ weight.reshape(-1, 9).T).view(-1, *weight.shape[:2])
    return taps if mirrored else taps.transpose(1, 2)


def convolve(
    x: Tensor,
    multiply: Callable[[Tensor], Products],
    channels: int,
    bias: Tensor | None,
    dilation: int,
    filtering: Filtering,
) -> Tensor:
    """(N, C, H, W) -> (N, O, H, W), like `F.conv2d(x, weight, bias, 1, dilation, dilation)`.

    Args:
        multiply: factors (n^2, tiles, C) -> products with the `transformed_taps` (n^2, tiles, O).
        channels: O.
        bias: (O,).

    Returns:
        A channels-last tensor, with gaps where tiles exceed the map; fastest for such input, too.
    """
    tiling = Tiling(filtering, dilation, x.shape[2:])
    padded, outputs, side = tiling.padded(x, dilation), filtering.outputs, tiling.side
    height, width = tiling.rows * side, tiling.columns * side
    result = torch.empty(
        (len(x), channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    places = (len(x), tiling.rows, outputs, dilation, tiling.columns, outputs, dilation, -1)
    tiles = result.permute(0, 2, 3, 1).view(places)
    for rows in tiling.strips(padded):
        factors = tiling.factors(padded, rows, filtering.input_sums, filtering.factors)
        tiling.fill(tiles, rows, multiply(factors))
        if bias is not None:
            tiles[:, rows] += bias
    whole = (height, width) == x.shape[2:]
    return result if whole else result[:, :, : x.shape[2], : x.shape[3]]


def weight_gradient(x: Tensor, gradient: Tensor, dilation: int, filtering: Filtering) -> Tensor:
    """The gradient of the weight, (O, C, 3, 3), from input and output's gradient; float32 or 64."""
    tiling = Tiling(filtering, dilation, x.shape[2:])
    padded, gradient = tiling.padded(x, dilation), tiling.padded(gradient, 0)
    shape = filtering.factors**2, gradient.shape[-1], padded.shape[-1]
    reduced = x.dtype == torch.bfloat16
    products = x.new_zeros(shape, dtype=torch.float32 if reduced else x.dtype)
    for rows in tiling.strips(padded):
        inputs = tiling.factors(padded, rows, filtering.input_sums, filtering.factors)
        outputs = tiling.factors(gradient, rows, filtering.gradient_sums, filtering.outputs)
        if reduced:  # summed over strips in float32
            products += torch.bmm(outputs.transpose(1, 2), inputs)
        else:
            products.baddbmm_(outputs.transpose(1, 2), inputs)
    sums = both_axes(filtering).to(products)
    return (products.flatten(1).T @ sums).view(*shape[1:], 3, 3)


def layout_of(x: Tensor) -> torch.memory_format:
    """The memory format of x: channels-last or contiguous."""
    pixels = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if pixels and not x.is_contiguous() else torch.contiguous_format


def _convolve(x: Tensor, taps: Tensor, dilation: int, filtering: Filtering) -> Tensor:
    multiply = partial(torch.bmm, mat2=taps)
    return convolve(x, multiply, taps.shape[2], None, dilation, filtering)


class _Convolution(torch.autograd.Function):
    """x and what comes out may be bfloat16, the weight not: its taps are rounded once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int, filtering: Filtering) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.filtering = dilation, filtering
        with torch.autocast("cpu", enabled=False):
            taps = transformed_taps(weight, filtering).to(x.dtype)
            result = _convolve(x, taps, dilation, filtering)
        return result.contiguous(memory_format=layout_of(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        how = ctx.dilation, ctx.filtering
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            taps = transformed_taps(weight, ctx.filtering, mirrored=True).to(x.dtype)
            grad_x = _convolve(gradient, taps, *how)
            grad_x = grad_x.contiguous(memory_format=layout_of(x))
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(x, gradient, *how)
        return grad_x, grad_weight, None, None


def best_filtering(
    size: Sequence[int], dilation: int, filterings: Sequence[Filtering] = (TWO, FOUR)
) -> Filtering | None:
    """The filtering with the fewest products for an (H, W) output; None for the direct sum."""
    best = min(filterings, key=lambda filtering: filtering.products(size, dilation))
    direct = 9 * size[0] * size[1]
    return best if best.products(size, dilation) <= LARGEST_SHARE * direct else None


def _filtering_for(x: Tensor, weight: Tensor, dilation: int) -> Filtering | None:
    """None where the library's own convolution is faster or the only option."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # as when a network is exported
        return None
    size, channels = x.shape[2:], min(weight.shape[:2])
    if x.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu"):
        reduced = channels >= FEWEST_CHANNELS_BF16
        return best_filtering(size, dilation, (TWO,)) if reduced else None
    single = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return best_filtering(size, dilation) if single and channels >= FEWEST_CHANNELS else None


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)`, with gradients.

    (N, C, H, W) and (O, C, 3, 3) -> (N, O, H, W). Layers with many channels and no bias on a CPU
    use Winograd's filtering in the layout of x: in float32, or by F(2x2) in bfloat16 under
    autocast. All others use the library.
    """
    filtering = None if bias is not None else _filtering_for(x, weight, dilation)
    if filtering is None:
        return nn.functional.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    return _Convolution.apply(x, weight, dilation, filtering)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the size at stride 1, by `conv3x3`.

    It has no bias until a norm is folded into it. `plain=True` always uses the library.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1, plain: bool = False
    ) -> None:
        super().__init__(
            inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        if self.plain or self.stride != (1, 1):
            return super().forward(x)
        return conv3x3(x, self.weight, self.bias, self.dilation[0])
