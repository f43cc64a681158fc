"""What is not training meets the checkpoints of a run: its test again, pictures and export."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import predict
import run
from tests.reliability.tiny import tiny_network
from utils.checkpoint import load_checkpoint
from utils.interruption import Interrupted


def tiny_state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return tiny_network().state_dict()


def points(runs: Any) -> dict[str, list[int]]:
    """The steps of every scalar."""
    folder = str(runs.folder / "logs/streethazards/x")
    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.usefixtures("alone")
def test_a_repeated_test_replaces_the_first(runs: Any) -> None:
    assert run.main([*runs.flags, "--nproc", "1"]) == 0
    once = points(runs)
    assert once["test/AUROC"] == [8]
    assert run.main([*runs.flags, "--nproc", "1"]) == 0
    assert points(runs) == once
    for _ in range(2):
        assert run.main([*runs.flags, "--nproc", "1", "--test"]) == 0
    again = points(runs)
    assert again["test/AUROC"] == [8]  # the step of the weights
    training = {tag: steps for tag, steps in once.items() if tag.startswith(("train", "val"))}
    assert training["train/loss"] == list(range(1, 9))
    assert {tag: steps for tag, steps in again.items() if tag in training} == training


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("flags", "file"),
    [((), "x.pth"), (("--test_weights", "best"), "x_best.pth"), (("--ckpt_test",), "other.pth")],
)
def test_the_last_weights_are_tested_unless_others_are_requested(
    runs: Any, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], file: str
) -> None:
    runs.fit()
    # Weights that differ from one another, whichever epoch was the best.
    (runs.checkpoints / "x_best.pth").unlink()  # one file with the checkpoint of its epoch
    shutil.copy(runs.checkpoints / "x_previous.pth", runs.checkpoints / "x_best.pth")
    other = runs.folder / "other.pth"
    torch.save({"model_state": tiny_state(3)}, other)
    flags = (*flags, str(other)) if file == "other.pth" else flags
    path = other if file == "other.pth" else runs.checkpoints / file
    trainer = runs.trainer(*flags)
    results = trainer.test()
    tested, weights = trainer.model.state_dict(), load_checkpoint(path)["model_state"]
    assert all(torch.equal(tested[name], weights[name]) for name in weights)
    assert results["checkpoint"] == str(path)
    epochs = {"x.pth": 2, "x_best.pth": 1}.get(file)
    line = f"tests {path}" + (f", after {epochs} of 2 epochs" if epochs else "")
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("alone")
def test_a_training_ends_with_the_test_of_its_last_weights(
    runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*runs.flags, "--nproc", "1"]) == 0
    results = json.loads((runs.folder / "logs/streethazards/x/results.json").read_text())
    assert results["checkpoint"] == str(runs.checkpoints / "x.pth")
    assert (runs.checkpoints / "x_best.pth").is_file()
    assert f"tests {runs.checkpoints}/x.pth, after 2 of 2 epochs\n" in capsys.readouterr().out


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("alone")
def test_jobs_other_than_training_do_not_change_a_run(
    runs: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's exporter takes half a minute, and tests/end_to_end/test_predict.py tests it.
    monkeypatch.setattr(predict, "export_onnx", lambda network, score, path, _: path.touch())
    with pytest.raises(Interrupted):
        runs.stop_at(1, terminate, "--batch_size", "8", "--val_interval", "1")
    (runs.checkpoints / "x.pth").write_bytes(b"PK")  # what a run would look at, but not a test
    before = {path.name: path.read_bytes() for path in runs.checkpoints.iterdir()}
    # Flags with which the run would not resume, or would start from scratch.
    flags = ["--nproc", "1", "--lr", "0.5", "--batch_size", "4", "--restart"]
    flags += ["--ckpt_test", str(runs.checkpoints / "x_best.pth")]
    images, out = f"{data}/StreetHazards/test/images", f"{runs.folder}/out"
    made = {
        runs.folder / "logs/streethazards/x/results.json": ["--test"],
        runs.folder / "out/predictions.json": ["--predict", images, "--out", out],
        runs.folder / "out.onnx": ["--export", "onnx", "--out", f"{out}.onnx"],
    }
    for path, words in made.items():
        assert run.main([*runs.flags, *flags, *words]) == 0
        assert path.is_file()
    assert {path.name: path.read_bytes() for path in runs.checkpoints.iterdir()} == before


def test_a_training_prints_one_line_per_report_and_per_epoch(
    runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.fit("--val_interval", "2")
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()[-2:]
    assert re.fullmatch(r"epoch 1/2  loss \d\.\d{3}  \d\d:\d\d left", first)
    mean_iou = f"{runs.state()['best_score']:.3f}"
    assert re.fullmatch(
        rf"epoch 2/2  loss \d\.\d{{3}}  val mIoU {mean_iou} \(best {mean_iou}\)", second
    )
    reports = [line for line in printed.err.splitlines() if "loss" in line]
    assert len(reports) == 8
    assert re.match(
        r"epoch 1/2  2/4  loss \S+  lr \S+  images_per_second \S+  \S+ left", reports[1]
    )
