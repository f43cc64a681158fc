"""Activated batch normalisation, in place (saving only its output) and plain.

In-place ABN (Rota Bulo, Porzi, Kontschieder, "In-Place Activated BatchNorm for Memory-Optimized
Training of DNNs", CVPR 2018) computes, for every channel of x,

    y = leaky_relu(xhat * (|weight| + eps) + bias, slope),    xhat = (x - mean) / sqrt(var + eps)

and writes y over x. Both the scale and the activation are invertible, so backward recovers xhat
from y, and no other tensor of the size of x is kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from modules.abn_cuda import EPS, IDENTITY_SLOPE, MOMENTUM, FusedInPlaceABN, before_activation

try:  # built for another torch, the package fails to import: use torch's kernels
    from inplace_abn.functions import inplace_abn_sync as package_function
except ImportError:
    package_function = None

LEAKY_SLOPE = 0.01
CHANNELS_AT_A_TIME = 256
PACKAGE_DTYPES = (torch.float32, torch.float64, torch.float16)
"""The data types that the inplace-abn package supports."""
NORMS = ("iabn_sync", "iabn", "abn", "std")


class ActivatedNorm(nn.BatchNorm2d):
    """Base of both norms: parameters and statistics of BatchNorm2d, and an activation."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__(channels, eps=EPS, momentum=MOMENTUM)
        self.slope = slope
        # True if the network increments the counters of all its norms at once.
        self.counted_together = False

    def effective_weight(self) -> Tensor:
        """The (C,) scale of xhat."""
        return self.weight

    def count_batch(self) -> tuple[Tensor, Tensor]:
        """The mean and variance to use or update in this pass: the running ones, or copies."""
        if self.training and not self.track_running_stats:
            return self.running_mean.clone(), self.running_var.clone()
        if self.training and not self.counted_together:
            self.num_batches_tracked.add_(1)
        return self.running_mean, self.running_var


NormFactory = Callable[..., ActivatedNorm]


def _gather_statistics(
    mean: Tensor, var: Tensor, values: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the processes' (C,) means and biased variances of `values` values per channel.

    Returns:
        The group's mean, biased variance, and 0-d number of values per channel.
    """
    # E[x^2] - E[x]^2 needs float64; the vector is short, so this costs nothing.
    mean64, var64 = mean.double(), var.double()
    count = mean64.new_full((1,), values)
    sums = torch.cat([mean64 * count, (var64 + mean64.square()) * count, count])
    dist.all_reduce(sums, group=group)
    total, channels = sums[-1], mean.numel()
    mean64 = sums[:channels] / total
    var64 = (sums[channels:-1] / total - mean64.square()).clamp_min(0)
    return mean64.to(mean.dtype), var64.to(var.dtype), total


def _require_two_values(x: Tensor, group: dist.ProcessGroup | None) -> None:
    values = x.numel() // x.shape[1]
    if values * (1 if group is None else dist.get_world_size(group)) < 2:
        raise ValueError(
            f"batch statistics need more than one value per channel, got a {tuple(x.shape)} input: "
            "use a larger batch, or model.eval()"
        )


def _batch_statistics(
    x: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor | float]:
    """(C,) mean and biased variance of the group's batches, and their values per channel."""
    values = x.numel() // x.shape[1]
    # With float32 running statistics as arguments, the kernel does not round its own to bf16.
    zeros = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    mean, var = torch.ops.aten.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)
    return (mean, var, values) if group is None else _gather_statistics(mean, var, values, group)


def _scale_and_shift(x: Tensor, mean: Tensor, var: Tensor, eps: float, *affine: Tensor) -> None:
    """x <- (x - mean) / sqrt(var + eps) * weight + bias in one pass, `affine` = (weight, bias)."""
    # The kernel reads each value before it overwrites it, so x may be its own output.
    unused = [x.new_empty(0, dtype=mean.dtype) for _ in range(2)]
    torch.ops.aten.native_batch_norm.out(
        x, *affine, mean, var, False, 0.0, eps, out=x, save_mean=unused[0], save_invstd=unused[1]
    )


def _subtract_affine(target: Tensor, x: Tensor, *vectors: Tensor) -> None:
    """target <- target - ((x - mean) / sqrt(var) * weight + bias), with these four (C,) `vectors`.

    Some channels at a time: a full-size temporary would raise the peak memory of training.
    """
    parts = [tensor.split(CHANNELS_AT_A_TIME, dim=1) for tensor in (target, x)]
    parts += [vector.split(CHANNELS_AT_A_TIME) for vector in vectors]
    for target_part, x_part, mean, var, weight, bias in zip(*parts, strict=True):
        subtracted = x_part.clone()
        _scale_and_shift(subtracted, mean, var, 0.0, weight, bias)
        target_part.sub_(subtracted)


class _InPlaceABN(torch.autograd.Function):
    """Forward overwrites its input; backward needs only the output and (C,) vectors.

    All passes over the data are torch's own batch norm kernels in evaluation mode, which accept
    data in reduced precision with float32 statistics: sums and statistics are at least float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        training: bool,
        slope: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = weight.to(wide), bias.to(wide)
        mean, var, count = running_mean.to(wide), running_var.to(wide), None
        if training:
            mean, var, count = _batch_statistics(x, group)
            running_mean.lerp_(mean.to(running_mean.dtype), MOMENTUM)
            unbiased = (var * (count / (count - 1))).to(running_var.dtype)
            running_var.lerp_(unbiased, MOMENTUM)
        _scale_and_shift(x, mean, var, EPS, weight.abs() + EPS, bias)
        if slope != IDENTITY_SLOPE:
            F.leaky_relu_(x, slope)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, weight, bias, torch.rsqrt(var + EPS))
        ctx.count, ctx.slope, ctx.group = count, slope, group
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, inv_std = ctx.saved_tensors
        z, grad_z = before_activation(y, grad_y, ctx.slope)
        gamma = weight.abs() + EPS
        square = gamma.square()
        # With bias as mean and gamma as deviation the kernel takes xhat = (z - bias) / gamma from
        # z; it returns grad_z * gamma * inv_std, and the sums of grad_z * xhat and of grad_z.
        grad_x, grad_gamma, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_z, z, square * inv_std, bias, square, None, None, False, 0.0, [True] * 3
        )
        if ctx.count is not None:
            sums = torch.stack([grad_bias, grad_gamma])
            if ctx.group is not None:
                dist.all_reduce(sums, group=ctx.group)
            mean_grad, mean_grad_xhat = sums / ctx.count
            # The gradient through the batch's mean and deviation:
            # gamma * inv_std * (mean_grad + xhat * mean_grad_xhat).
            factor = gamma * inv_std
            vectors = bias, square, factor * mean_grad_xhat, factor * mean_grad
            _subtract_affine(grad_x, z, *vectors)
        grad_weight = torch.where(weight < 0, -grad_gamma, grad_gamma)
        return grad_x, grad_weight, grad_bias, *[None] * 5


def inplace_abn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: bool,
    slope: float = LEAKY_SLOPE,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Normalise, scale, shift and activate x in place.

    Args:
        x: (N, C, ...) of any floating type; overwritten with the result.
        weight, bias, running_mean, running_var: (C,). |weight| + 1e-5 is the scale.
        training: use the batch's statistics and update the running ones (running <- running +
            0.1 * (batch - running), with the unbiased variance); else use the running ones.
        slope: of the leaky ReLU for negative values; 1 means no activation.
        group: the processes that share batch statistics; None means this process alone. Batches
            may differ in size: every value has the same weight.

    Returns:
        x, overwritten.

    Raises:
        ValueError: training with a single value per channel.
    """
    arguments = (x, weight, bias, running_mean, running_var, training)
    if x.is_cuda and package_function is not None and _package_serves(x, weight, training):
        # inplace_abn_sync without `group` silently does not synchronise: always pass it.
        activation = "identity" if slope == IDENTITY_SLOPE else "leaky_relu"
        return package_function(*arguments, MOMENTUM, EPS, activation, slope, group)
    if training:
        _require_two_values(x, group)
    function = FusedInPlaceABN if x.is_cuda else _InPlaceABN
    return function.apply(*arguments, slope, group)


def _package_serves(x: Tensor, weight: Tensor, training: bool) -> bool:
    """Whether the package supports this case, without a wait for the GPU."""
    # Its backward flips the signs of some gradients by a mask, for which the host waits.
    learns = weight.requires_grad and torch.is_grad_enabled()
    # It requires two values per channel in each process, though two in the group would suffice.
    enough = not training or x.numel() > x.shape[1]
    return x.dtype == weight.dtype and x.dtype in PACKAGE_DTYPES and enough and not learns


class InPlaceABN(ActivatedNorm):
    """In-place activated batch norm; forward overwrites its input (N, C, H, W).

    Args:
        channels: C.
        slope: of the leaky ReLU; 1 means no activation.
        synchronised: in training, take the statistics over all processes.
    """

    def __init__(
        self, channels: int, slope: float = LEAKY_SLOPE, *, synchronised: bool = False
    ) -> None:
        super().__init__(channels, slope)
        self.synchronised = synchronised

    def forward(self, x: Tensor) -> Tensor:
        exchanges = self.synchronised and self.training and dist.is_initialized()
        return inplace_abn(
            x,
            self.weight,
            self.bias,
            *self.count_batch(),
            training=self.training,
            slope=self.slope,
            group=dist.group.WORLD if exchanges else None,
        )

    def effective_weight(self) -> Tensor:
        return self.weight.abs() + self.eps

    def extra_repr(self) -> str:
        return f"{self.num_features}, slope={self.slope}, synchronised={self.synchronised}"


class ABN(ActivatedNorm):
    """Batch norm, then leaky ReLU (slope 1: none): y = leaky_relu(xhat * weight + bias).

    `overwrite` activates in place; without it this is the usual BatchNorm2d and LeakyReLU, the
    reference for memory.
    """

    def __init__(
        self, channels: int, slope: float = LEAKY_SLOPE, *, overwrite: bool = False
    ) -> None:
        super().__init__(channels, slope)
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight, self.bias
        y = F.batch_norm(x, *self.count_batch(), *weights, self.training, MOMENTUM, self.eps)
        if self.slope == IDENTITY_SLOPE:
            return y
        return F.leaky_relu(y, self.slope, inplace=self.overwrite)


@contextmanager
def statistics_left_alone(module: nn.Module) -> Iterator[None]:
    """A context in which norms in training mode do not update their running statistics."""
    norms = [child for child in module.modules() if isinstance(child, ActivatedNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def norm_factory(norm_act: str) -> NormFactory:
    """The constructor `(channels, slope=0.01) -> norm` of a name in `NORMS`.

    Raises:
        ValueError: an unknown name.
    """
    if norm_act == "iabn_sync":
        return partial(InPlaceABN, synchronised=True)
    if norm_act == "iabn":
        return InPlaceABN
    if norm_act in ("abn", "std"):
        return partial(ABN, overwrite=norm_act == "abn")
    raise ValueError(f"norm_act must be one of {', '.join(NORMS)}, got {norm_act!r}")


def describe_norm(norm_act: str, device: torch.device, precision: str, learns: bool) -> str:
    """Describe which implementation of the norm runs on `device`, and why, for start-up.

    Args:
        precision: "fp32" or "bf16".
        learns: whether the norms' weights are trained.
    """
    if norm_act not in ("iabn_sync", "iabn"):
        return f"{norm_act} (torch's BatchNorm2d and leaky ReLU)"
    if device.type != "cuda":
        return f"{norm_act} (in place, torch's kernels)"
    if package_function is None:
        return f"{norm_act} (in place, torch's fused kernels)"
    if precision == "bf16":
        return f"{norm_act} (in place, torch's fused kernels: inplace-abn has no bf16)"
    if learns:
        return f"{norm_act} (in place, torch's fused kernels: inplace-abn would wait for the GPU)"
    return f"{norm_act} (in place, kernels of the inplace-abn package)"
