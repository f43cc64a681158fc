"""A run that is stopped and started again ends as one that never was."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from argparser import OptionError, flags_that_affect, parse_options
from resume import RunSize, position_in, set_aside
from utils.checkpoint import CheckpointError, load_checkpoint, previous_path, save_checkpoint
from utils.errors import PansError
from utils.interruption import Interrupted, typed_command
from utils.reading import Unreadable

EVERY_STEP = ("--ckpt_minutes", "1e-9")


class Killed(BaseException):
    """Ends a run where it stands, saving nothing."""


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def differing(found: Any, expected: Any, path: str = "") -> list[str]:
    """Where two states differ by as much as a bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        return [
            d for key in expected for d in differing(found[key], expected[key], f"{path}/{key}")
        ]
    if isinstance(expected, list):
        assert len(found) == len(expected), path
        pairs = enumerate(zip(found, expected, strict=True))
        return [d for i, pair in pairs for d in differing(*pair, f"{path}/{i}")]
    same = torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected
    return [] if same else [path]


def without_flags(state: dict[str, Any]) -> dict[str, Any]:
    """The state but for the flags (those of saving differ) and the last report (its speed does)."""
    return {key: value for key, value in state.items() if key not in {"options", "last_report"}}


def test_the_same_run_twice_is_the_same(runs: Any, unbroken: Any) -> None:
    runs.fit()
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []


@pytest.mark.parametrize("step", [0, 2, 3, 4, 7])
def test_a_killed_run_continues_bit_for_bit(runs: Any, unbroken: Any, step: int) -> None:
    with pytest.raises(Killed):
        runs.stop_at(step, kill, *EVERY_STEP)
    if step:
        assert runs.state()["iteration"] == step
    runs.fit(*EVERY_STEP)
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []
    for tag in ("train/loss", "train/lr", "validation/Mean IoU", "validation/Loss"):
        assert runs.points(tag) == unbroken.points(tag), tag


@pytest.mark.parametrize("step", [0, 3, 7])
def test_a_signal_saves_after_the_step(
    runs: Any, unbroken: Any, step: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM: step {step + 1} is saved in"):
        runs.stop_at(step, terminate)
    assert runs.state()["iteration"] == step + 1
    assert "SIGTERM: saving after this step" in capfd.readouterr().err
    runs.fit()
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []
    assert runs.points("train/loss") == unbroken.points("train/loss")


def test_a_report_over_several_steps_spans_the_stop(runs: Any) -> None:
    runs.fit("--print_interval", "4", "--name", "whole")
    whole = runs.state("whole")
    with pytest.raises(Interrupted):
        runs.stop_at(1, terminate, "--print_interval", "4")
    runs.fit("--print_interval", "4")
    name = "body.mod1.conv1.weight"
    assert torch.equal(runs.state()["model_state"][name], whole["model_state"][name])
    points = runs.points("train/loss")
    assert [step for step, _ in points] == [4, 8]


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_validation_is_repeated(runs: Any, unbroken: Any, epoch: int) -> None:
    trainer = runs.trainer()
    validate = trainer.validate

    def terminate_and_validate() -> float:
        if trainer.epoch == epoch:
            terminate()
        return validate()

    trainer.validate = terminate_and_validate
    with pytest.raises(Interrupted), trainer.logger:
        trainer.fit()
    assert (runs.state()["epoch"], runs.state()["iteration"]) == (epoch, 4 * epoch + 4)
    runs.fit()
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []
    for tag in ("train/loss", "validation/Mean IoU"):
        assert [step for step, _ in runs.points(tag)] == [
            step for step, _ in unbroken.points(tag)
        ], tag


def test_accumulated_steps_continue_bit_for_bit(runs: Any) -> None:
    flags = ("--accumulate", "2", "--epochs", "3")
    runs.fit("--name", "whole", *flags)
    with pytest.raises(Interrupted):
        runs.stop_at(2, terminate, *flags)  # the second of two batches: the step is finished
    assert runs.state()["iteration"] == 3
    runs.fit(*flags)
    assert differing(without_flags(runs.state()), without_flags(runs.state("whole"))) == []


def test_a_finished_run_is_not_trained_again(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    runs.fit()
    before = (runs.checkpoints / "x.pth").read_bytes()
    runs.fit()
    assert (runs.checkpoints / "x.pth").read_bytes() == before
    assert "x.pth has done its 2 epochs: on to the test" in capsys.readouterr().out


def test_start_up_reports_where_it_resumes(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        runs.stop_at(5, terminate)
    runs.fit()
    assert "x.pth: epoch 2 of 2, 2 of 4 steps done\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--lr", "0.1", "--lr 0.007 there, 0.1 here"),
        ("--epochs", "3", "--epochs 2 there, 3 here"),
        ("--random_seed", "1", "--random_seed 42 there, 1 here"),
        ("--batch_size", "4", "4 steps an epoch there, 2 here"),
        ("--pretrained", "a.pth", "--no_pretrained True there, False here"),
        ("--ckpt", "other.pth", "--ckpt None there, other.pth here"),
    ],
)
def test_another_run_does_not_continue_it(runs: Any, flag: str, value: str, words: str) -> None:
    runs.fit()
    if flag == "--pretrained":
        runs.flags.remove("--no_pretrained")
    with pytest.raises(CheckpointError, match=words) as caught:
        runs.fit(flag, value)
    assert "--restart" in str(caught.value)
    assert "--accept_changes" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_changes_are_accepted_if_requested(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        runs.stop_at(5, terminate)  # 2 of 4 steps of the second epoch
    trainer = runs.trainer(
        "--accept_changes", "--batch_size", "4", "--lr", "0.1", "--momentum", "0"
    )
    trainer._prepare_training()
    assert (trainer.epoch, trainer.iteration) == (1, 3)  # 1 of 2 steps of it
    (group,) = trainer.optimizer.param_groups
    assert group["momentum"] == 0
    assert group["lr"] == pytest.approx(0.1 * 0.25**0.9)
    trainer.train_step(iter(trainer.loader))
    assert group["lr"] == 0
    assert "step 6 is step 3 here" in capsys.readouterr().out


def test_another_number_of_processes_is_refused_unless_accepted(runs: Any) -> None:
    runs.fit()
    state, path = runs.state(), runs.checkpoints / "x.pth"
    options, shape = parse_options(runs.flags), RunSize(2, 2)
    words = "1 processes there, 2 here; 4 steps an epoch there, 2 here"
    with pytest.raises(CheckpointError, match=words):
        position_in(state, path, options, shape)
    asked = parse_options([*runs.flags, "--accept_changes"])
    found = position_in(state, path, asked, shape)
    assert (found.epoch, found.iteration) == (2, 4)


def test_restart_starts_from_scratch_and_keeps_older_files(runs: Any, unbroken: Any) -> None:
    runs.fit("--lr", "0.1")
    old = runs.state()
    runs.fit("--restart")
    assert differing(runs.state("x_old1"), old) == []
    assert (runs.checkpoints / "x_old1_best.pth").is_file()
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []
    assert runs.points("train/loss") == unbroken.points("train/loss")
    runs.fit("--restart")
    assert (runs.checkpoints / "x_old2.pth").is_file()


def test_the_command_for_resuming_omits_only_restart() -> None:
    words = ["run.py", "--name", "restart", "--restart", "--default"]
    assert typed_command(words) == "python run.py --name restart --default"


def test_too_few_images_for_a_step_are_refused(runs: Any) -> None:
    for flags in (("--batch_size", "1"), ("--batch_size", "1", "--norm_act", "std")):
        with pytest.raises(OptionError, match="argument --batch_size: one image has no batch"):
            runs.fit(*flags)
    with pytest.raises(PansError, match="8 images, fewer than 5 batches of 2 on each of 1"):
        runs.fit("--accumulate", "5")


@pytest.mark.parametrize("file", ["x.pth", "x_best.pth"])
def test_restart_takes_weights_of_the_files_it_sets_aside(
    runs: Any, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    runs.fit()
    weights = load_checkpoint(runs.checkpoints / file)["model_state"]
    monkeypatch.chdir(runs.folder)
    flags = ("--restart", "--ckpt", f"logs/../checkpoints/streethazards/{file}")
    for restarts in ("0", "1"):  # of a launcher, before the first checkpoint of the new run
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        trainer = runs.trainer(*flags)
        trainer._prepare_training()
        assert differing(dict(trainer.model.state_dict()), dict(weights)) == []
        assert (trainer.epoch, trainer.iteration) == (0, 0)
        assert (runs.checkpoints / file.replace("x", "x_old1")).is_file()
    assert not list(runs.checkpoints.glob("x_old2*"))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_readable_samples_is_one_line(runs: Any, data: Path, split: str) -> None:
    shutil.copytree(data, runs.folder / "data")
    images = list((runs.folder / "data/StreetHazards").glob(f"**/images/{split}/**/*.png"))
    for image in images:
        image.write_text("no picture")
    trainer = runs.trainer("--skip_bad_files", "--data_root", str(runs.folder / "data"))
    if split == "test":
        trainer.fit()
    look = {"validation": trainer.fit, "test": trainer.test}[split]
    with pytest.raises(Unreadable, match=f"{split}.odgt: none of its 3 samples can be read"):
        look()


def test_a_test_notes_what_the_weights_do_not_determine(
    runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.fit("--output_stride", "16")
    runs.trainer("--output_stride", "8").test()
    note = "x.pth was trained with --output_stride 16, and is tested with 8\n"
    assert capsys.readouterr().out.count(note) == 1


def test_restart_with_weights_that_are_missing_moves_nothing(runs: Any) -> None:
    runs.fit()
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        runs.fit("--restart", "--ckpt", str(runs.folder / "gone.pth"))
    assert sorted(path.name for path in runs.checkpoints.iterdir()) == [
        "x.pth",
        "x_best.pth",
        "x_previous.pth",
    ]


def test_restart_keeps_every_earlier_run_of_a_name_with_brackets(runs: Any) -> None:
    for number in (1, 2):
        options = runs.trainer("--name", "x[1]").options
        options.checkpoint_path.parent.mkdir(parents=True, exist_ok=True)
        options.checkpoint_path.write_text(f"run {number}")
        set_aside(options)
    kept = [(runs.checkpoints / f"x[1]_old{number}.pth").read_text() for number in (1, 2)]
    assert kept == ["run 1", "run 2"]


def test_the_best_checkpoint_does_not_delay_the_next_one(runs: Any) -> None:
    trainer = runs.trainer("--ckpt_minutes", "10")
    trainer._prepare_training()
    trainer.interruption._saved_at -= 601
    trainer._save(newest=False, best=True)
    assert trainer.interruption.poll().save
    trainer._save()
    assert not trainer.interruption.poll().save


def test_reports_span_epochs_that_are_shorter_than_their_interval(runs: Any) -> None:
    runs.fit("--print_interval", "3", "--epochs", "3")
    assert [step for step, _ in runs.points("train/loss")] == [3, 6, 9, 12]


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_launcher_resumes_in_spite_of_restart(
    runs: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with pytest.raises(Interrupted):
        runs.stop_at(2, terminate, "--restart")
    monkeypatch.setenv(variable, "1")
    assert runs.fit("--restart").iteration == 8
    assert not (runs.checkpoints / "x_old1.pth").exists()


def test_ckpt_names_the_runs_own_file(runs: Any, unbroken: Any) -> None:
    with pytest.raises(Interrupted):
        runs.stop_at(2, terminate)
    runs.flags.remove("--no_pretrained")
    runs.fit("--ckpt", str(runs.checkpoints / "x.pth"))
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []
    # How the run began is still on record.
    assert runs.state()["options"]["no_pretrained"] is True
    assert runs.state()["options"]["ckpt"] is None


def test_ckpt_of_another_name_is_continued_under_this_one(runs: Any, unbroken: Any) -> None:
    with pytest.raises(Interrupted):
        runs.stop_at(2, terminate, "--name", "first")
    command = ("--ckpt", str(runs.checkpoints / "first.pth"))
    with pytest.raises(Interrupted):
        runs.stop_at(5, terminate, *command)
    runs.fit(*command)  # x.pth is further than --ckpt, and is the one that counts
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []


def test_weights_alone_start_a_new_run(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    runs.fit()
    weights = runs.state()["model_state"]
    torch.save({"state_dict": weights, "epoch": 7}, runs.folder / "weights.pth")
    for flags in (
        ("--ckpt", str(runs.folder / "weights.pth")),
        ("--ckpt", str(runs.checkpoints / "x.pth"), "--restart"),
    ):
        trainer = runs.trainer("--name", "y", *flags)
        trainer._prepare_training()
        assert (trainer.epoch, trainer.iteration) == (0, 0)
        assert differing(dict(trainer.model.state_dict()), dict(weights)) == []
        assert f"starts with the weights of {flags[1]}" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(
    runs: Any, unbroken: Any, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Killed):
        runs.stop_at(6, kill, *EVERY_STEP)
    path = runs.checkpoints / "x.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # torch itself does not notice
    path.write_bytes(content[: len(content) if damage == "altered" else 1000])
    if damage == "gone":
        path.unlink()
    runs.fit()
    printed = capsys.readouterr().out
    assert "x.pth" in printed
    assert f"{previous_path(path)}, the one before, is taken" in printed
    assert f"continues {previous_path(path)}: epoch 2 of 2, 1 of 4 steps done" in printed
    assert (runs.checkpoints / "x_damaged.pth").exists() == (damage != "gone")
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []


def test_two_damaged_checkpoints_end_in_one_line(runs: Any) -> None:
    runs.fit()
    for name in ("x.pth", "x_previous.pth"):
        (runs.checkpoints / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"x_previous\.pth is damaged"):
        runs.fit()


def test_every_flag_declares_what_it_affects() -> None:
    words = ("weights", "start", "test", "nothing")
    parts = [flags_that_affect(word) for word in words]
    assert (
        sum(map(len, parts)) == len(frozenset().union(*parts)) == len(parse_options([]).to_dict())
    )
    assert {"lr", "epochs", "batch_size", "norm_act"} <= parts[0]
    assert parts[1] == {"ckpt", "pretrained", "no_pretrained"}
    assert {"score", "multi_scala", "ignore_classes"} <= parts[2]
    assert {"num_workers", "logdir", "print_interval"} <= parts[3]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may be one file with another name
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [damage, Path.unlink])
def test_a_lost_best_checkpoint_is_reported_at_start_up_and_replaced(
    runs: Any, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        runs.stop_at(5, terminate)
    best = runs.checkpoints / "x_best.pth"
    harm(best)
    state = runs.state()
    assert state["best_score"] >= 0
    state["best_score"] = 2.0  # no epoch will beat it
    save_checkpoint(runs.checkpoints / "x.pth", state)
    trainer = runs.trainer()
    trainer._prepare_training()
    warning = next(line for line in capsys.readouterr().out.splitlines() if "WARNING" in line)
    assert "x_best.pth" in warning
    assert warning.endswith("the best of the following weights are kept instead")
    assert trainer.best_score == -1
    runs.fit()
    assert load_checkpoint(best)["epoch"] == 2
    assert runs.state()["best_score"] < 2


@pytest.mark.parametrize("harm", [damage, Path.unlink])
def test_a_test_falls_back_to_the_newest_weights_if_the_best_are_lost(
    runs: Any, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.fit()
    harm(runs.checkpoints / "x_best.pth")
    runs.trainer("--test_weights", "best").test()
    printed = capsys.readouterr().out
    assert "WARNING: " in printed
    assert f"{runs.checkpoints}/x.pth, the newest checkpoint, is tested instead" in printed
    (runs.checkpoints / "x.pth").unlink()
    with pytest.raises(CheckpointError, match=r"x_best\.pth"):
        runs.trainer("--test_weights", "best").test()


def swap_lines(root: Path) -> None:
    (path,) = root.rglob("train.odgt")
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([*entries[2:], *entries[:2]]))


def swap_images(root: Path) -> None:
    first, second = sorted(root.glob("StreetHazards/train/images/training/**/*.png"))[:2]
    first.write_bytes(second.read_bytes())


def add_and_take_away(root: Path) -> None:
    (path,) = root.rglob("train.odgt")
    entries = json.loads(path.read_text())
    folder = path.parent
    for name in (entries[0]["fpath_img"], entries[0]["fpath_segm"]):
        (folder / name).rename((folder / name).with_name(f"new_{Path(name).name}"))
    for key in ("fpath_img", "fpath_segm"):
        name = Path(entries[0][key])
        entries[0][key] = str(name.with_name(f"new_{name.name}"))
    path.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_lines, ["train images in another order, from images/training/"]),
        (swap_images, ["train images of other files: images/training/"]),
        (add_and_take_away, ["train images gone: images/", "train images new: images/"]),
    ],
)
def test_other_data_are_refused_and_each_difference_named(
    runs: Any, data: Path, change: Any, words: list[str]
) -> None:
    with pytest.raises(Interrupted):
        runs.stop_at(5, terminate)
    shutil.copytree(data, runs.folder / "data")
    elsewhere = ("--data_root", str(runs.folder / "data"))
    runs.trainer(*elsewhere)._prepare_training()  # the same files in another place
    change(runs.folder / "data")
    with pytest.raises(CheckpointError, match="is of another run") as caught:
        runs.fit(*elsewhere)
    for word in words:
        assert word in str(caught.value)
    assert runs.fit(*elsewhere, "--accept_changes").iteration == 8


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGUSR2])
def test_every_signal_to_end_saves(runs: Any, number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=f"stopped by {number.name}: step 3 is saved") as caught:
        runs.stop_at(2, lambda: os.kill(os.getpid(), number))
    assert caught.value.exit_code == 128 + number
    assert runs.state()["iteration"] == 3


def test_sigusr1_saves_and_continues(runs: Any, unbroken: Any) -> None:
    seen = []

    def ask() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    def look(model: Any, images: Any) -> None:
        path = runs.checkpoints / "x.pth"
        if model.training and path.exists():
            seen.append((trainer.iteration, runs.state()["iteration"]))

    trainer = runs.trainer()
    trainer.model.register_forward_pre_hook(look)
    trainer.model.register_forward_pre_hook(
        lambda model, _: ask() if model.training and trainer.iteration == 1 else None
    )
    with trainer.logger:
        trainer.fit()
    assert seen[:2] == [(2, 2), (3, 2)]
    assert differing(without_flags(runs.state()), without_flags(unbroken.state())) == []


def test_a_signal_that_nohup_has_turned_off_stays_off(runs: Any) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        runs.stop_at(2, lambda: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert runs.state()["iteration"] == 8
