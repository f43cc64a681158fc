"""The learning rate's course over a run, stepped once an iteration."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def make_scheduler(
    optimizer: Optimizer,
    policy: str,
    *,
    total_iterations: int,
    power: float,
    decay_step: int,
    decay_factor: float,
) -> LambdaLR:
    """The scheduler of a policy, with i the number of iterations done so far.

    "poly": lr * (1 - i / total_iterations) ** power, and 0 once they are all done.
    "step": lr * decay_factor ** (i // decay_step).

    Raises:
        ValueError: another policy.
    """
    if policy == "poly":
        return LambdaLR(optimizer, lambda i: max(0.0, 1 - i / total_iterations) ** power)
    if policy == "step":
        return LambdaLR(optimizer, lambda i: decay_factor ** (i // decay_step))
    raise ValueError(f"policy must be poly or step, got {policy!r}")


def go_to(scheduler: LambdaLR, iteration: int) -> None:
    """Set the rate to that after `iteration` iterations, which depends on nothing else."""
    scheduler.last_epoch, scheduler._step_count = iteration, iteration + 1
    rates = [
        base * course(iteration)
        for base, course in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
