"""The learning rate's course over a run, stepped once an iteration."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR


def make_scheduler(
    optimizer: Optimizer,
    policy: str,
    *,
    total_iterations: int,
    power: float,
    decay_step: int,
    decay_factor: float,
) -> LRScheduler:
    """The scheduler of a policy, with i the number of iterations done so far.

    "poly": lr * (1 - i / total_iterations) ** power, and 0 once they are all done.
    "step": lr * decay_factor ** (i // decay_step).

    Raises:
        ValueError: another policy.
    """
    if policy == "poly":
        return LambdaLR(optimizer, lambda i: max(0.0, 1 - i / total_iterations) ** power)
    if policy == "step":
        return StepLR(optimizer, decay_step, decay_factor)
    raise ValueError(f"policy must be poly or step, got {policy!r}")
