import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from utils.scheduler import go_to, make_scheduler


def scheduler(policy: str, lr: float = 0.007, total: int = 100) -> LambdaLR:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return make_scheduler(
        optimizer, policy, total_iterations=total, power=0.9, decay_step=30, decay_factor=0.1
    )


def rates(made: LambdaLR, count: int) -> list[float]:
    """The learning rate of each of the next `count` steps."""
    found = []
    for _ in range(count):
        found.append(float(made.get_last_lr()[0]))
        made.optimizer.step()
        made.step()
    return found


def test_poly_follows_the_closed_formula() -> None:
    expected = [0.007 * (1 - i / 100) ** 0.9 for i in range(100)]
    assert rates(scheduler("poly"), 100) == pytest.approx(expected, rel=1e-12)


def test_poly_ends_at_zero_and_stays_there() -> None:
    assert rates(scheduler("poly", total=3), 6)[3:] == [0.0, 0.0, 0.0]


def test_step_decays_every_so_many_iterations() -> None:
    expected = [0.007] * 30 + [0.0007] * 30 + [0.00007] * 5
    assert rates(scheduler("step"), 65) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("policy", ["poly", "step"])
def test_restored_scheduler_goes_on_where_it_was(policy: str) -> None:
    unbroken = rates(scheduler(policy), 80)
    first = scheduler(policy)
    rates(first, 40)
    second = scheduler(policy)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, 40) == unbroken[40:]


def test_other_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="policy must be poly or step, got 'cosine'"):
        scheduler("cosine")


@pytest.mark.parametrize("policy", ["poly", "step"])
def test_going_to_an_iteration_is_stepping_there(policy: str) -> None:
    stepped, jumped = scheduler(policy), scheduler(policy)
    rates(stepped, 64)
    go_to(jumped, 64)
    assert rates(jumped, 36) == rates(stepped, 36)
