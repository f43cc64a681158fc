import doctest
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, StepLR

from utils import lr
from utils.lr import learning_rate

schedule = partial(
    learning_rate, lr=0.007, total_iterations=100, power=0.9, decay_step=30, decay_factor=0.1
)


def rates_of(make_scheduler, count):
    """The learning rates of so many steps with one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.007)
    scheduler, found = make_scheduler(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_poly_follows_the_closed_formula_and_torchs_scheduler():
    found = [schedule(i, policy="poly") for i in range(100)]
    assert found == pytest.approx([0.007 * (1 - i / 100) ** 0.9 for i in range(100)], rel=1e-12)
    torchs = rates_of(lambda sgd: LambdaLR(sgd, lambda i: (1 - i / 100) ** 0.9), 100)
    assert found == pytest.approx(torchs, rel=1e-12)


def test_poly_ends_at_zero_and_stays_there():
    assert [schedule(i, policy="poly") for i in (100, 101, 500)] == [0.0, 0.0, 0.0]


def test_step_decays_every_so_many_iterations():
    found = [schedule(i, policy="step") for i in range(65)]
    assert found == pytest.approx([0.007] * 30 + [0.0007] * 30 + [0.00007] * 5, rel=1e-12)
    assert found == pytest.approx(rates_of(lambda sgd: StepLR(sgd, 30, 0.1), 65), rel=1e-9)


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match="policy must be poly or step, got 'cosine'"):
        schedule(0, policy="cosine")


def test_the_example_runs():
    assert doctest.testmod(lr).attempted == 3
    assert doctest.testmod(lr).failed == 0
