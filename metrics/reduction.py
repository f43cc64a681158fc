"""Sums and gathers over the processes of a run; with one process they change nothing."""

from typing import Any

import torch
import torch.distributed as dist

from utils.distributed import host_group


def all_reduce(tensor: torch.Tensor, operation: str = "SUM", group: Any = None) -> torch.Tensor:
    """`tensor` reduced in place over all processes ("SUM", "MAX", ...).

    Without a group, tensors of the CPU go over that of the CPUs: NCCL takes CUDA tensors only.
    """
    if not _is_distributed():
        return tensor
    if group is None and not tensor.is_cuda:
        group = host_group()
    dist.all_reduce(tensor, op=getattr(dist.ReduceOp, operation), group=group)
    return tensor


def all_gather(values: list[Any], group: Any = None) -> list[Any]:
    """The lists of all processes, one after the other."""
    if not _is_distributed():
        return values
    gathered: list[list[Any]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(gathered, values, group=host_group() if group is None else group)
    return [value for part in gathered for value in part]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
