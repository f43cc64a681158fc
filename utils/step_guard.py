"""Skips steps with non-finite loss or gradients; they are counted on the device."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from utils.distributed import reduce_over_processes, sum_over_processes
from utils.errors import PansError


class Tally(NamedTuple):
    """Statistics of the steps since the last reading.

    Attributes:
        loss: mean loss of all processes over the steps that were not skipped; NaN if none.
        skipped: number of skipped steps in the whole run.
        longest_row: largest number of consecutive skipped steps since the last reading.
    """

    loss: float
    skipped: int
    longest_row: int


class StepGuard:
    """Steps an SGD optimizer, except for steps with non-finite values.

    A skipped step leaves weights, momentum and the norms' running statistics (which a NaN reaches
    in the forward pass already) unchanged on all processes. Whether a step was skipped stays on
    the device until `read` is called, so that no step waits for the host.

    Args:
        optimizer: `torch.optim.SGD(..., fused=True)`; the fused kernel can skip a step.
        model: the network whose running statistics are guarded.
        clip_norm: maximum total L2 norm of the gradients; None does not clip.
    """

    def __init__(
        self, optimizer: torch.optim.SGD, model: nn.Module, clip_norm: float | None
    ) -> None:
        self.optimizer, self.clip_norm = optimizer, clip_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.keep_statistics_of_now()
        device = self.parameters[0].device
        self.loss_sum = torch.zeros((), device=device)
        self.taken, self.skipped, self.row, self.longest_row = torch.zeros(
            4, dtype=torch.int64, device=device
        ).unbind()
        start_momentum_at_zero(optimizer)

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Step the optimizer if `loss`, 0-d, and the gradients are finite on every process."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        good = _on_all_processes(norm.isfinite() & loss.isfinite())
        if self.clip_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # read by step
        self.optimizer.step()
        self._restore_statistics_unless(good)
        self.loss_sum += torch.where(good, loss, 0)
        self.taken += good
        self.skipped += ~good
        self.row.copy_(torch.where(good, 0, self.row + 1))
        self.longest_row.copy_(torch.maximum(self.longest_row, self.row))

    def keep_statistics_of_now(self) -> None:
        """Accept the norms' current running statistics as good, as after loading them."""
        self.kept_statistics = torch.cat([buffer.flatten() for buffer in self.statistics])

    def _restore_statistics_unless(self, good: Tensor) -> None:
        before = self.kept_statistics
        self.keep_statistics_of_now()
        self.kept_statistics = torch.where(good, self.kept_statistics, before)
        sizes = [buffer.numel() for buffer in self.statistics]
        parts = self.kept_statistics.split(sizes)
        torch._foreach_copy_(
            self.statistics,
            [part.view_as(buffer) for part, buffer in zip(parts, self.statistics, strict=True)],
        )

    def read(self) -> Tally:
        """Read and reset the statistics; to be called by every process.

        Waits once for the device.
        """
        losses = sum_over_processes(self.loss_sum / self.taken)
        numbers = torch.stack([losses.double(), self.skipped.double(), self.longest_row.double()])
        loss, skipped, longest_row = numbers.tolist()
        if dist.is_initialized():
            loss /= dist.get_world_size()
        self.loss_sum.zero_()
        self.taken.zero_()
        self.longest_row.copy_(self.row)  # a series of skipped steps continues
        return Tally(loss, int(skipped), int(longest_row))

    def state_dict(self) -> dict[str, float]:
        """The counts and the sum of losses of this process; waits for the device."""
        names = ("loss_sum", "taken", "skipped", "row", "longest_row")
        return {name: getattr(self, name).item() for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            getattr(self, name).fill_(value)


def check_row(tally: Tally, limit: int, step: int, advice: str) -> None:
    """Raise if `limit` consecutive steps were skipped.

    Raises:
        PansError: with `advice`, which names the last good checkpoint.
    """
    if tally.longest_row >= limit:
        raise PansError(
            f"{tally.longest_row} steps in a row up to step {step} had a loss or gradients that "
            f"are not finite (--max_bad_steps {limit}); {advice}; check --lr, "
            "--clip_grad_norm, --precision fp32 and the images of these steps"
        )


def start_momentum_at_zero(optimizer: torch.optim.Optimizer) -> None:
    """Initialise the momentum of every parameter that has none yet."""
    # SGD's first step sets the buffer to the gradient: 0.9 * 0 + gradient is the same number, and
    # a skipped first step does not leave the kernel's buffer uninitialised.
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            state.setdefault("momentum_buffer", torch.zeros_like(parameter))


def _on_all_processes(good: Tensor) -> Tensor:
    """All-reduce (and) of `good`, 0-d bool; stays on the device."""
    if not dist.is_initialized():
        return good
    return reduce_over_processes(good.to(torch.int32), "MIN").bool()
