"""What is not training meets the checkpoints of a run: its test again, pictures and export."""

from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run


def points(runs: Any) -> dict[str, list[int]]:
    """The steps of every scalar."""
    folder = str(runs.folder / "logs/streethazards/x")
    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_a_test_that_is_run_again_takes_the_place_of_the_first(runs: Any) -> None:
    assert run.main([*runs.flags, "--nproc", "1"]) == 0
    once = points(runs)
    assert once["test/AUROC"] == [8]
    assert run.main([*runs.flags, "--nproc", "1"]) == 0
    assert points(runs) == once
    for _ in range(2):
        assert run.main([*runs.flags, "--nproc", "1", "--test"]) == 0
    again = points(runs)
    assert again["test/AUROC"] == [0]  # where a test without training stands
    training = {tag: steps for tag, steps in once.items() if tag.startswith(("train", "val"))}
    assert training["train/loss"] == list(range(1, 9))
    assert {tag: steps for tag, steps in again.items() if tag in training} == training
