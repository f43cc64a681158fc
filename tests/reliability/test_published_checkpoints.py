"""Resuming a run of the published code: epoch, momentum of every parameter, schedule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import run
from tests.reliability.tiny import tiny_network
from utils.checkpoint import CheckpointError, load_checkpoint


def published(own: dict[str, Any], **schedule: Any) -> dict[str, Any]:
    """A checkpoint of this code in the published structure, made by torch's own classes."""
    model = tiny_network()
    model.load_state_dict(own["model_state"])
    groups = [{"params": list(part.parameters())} for part in (model.body, model.head, model.cls)]
    optimizer = torch.optim.SGD(groups, 0.007, momentum=0.9, weight_decay=1e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / 8) ** 0.9)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    buffers = own["optimizer_state"]["state"]
    for number, parameter in enumerate(model.parameters()):
        momentum = buffers[number]["momentum_buffer"]
        optimizer.state[parameter]["momentum_buffer"] = momentum.clone()
    return {
        "epoch": 0,  # the index of the epoch that is done
        "model_state": {f"module.{name}": value for name, value in own["model_state"].items()},
        "optimizer_state": optimizer.state_dict(),
        "scheduler_state": {**scheduler.state_dict(), "lr_lambdas": [None] * 3, **schedule},
        "best_score": np.float64(0.25),
        "trainer_state": {},
    }


def after_one_epoch(unbroken: Any) -> dict[str, Any]:
    own = unbroken.state("x_previous")
    assert (own["epoch"], own["iteration"]) == (1, 4)
    return own


def test_a_published_run_resumes_with_epoch_momentum_and_schedule(
    runs: Any, unbroken: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    own = after_one_epoch(unbroken)
    path = runs.folder / "published.pth"
    torch.save(published(own), path)
    trainer = runs.trainer("--ckpt", str(path))
    trainer._prepare_training()
    # The best of that run is not among this run's files, so that this run's best is kept.
    assert (trainer.epoch, trainer.iteration, trainer.best_score) == (1, 4, -1.0)
    for number, parameter in enumerate(trainer.model.parameters()):
        expected = own["optimizer_state"]["state"][number]["momentum_buffer"]
        assert torch.equal(trainer.optimizer.state[parameter]["momentum_buffer"], expected)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.007 * 0.5**0.9)
    printed = capsys.readouterr().out
    assert f"continues {path}: epoch 2 of 2, 0 of 4 steps done\n" in printed
    assert f"note: {path} tells no flags of its run: those of this command hold\n" in printed
    # The rest of the run is that of our own checkpoint, without the dropout's generator.
    torch.save({**own, "processes": []}, runs.folder / "own.pth")
    runs.fit("--ckpt", str(path), "--name", "there")
    runs.fit("--ckpt", str(runs.folder / "own.pth"), "--name", "here")
    for name, value in runs.state("there")["model_state"].items():
        assert torch.equal(value, runs.state("here")["model_state"][name]), name
    assert (runs.checkpoints / "there_best.pth").is_file()


def test_norms_that_are_frozen_here_leave_the_others_their_momentum(
    runs: Any, unbroken: Any
) -> None:
    own = after_one_epoch(unbroken)
    torch.save(published(own), runs.folder / "published.pth")
    trainer = runs.trainer("--ckpt", str(runs.folder / "published.pth"))
    object.__setattr__(trainer.options, "fix_bn", True)
    trainer._prepare_training()
    for number, parameter in enumerate(trainer.model.parameters()):
        if parameter.requires_grad:
            expected = own["optimizer_state"]["state"][number]["momentum_buffer"]
            assert torch.equal(trainer.optimizer.state[parameter]["momentum_buffer"], expected)


def test_another_number_of_steps_per_epoch_is_refused_unless_accepted(
    runs: Any, unbroken: Any
) -> None:
    path = runs.folder / "published.pth"
    torch.save(published(after_one_epoch(unbroken), last_epoch=8), path)
    with pytest.raises(CheckpointError, match="8 steps an epoch there, 4 here"):
        runs.fit("--ckpt", str(path))
    trainer = runs.trainer("--ckpt", str(path), "--accept_changes")
    trainer._prepare_training()
    assert (trainer.epoch, trainer.iteration) == (1, 4)


@pytest.mark.parametrize("part", ["optimizer_state", "scheduler_state", "epoch"])
def test_a_corrupt_training_state_is_one_line(runs: Any, unbroken: Any, part: str) -> None:
    path = runs.folder / "published.pth"
    torch.save(published(after_one_epoch(unbroken)) | {part: None}, path)
    with pytest.raises(CheckpointError, match=r"does not fit .* --restart --ckpt") as caught:
        runs.fit("--ckpt", str(path))
    assert str(caught.value).count("\n") == 0
    trainer = runs.trainer("--ckpt", str(path), "--restart")
    trainer._prepare_training()
    assert (trainer.epoch, trainer.iteration) == (0, 0)


def test_a_run_completed_elsewhere_is_tested_under_its_new_name(runs: Any, unbroken: Any) -> None:
    path = unbroken.checkpoints / "x.pth"
    trainer = runs.fit("--ckpt", str(path), "--name", "second")
    assert trainer.epoch == 2
    results = trainer.test()
    assert results["checkpoint"] == str(runs.checkpoints / "second.pth")
    found, expected = runs.state("second"), load_checkpoint(path)
    for name, value in expected["model_state"].items():
        assert torch.equal(found["model_state"][name], value), name


@pytest.mark.parametrize("given", ["first", "first.pth"])
def test_a_checkpoint_is_found_by_name_in_the_folder_of_the_data_set(
    runs: Any, unbroken: Any, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.checkpoints.mkdir(parents=True)
    torch.save(after_one_epoch(unbroken), runs.checkpoints / "first.pth")
    trainer = runs.trainer("--ckpt", given)
    trainer._prepare_training()
    assert (trainer.epoch, trainer.iteration) == (1, 4)
    results = runs.trainer("--ckpt_test", given).test()
    assert results["checkpoint"] == str(runs.checkpoints / "first.pth")
    monkeypatch.chdir(runs.folder)
    torch.save(published(after_one_epoch(unbroken)), runs.folder / given)  # a path comes first
    assert runs.trainer("--ckpt_test", given).test()["checkpoint"] == given


def test_restart_takes_the_name_of_the_file_it_sets_aside(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.fit()
    for restarts in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        trainer = runs.trainer("--restart", "--ckpt", "x")
        trainer._prepare_training()
        weights = runs.state("x_old1")["model_state"]
        found = trainer.model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert not list(runs.checkpoints.glob("x_old2*"))


@pytest.mark.usefixtures("alone")
def test_pictures_are_predicted_by_the_name_of_a_checkpoint(runs: Any, data: Path) -> None:
    runs.fit()
    places = ["--checkpoints", str(runs.folder / "checkpoints"), "--out", str(runs.folder / "out")]
    pictures = ["--predict", f"{data}/StreetHazards/test/images", "--ckpt_test", "x"]
    assert run.main([*pictures, *places, "--nproc", "1", "--num_workers", "0"]) == 0
    assert len(list((runs.folder / "out/classes").rglob("*.png"))) == 3


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("flags", [("--ckpt", "gone"), ("--test", "--ckpt_test", "gone")])
def test_a_missing_checkpoint_is_searched_for_in_both_places(
    runs: Any, capsys: pytest.CaptureFixture[str], flags: Any
) -> None:
    assert run.main([*runs.flags, "--nproc", "1", *flags]) == 2
    folder: Path = runs.checkpoints
    places = f"gone (also looked for {folder}/gone, {folder}/gone.pth)"
    assert f"error: there is no checkpoint {places}; check its name" in capsys.readouterr().err
