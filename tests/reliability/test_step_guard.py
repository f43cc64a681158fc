"""Steps that are not finite, against the same training without them."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from utils.errors import PansError
from utils.step_guard import StepGuard, Tally, check_row


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


def make_optimizer(network: nn.Module, **kind: bool) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, **kind
    )


def batches(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1)))


def train(network: nn.Module, guard: StepGuard, images: Sequence[torch.Tensor]) -> None:
    for image in images:
        loss = network(image).square().mean()
        loss.backward()
        guard.step(loss.detach())
        guard.optimizer.zero_grad()


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for name, value in expected.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found.state_dict()[name], value), name


def test_good_steps_are_those_of_torchs_sgd() -> None:
    guarded = make_network()
    plain = copy.deepcopy(guarded)
    train(guarded, StepGuard(make_optimizer(guarded, fused=True), guarded, None), batches(5))
    optimizer = make_optimizer(plain, foreach=False)
    for image in batches(5):
        optimizer.zero_grad()
        plain(image).square().mean().backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(guarded.state_dict()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("places", [(0,), (2,), (1, 2), (4,)])
def test_bad_steps_change_nothing(bad: float, places: tuple[int, ...]) -> None:
    good = batches(5)
    spoilt = list(good)
    for place in places:
        spoilt.insert(place, torch.full_like(good[0], bad))
    found, expected = make_network(), make_network()
    guards = [StepGuard(make_optimizer(net, fused=True), net, None) for net in (found, expected)]
    train(found, guards[0], spoilt)
    train(expected, guards[1], good)
    assert_same(found, expected)
    spoilt_tally, good_tally = (guard.read() for guard in guards)
    assert spoilt_tally.loss == good_tally.loss
    assert spoilt_tally.skipped == len(places)
    assert good_tally.skipped == 0


def test_a_loss_that_is_not_finite_is_enough() -> None:
    network = make_network()
    before = copy.deepcopy(network)
    guard = StepGuard(make_optimizer(network, fused=True), network, None)
    network(batches(1)[0]).square().mean().backward()
    guard.step(torch.tensor(math.inf))
    assert_same(network, before)
    assert math.isnan(guard.read().loss)


def test_rows_are_counted_over_readings() -> None:
    network = make_network()
    guard = StepGuard(make_optimizer(network, fused=True), network, None)
    good, bad = batches(1)[0], torch.full((3, 2, 4, 4), math.nan)
    train(network, guard, [bad, bad, bad, good, bad, bad])
    assert guard.read()[1:] == (5, 3)
    train(network, guard, [bad, good])
    assert guard.read()[1:] == (6, 3)  # two before the reading, one after it
    train(network, guard, [good])
    assert guard.read()[1:] == (6, 0)


def test_counts_come_back() -> None:
    network = make_network()
    guard = StepGuard(make_optimizer(network, fused=True), network, None)
    train(network, guard, [*batches(2), torch.full((3, 2, 4, 4), math.nan)])
    other = StepGuard(make_optimizer(network, fused=True), network, None)
    other.load_state_dict(guard.state_dict())
    assert other.read() == guard.read()


def test_gradients_are_clipped_to_the_norm() -> None:
    network = make_network()
    guard = StepGuard(torch.optim.SGD(network.parameters(), lr=1.0, fused=True), network, 0.5)
    before = copy.deepcopy(network)
    loss = 1000 * network(batches(1)[0]).square().mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    loss.backward()
    guard.step(loss.detach())
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert norm > 0.5
    for old, new, gradient in zip(
        before.parameters(), network.parameters(), gradients, strict=True
    ):
        torch.testing.assert_close(old - new, 0.5 * gradient / norm, rtol=1e-4, atol=1e-5)


def test_too_many_bad_steps_in_a_row_end_the_run() -> None:
    check_row(Tally(1.0, 9, 2), 3, 10, "x.pth is the last checkpoint")
    with pytest.raises(PansError, match="3 steps in a row up to step 10") as caught:
        check_row(Tally(1.0, 9, 3), 3, 10, "x.pth is the last checkpoint")
    assert "x.pth is the last checkpoint" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def spoil(trainer: Any, steps: set[int]) -> None:
    def spoil_input(model: nn.Module, images: tuple[torch.Tensor]) -> Any:
        spoilt = model.training and trainer.iteration in steps
        return (images[0] * math.nan,) if spoilt else images

    trainer.model.register_forward_pre_hook(spoil_input)


def test_training_continues_after_bad_steps_and_reports_them(runs: Any) -> None:
    trainer = runs.trainer()
    spoil(trainer, {1, 2, 6})
    with trainer.logger:
        trainer.fit()
    state = runs.state()["model_state"]
    assert all(bool(value.isfinite().all()) for value in state.values())
    events = EventAccumulator(str(runs.folder / "logs/streethazards/x")).Reload()
    skipped = [(event.step, event.value) for event in events.Scalars("train/skipped_steps")]
    assert skipped == [(2, 1), (3, 2), (4, 2), (5, 2), (6, 2), (7, 3), (8, 3)]
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert {step for step, loss in losses.items() if math.isnan(loss)} == {2, 3, 7}


def test_a_first_step_that_is_bad_keeps_the_statistics_of_loaded_weights(runs: Any) -> None:
    runs.fit("--name", "first")
    weights = runs.state("first")["model_state"]
    torch.save({"model_state": weights}, runs.folder / "weights.pth")
    trainer = runs.trainer("--ckpt", str(runs.folder / "weights.pth"))
    trainer._prepare_training()
    spoil(trainer, {0})
    trainer.model.train()
    trainer.train_step(iter(trainer.loader))
    found = trainer.model.state_dict()
    for name in (
        "body.mod1.bn1.running_mean",
        "body.mod1.bn1.running_var",
        "body.mod1.conv1.weight",
    ):
        assert torch.equal(found[name], weights[name]), name
    assert not torch.equal(found["body.mod1.bn1.running_mean"], torch.zeros(16))


def test_training_ends_after_consecutive_bad_steps(runs: Any) -> None:
    trainer = runs.trainer("--max_bad_steps", "2")
    spoil(trainer, {5, 6})
    with (
        trainer.logger,
        pytest.raises(PansError, match=r"up to step 7 .* \S+x\.pth is the last"),
    ):
        trainer.fit()
    assert runs.state()["iteration"] == 4
