"""The learning rate schedule, as a function of the iteration."""


def learning_rate(
    iteration: int,
    *,
    lr: float,
    policy: str,
    total_iterations: int,
    power: float,
    decay_step: int,
    decay_factor: float,
) -> float:
    """The learning rate after `iteration` steps, as a function of the iteration alone.

    "poly": lr * (1 - iteration / total_iterations) ** power, and 0 from total_iterations on.
    "step": lr * decay_factor ** (iteration // decay_step).

    >>> from functools import partial
    >>> poly = partial(learning_rate, lr=0.01, policy="poly", total_iterations=100, power=0.9,
    ...                decay_step=1, decay_factor=1.0)
    >>> round(poly(0), 6), round(poly(50), 6), poly(100)
    (0.01, 0.005359, 0.0)

    Raises:
        ValueError: another policy.
    """
    if policy == "poly":
        return lr * max(0.0, 1 - iteration / total_iterations) ** power
    if policy == "step":
        return lr * decay_factor ** (iteration // decay_step)
    raise ValueError(f"policy must be poly or step, got {policy!r}")
