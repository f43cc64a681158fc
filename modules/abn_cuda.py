"""In-place activated batch norm on CUDA, with the fused kernels of torch's SyncBatchNorm.

Each pass over the data is one kernel: `batch_norm_stats` and `batch_norm_elemt` forward, the leaky
ReLU's two, `batch_norm_backward_reduce` and `batch_norm_backward_elemt` backward. They accept data
in half precision with float32 statistics, in any memory layout. The host never waits.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPS = 1e-5
MOMENTUM = 0.1
IDENTITY_SLOPE = 1.0


@lru_cache(maxsize=256)
def _count(values: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A (1,) tensor of a number, cached because every step needs the same ones."""
    with torch.inference_mode(False):  # an inference tensor could not be saved for backward
        return torch.full((1,), values, dtype=dtype, device=device)


def _gather(mean: Tensor, inv_std: Tensor, count: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """All-gather (C,), (C,), (1,) to (P, C), (P, C), (P, 1) of the group's P processes."""
    own = torch.cat([mean, inv_std, count])
    everyone = own.new_empty(dist.get_world_size(group) * own.numel())
    dist.all_gather_into_tensor(everyone, own, group=group)
    sections = [mean.numel(), mean.numel(), 1]
    return list(everyone.view(-1, own.numel()).split(sections, dim=1))


def _batch_statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of the group's batches; the running ones are updated.

    Returns:
        (C,) mean and 1 / sqrt(var + EPS), var biased; (P,) int32 values per channel by process.
    """
    mean, inv_std = torch.batch_norm_stats(x, EPS)
    wide, values = mean.dtype, x.numel() // x.shape[1]
    parts = [mean[None], inv_std[None], _count(values, wide, x.device)]
    counts = _count(values, torch.int32, x.device)
    if group is not None:
        parts = _gather(mean, inv_std, parts[2], group)
        counts = parts[2].flatten().to(torch.int32)
    # The kernel requires statistics and counts of one type.
    running = running_mean.to(wide), running_var.to(wide)
    mean, inv_std = torch.batch_norm_gather_stats_with_counts(
        x, parts[0], parts[1], *running, MOMENTUM, EPS, parts[2].flatten()
    )
    if running_mean.dtype != wide:
        running_mean.copy_(running[0])
        running_var.copy_(running[1])
    return mean, inv_std, counts


def before_activation(y: Tensor, grad_y: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """The leaky ReLU's input, recovered from its output `y`, and the gradient there."""
    if slope == IDENTITY_SLOPE:
        return y, grad_y
    return F.leaky_relu(y, 1 / slope), torch.ops.aten.leaky_relu_backward(grad_y, y, slope, True)


class FusedInPlaceABN(torch.autograd.Function):
    """Forward overwrites its input; backward needs only the output and (C,) vectors.

    Arguments, result and formula are those of `modules.abn.inplace_abn`, for CUDA tensors. With
    several processes, one all-gather exchanges statistics and one all-reduce gradient sums.
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
        gamma, counts = weight.abs() + EPS, None
        if training:
            mean, inv_std, counts = _batch_statistics(x, running_mean, running_var, group)
        else:
            mean, inv_std = running_mean.to(wide), torch.rsqrt(running_var.to(wide) + EPS)
        # The kernel reads each value before it overwrites it, so x may be its output.
        torch.ops.aten.batch_norm_elemt.out(x, gamma, bias, mean, inv_std, EPS, out=x)
        if slope != IDENTITY_SLOPE:
            F.leaky_relu_(x, slope)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, weight, gamma, bias, inv_std, counts)
        ctx.slope, ctx.group = slope, group
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, gamma, bias, inv_std, counts = ctx.saved_tensors
        z, grad_z = before_activation(y, grad_y, ctx.slope)
        # The kernels compute with (z - mean) * inverse deviation. With bias as mean and 1 / gamma
        # this is xhat; the weight's sign accounts for d|weight| / d weight.
        signed = torch.copysign(gamma, weight)
        inverse, scale = signed.reciprocal(), gamma * signed * inv_std
        needed = True, ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        sum_grad, sum_grad_z, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad_z, z, bias, inverse, scale, *needed
        )
        if counts is None:  # running statistics have no gradient
            sum_grad, sum_grad_z = torch.zeros_like(bias), torch.zeros_like(bias)
            counts = _count(1, torch.int32, z.device)
        elif ctx.group is not None:
            sums = torch.cat([sum_grad, sum_grad_z])
            dist.all_reduce(sums, group=ctx.group)
            sum_grad, sum_grad_z = sums.chunk(2)
        grad_x = torch.batch_norm_backward_elemt(
            grad_z, z, bias, inverse, scale, sum_grad, sum_grad_z, counts
        )
        return grad_x, grad_weight, grad_bias, *[None] * 5
