"""What is not training meets the checkpoints of a run: its test again, pictures and export."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import predict
import run
from utils.interruption import Interrupted


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


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("alone")
def test_what_does_not_train_leaves_a_run_alone(
    runs: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's exporter takes half a minute, and tests/end_to_end/test_predict.py tests it.
    monkeypatch.setattr(predict, "export_onnx", lambda network, score, path, _: path.touch())
    with pytest.raises(Interrupted):
        runs.stop_at(1, terminate, "--batch_size", "8", "--val_interval", "1")
    (runs.checkpoints / "x.pth").write_bytes(b"PK")  # what a run would look at, but not a test
    before = {path.name: path.read_bytes() for path in runs.checkpoints.iterdir()}
    # Flags with which the run would not be continued, or would begin anew.
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


def test_a_training_prints_a_line_a_report_and_one_an_epoch(
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
