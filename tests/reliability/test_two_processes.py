"""What two processes have in common, and what differs from one."""

import json
from pathlib import Path
from typing import Any

import torch

from dataset.demo.writer import write_demo

# The second process's gradients are NaN in two steps. Both keep what their weights were before
# every step.
SPOILT = """
import os, sys, tiny, torch
from modules import segmentation

RANK = os.environ.get("RANK", "0")

history = []

class Spoilt(tiny.SegmentationModel):
    def features(self, images):
        if not self.training and history:
            torch.save(history, os.path.join(os.path.dirname(__file__), RANK + ".pth"))
        return super().features(images)

    def forward(self, images):
        if self.training:
            weight, step = self.body.mod1.conv1.weight, len(history)
            history.append(weight.detach().clone())
            if RANK == "1" and step in (2, 5):
                weight.register_hook(lambda gradient: self.spoil(gradient, step))
        return super().forward(images)

    def spoil(self, gradient, step):
        return gradient * float("nan") if len(history) == step + 1 else gradient

segmentation.SegmentationModel = Spoilt
tiny.__file__ = __file__
sys.exit(tiny.main())
"""
ONE = ("--nproc", "1", "--batch_size", "2")
TWO = ("--nproc", "2", "--batch_size", "1")


def finish(runs: Any, *flags: str, program: str = "") -> None:
    process = runs.start(*flags, program=program)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_a_nan_gradient_in_one_process_makes_both_skip_the_step(runs: Any) -> None:
    finish(runs, *TWO, program=SPOILT)
    first, second = (torch.load(runs.folder / f"{rank}.pth") for rank in (0, 1))
    assert len(first) == len(second) == 8
    for step in range(8):
        assert torch.equal(first[step], second[step]), step
    changed = [step for step in range(7) if not torch.equal(first[step], first[step + 1])]
    assert changed == [0, 1, 3, 4, 6]
    counts = [process["guard"]["skipped"] for process in runs.state()["processes"]]
    assert counts == [2, 2]
    assert all(bool(value.isfinite().all()) for value in runs.state()["model_state"].values())
    assert runs.points("train/skipped_steps")[-1] == (8, 2)


# Every step is one at which the processes agree.
AGREEING = """
import sys, tiny, utils.interruption

utils.interruption._SECONDS_BETWEEN_CHECKS = 0
tiny.__file__ = __file__
sys.exit(tiny.main())
"""


def test_a_process_that_skips_an_image_polls_as_often_as_the_other(
    runs: Any, tmp_path: Path
) -> None:
    write_demo(tmp_path / "data", train=4, validation=4, test=2, size=(96, 64), seed=1)
    first = min((tmp_path / "data/StreetHazards").glob("**/images/validation/**/*.png"))
    first.write_bytes(b"no picture")
    flags = ("--data_root", str(tmp_path / "data"), "--skip_bad_files", "--timeout", "30")
    finish(runs, *TWO, *flags, program=AGREEING)
    assert runs.state()["iteration"] == 4


def results(runs: Any, name: str) -> dict[str, Any]:
    """The figures of a run's test; how long it took and under which name do not count."""
    path = runs.folder / f"logs/streethazards/{name}/results.json"
    found = json.loads(path.read_text())
    return {key: found[key] for key in ("AUROC", "AUPR", "FPR95", "Mean IoU")}


def test_the_same_seed_gives_the_same_numbers_with_as_many_processes(runs: Any) -> None:
    for processes in (ONE, TWO):
        for time in ("once", "twice"):
            finish(runs, "--deterministic", *processes, "--name", f"{processes[1]}{time}")
        once, twice = (runs.state(f"{processes[1]}{time}") for time in ("once", "twice"))
        assert_same_weights(once, twice)
        assert once["best_score"] == twice["best_score"]
        assert results(runs, f"{processes[1]}once") == results(runs, f"{processes[1]}twice")
    one, two = runs.state("1once"), runs.state("2once")
    # As many images in a step, but drawn in another order, and other dropout.
    assert one["steps_per_epoch"] == two["steps_per_epoch"] == 4
    name = "body.mod1.conv1.weight"
    assert not torch.equal(one["model_state"][name], two["model_state"][name])


def assert_same_weights(one: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in one["model_state"].items():
        assert torch.equal(other["model_state"][key], value), key
