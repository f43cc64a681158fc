"""The folders that a run writes to: locked, checked before it starts, written atomically."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import run
from argparser import OptionError, parse_options
from dataset.base import DatasetNotFound
from places import hold_at_once
from utils import checkpoint as checkpoints
from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from utils.run_lock import HELD_VARIABLE, holding, lock_file


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def start(runs: Any, *flags: str) -> int:
    return run.main([*runs.flags, "--nproc", "1", *flags])


def files_below(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# Two of a name


@pytest.mark.parametrize("job", ["train", "test", "predict", "ablate"])
def test_folders_of_another_run_are_refused(
    runs: Any, data: Path, monkeypatch: pytest.MonkeyPatch, job: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs.fit()
    best = str(runs.checkpoints / "x_best.pth")
    grid = runs.folder / "grid.toml"
    grid.write_text("[flags]\ndefault = true\n[grid]\nlr = [0.1]\n")
    logs, out = runs.folder / "logs/streethazards", runs.folder / "out"
    flags: dict[str, tuple[str, ...]] = {
        "train": (),
        "test": ("--test",),
        "predict": ("--predict", str(data), "--out", str(out), "--ckpt_test", best),
        "ablate": ("--ablate", str(grid)),
    }
    locks = {
        "train": lock_file(runs.checkpoints / "x.pth"),
        "test": lock_file(logs / "x"),
        "predict": out / ".lock",
        "ablate": lock_file(logs / "x"),
    }
    before = files_below(runs.folder)
    capsys.readouterr()
    with holding([locks[job]], "the first"), monkeypatch.context() as patch:
        patch.delenv(HELD_VARIABLE)  # as another process sees it
        if job == "ablate":
            places = [*runs.flags[runs.flags.index("--name") :], "--ablate", str(grid)]
            assert run.main(places) == 2
        else:
            assert start(runs, *flags[job]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"is running already: process {os.getpid()} on " in line
    assert files_below(runs.folder) == before


@pytest.mark.parametrize("job", ["train", "nproc", "test", "given", "predict", "ablate"])
def test_it_is_refused_before_torch_is_imported(tmp_path: Path, job: str) -> None:
    """By the first process from before its own import on: two that start at once never meet."""
    grid, logs, ckpt = tmp_path / "grid.toml", tmp_path / "logs", str(tmp_path / "x.pth")
    grid.write_text(f"[flags]\nlogdir = '{logs}'\n[grid]\nlr = [0.1]\n")
    where = ["--logdir", str(logs), "--checkpoints", str(tmp_path / "checkpoints"), "--name", "x"]
    words = {
        "train": [*where, "--default"],
        "nproc": [*where, "--default", "--nproc", "2"],
        "test": [*where, "--test"],
        "given": [*where, "--test", "--ckpt_test", ckpt],
        "predict": ["--predict", ".", "--ckpt_test", ckpt, "--out", str(tmp_path / "out")],
        "ablate": ["--ablate", str(grid), "--name", "x"],
    }[job]
    with hold_at_once(words), pytest.MonkeyPatch.context() as patch:
        patch.delenv(HELD_VARIABLE)
        done = subprocess.run(
            [sys.executable, "-X", "importtime", run.__file__, *words],
            capture_output=True,
            text=True,
            check=False,
        )
    *imported, line = done.stderr.splitlines()
    assert done.returncode == 2
    assert re.search(rf"error: .* is running already: process {os.getpid()} on ", line)
    assert [one for one in imported if one.endswith("| argparser")]
    assert not [one for one in imported if one.split()[-1] == "torch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.toml"]


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "SLURM_NTASKS"])
def test_one_process_of_several_holds_nothing_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Or they would refuse each other; the first of them holds once they are joined."""
    monkeypatch.setenv(variable, "2")
    words = ["--test", "--logdir", str(tmp_path / "logs")]
    with hold_at_once(words), hold_at_once(words):
        assert list(tmp_path.iterdir()) == []


# Names and files that are no run's own


@pytest.mark.parametrize("ending", ["best", "previous", "damaged", "old1", "old12"])
def test_names_of_other_runs_files_are_refused(ending: str) -> None:
    with pytest.raises(OptionError, match="argument --name: must be a plain file name of 200"):
        parse_options(["--name", f"y_{ending}"])
    assert parse_options(["--name", f"y_{ending}x"]).name == f"y_{ending}x"


def test_names_that_leave_no_room_for_endings_are_refused() -> None:
    assert parse_options(["--name", "x" * 200])
    for name in ("x" * 201, "ü" * 101):
        with pytest.raises(OptionError, match="200 bytes at most"):
            parse_options(["--name", name])


def test_the_newest_checkpoint_of_an_older_run_is_not_overwritten(runs: Any, unbroken: Any) -> None:
    """Runs could be called x_best once."""
    state = unbroken.state()
    state["options"] = {**state["options"], "name": "x_best"}
    path = runs.checkpoints / "x_best.pth"
    save_checkpoint(path, state)
    before = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"x_best\.pth is the newest checkpoint of a run named"
    ):
        runs.fit()
    assert path.read_bytes() == before


def test_a_best_checkpoint_without_a_run_is_kept(runs: Any) -> None:
    runs.fit("--lr", "0.1")
    before = (runs.checkpoints / "x_best.pth").read_bytes()
    for name in ("x.pth", "x_previous.pth"):
        (runs.checkpoints / name).unlink()
    runs.fit()
    assert (runs.checkpoints / "x_old1_best.pth").read_bytes() == before
    assert runs.state()["iteration"] == 8


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to("/gone/x.pth")


@pytest.mark.parametrize("name", ["x.pth", "x_previous.pth", "x_best.pth"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_folder, "is a folder where a checkpoint was expected"),
        (make_pipe, "is a pipe or a device where a checkpoint was expected"),
        (make_link_to_nothing, "is a link to /gone/x.pth, which is not there; mount its disk"),
    ],
)
def test_checkpoint_names_that_are_not_files_are_refused(
    runs: Any, make: Any, words: str, name: str
) -> None:
    runs.checkpoints.mkdir(parents=True)
    make(runs.checkpoints / name)
    with pytest.raises(CheckpointError, match=words):
        runs.fit()


def test_links_to_another_disk_stay_links(runs: Any, unbroken: Any) -> None:
    disk = runs.folder / "disk"
    disk.mkdir()
    runs.checkpoints.mkdir(parents=True)
    for name in ("x.pth", "x_best.pth"):
        (runs.checkpoints / name).symlink_to(disk / name)
    for name in ("x.pth", "x_best.pth"):
        (disk / name).write_bytes((unbroken.checkpoints / name).read_bytes())
    runs.fit("--accept_changes", "--epochs", "3")
    for name in ("x.pth", "x_best.pth"):
        assert (runs.checkpoints / name).is_symlink()
        assert load_checkpoint(disk / name)["options"]["epochs"] in (2, 3)
    assert load_checkpoint(disk / "x.pth")["epoch"] == 3
    assert load_checkpoint(runs.checkpoints / "x_previous.pth")["epoch"] == 2


# Before the first step


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_missing_split_is_reported_before_the_first_step(
    runs: Any, data: Path, split: str
) -> None:
    shutil.copytree(data, runs.folder / "data")
    (found,) = (runs.folder / "data").rglob(f"{split}.odgt")
    found.unlink()
    with pytest.raises(DatasetNotFound, match=f"{split}.odgt is missing"):
        runs.fit("--data_root", str(runs.folder / "data"))
    assert files_below(runs.folder / "checkpoints") == files_below(runs.folder / "logs") == {}


def test_checkpoints_that_do_not_fit_on_the_disk_are_reported_before_the_first_step(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        checkpoints.shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=50_000)
    )
    words = r"3 of 0.0 MB and one while it is written, do not fit: 0.1 MB are free and 0.0 MB are"
    with pytest.raises(CheckpointError, match=words):
        runs.fit()
    monkeypatch.undo()
    assert files_below(runs.folder / "checkpoints") == {}


def test_start_up_reports_the_size_of_checkpoints(
    runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.fit()
    assert f"checkpoints: 0.1 MB in {runs.checkpoints} at most, " in capsys.readouterr().out


def test_an_impossible_folder_is_one_line(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (runs.folder / "file").touch()
    for flag in ("--checkpoints", "--logdir"):
        assert start(runs, flag, f"{runs.folder}/file") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "file/streethazards cannot be written to (Not a directory)" in line


# Written once, written whole


def test_newest_and_best_of_one_epoch_are_one_file(runs: Any) -> None:
    runs.fit("--epochs", "1")
    newest, best = (runs.checkpoints / name for name in ("x.pth", "x_best.pth"))
    assert newest.stat().st_ino == best.stat().st_ino
    content = best.read_bytes()
    assert load_checkpoint(best)["epoch"] == 1
    runs.fit("--epochs", "2", "--accept_changes", "--lr", "1e-9")  # no better for certain
    assert best.read_bytes() == content or load_checkpoint(best)["epoch"] == 2
    assert load_checkpoint(newest)["epoch"] == 2
    assert load_checkpoint(runs.checkpoints / "x_previous.pth")["epoch"] == 1


def without_time(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "environment"}


def test_the_same_test_twice_gives_the_same_results(runs: Any) -> None:
    """The first fits class_mean, the second finds it kept."""
    runs.fit()
    path = runs.folder / "logs/streethazards/x/results.json"
    found = []
    for _ in range(2):
        scores = "prototype,msp,entropy,class_mean"
        assert start(runs, "--test", "--score", scores, "--num_workers", "2") == 0
        found.append(json.dumps(without_time(json.loads(path.read_text()))))
        tables = (path.parent / "per_image.csv").read_bytes()
    assert found[0] == found[1]
    assert (path.parent / "per_image.csv").read_bytes() == tables


def test_the_same_prediction_twice_gives_the_same_bytes(runs: Any, data: Path) -> None:
    runs.fit()
    picture = next((data / "StreetHazards/test/images").rglob("*.png"))
    flags = ["--ckpt_test", str(runs.checkpoints / "x.pth"), "--predict", str(picture)]
    found = []
    for name in ("one", "other"):
        out = runs.folder / name
        assert run.main([*flags, "--out", str(out), "--nproc", "1", "--num_workers", "0"]) == 0
        found.append(files_below(out))
    assert found[0] == found[1]
    assert "predictions.json" in found[0]


def test_a_failed_start_leaves_no_run_and_no_loss(runs: Any) -> None:
    """A mistyped --ckpt_test, weights of another network, data that are not there."""
    runs.fit()
    assert start(runs, "--test") == 0
    logs = runs.folder / "logs"
    before = files_below(logs)
    torch.save({"model_state": {"other": torch.ones(1)}}, runs.folder / "other.pth")
    for flags in (
        ("--test", "--ckpt_test", "gone.pth"),
        ("--test", "--ckpt_test", str(runs.folder / "other.pth")),
        ("--test", "--data_root", "gone"),
        ("--data_root", "gone"),
    ):
        assert start(runs, *flags) == 2
        assert start(runs, "--name", "new", *flags) == 2
    # Within one second, event files are renamed; what they hold stays.
    assert sorted(files_below(logs).values()) == sorted(before.values())
    assert not (logs / "streethazards/new").exists()


def test_a_full_disk_keeps_the_earlier_results(
    runs: Any,
    files_of_at_most: Callable[[int], AbstractContextManager[None]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    runs.fit()
    assert start(runs, "--test") == 0
    results = runs.folder / "logs/streethazards/x/results.json"
    before = results.read_bytes()
    capfd.readouterr()
    with files_of_at_most(1000):
        code = start(runs, "--test")
    out, err = capfd.readouterr()
    assert code == 2
    assert "results.json could not be written (File too large)" in err.splitlines()[-1]
    assert "AUROC" in out  # told nevertheless
    assert results.read_bytes() == before


def test_restarts_leave_no_empty_logs(runs: Any) -> None:
    runs.fit()
    before = files_below(runs.folder / "logs")
    for _ in range(3):
        runs.fit()
    assert files_below(runs.folder / "logs") == before


def test_logs_that_cannot_be_written_end_no_training(
    runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = runs.trainer()
    logs = runs.folder / "logs/streethazards/x"

    def lose_the_folder(*_: object) -> None:
        if trainer.iteration == 3:
            shutil.rmtree(logs)
            logs.touch()  # or TensorBoard's writer would make it again

    trainer.model.register_forward_pre_hook(lose_the_folder)
    with trainer.logger:
        trainer.fit()
    assert runs.state()["iteration"] == 8
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert f"{logs} cannot be written to" in warnings[0]


def test_the_reader_of_the_output_may_exit(runs: Any) -> None:
    process = runs.start()
    assert process.stdout is not None
    process.stdout.close()
    with suppress(ValueError):
        process.communicate(timeout=120)
    assert process.wait(timeout=120) == 0
    assert runs.state()["iteration"] == 8
    assert (runs.folder / "logs/streethazards/x/results.json").is_file()


def test_a_name_outside_the_encoding_of_the_output(runs: Any) -> None:
    runs.fit("--name", "ü")
    command = [sys.executable, "-c", "import sys, run; sys.exit(run.main(sys.argv[1:]))"]
    done = subprocess.run(
        [*command, *runs.flags, "--name", "ü", "--lr", "9"],
        cwd=Path(run.__file__).parent,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "\\xfc.pth is of another run: --lr 0.007 there, 9.0 here" in done.stderr
