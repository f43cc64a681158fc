"""Sums and gathers over the processes of a run; with one process they change nothing."""

from typing import Any

import torch
import torch.distributed as dist


def all_reduce(tensor: torch.Tensor, operation: str = "SUM", group: Any = None) -> torch.Tensor:
    """`tensor` reduced over all processes ("SUM", "MAX", ...), on its own device.

    May work in place. NCCL takes CUDA tensors only, so a CPU tensor travels through the GPU.
    """
    if not _is_distributed():
        return tensor
    travelling = tensor.cuda() if dist.get_backend(group) == "nccl" else tensor
    dist.all_reduce(travelling, op=getattr(dist.ReduceOp, operation), group=group)
    return travelling.to(tensor.device)


def all_gather(values: list[Any], group: Any = None) -> list[Any]:
    """The lists of all processes, one after the other."""
    if not _is_distributed():
        return values
    gathered: list[list[Any]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(gathered, values, group=group)
    return [value for part in gathered for value in part]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
