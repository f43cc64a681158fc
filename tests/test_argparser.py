import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argparser import (
    RECIPE,
    OptionError,
    Options,
    parse_options,
    require_purpose,
    typed_flags,
)
from dataset.registry import DATASETS
from foreign_flags import HABITS
from modules.scores import SCORES
from utils.errors import PansError

REPOSITORY = Path(__file__).parents[1]

PUBLISHED_DEFAULTS = {
    "name": "Experiment",
    "random_seed": 42,
    "num_workers": 16,
    "data_root": "data",
    "dataset": "streethazards",
    "num_classes": 13,
    "unk_class": 13,
    "epochs": 40,
    "fix_bn": False,
    "batch_size": 2,
    "crop_size": 512,
    "lr": 0.007,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "lr_policy": "poly",
    "lr_decay_step": 5000,
    "lr_decay_factor": 0.1,
    "lr_power": 0.9,
    "deepsup": 0.4,
    "val_on_trainset": False,
    "multi_scala": False,
    "logdir": "./logs",
    "sample_num": 6,
    "visualize": False,
    "print_interval": 10,
    "val_interval": 1,
    "ckpt_interval": 1,
    "backbone": "resnet50",
    "output_stride": 8,
    "no_pretrained": False,
    "norm_act": "iabn_sync",
    "pooling": 32,
    "head": "PPM",
    "classifier": "standard",
    "cosine_scores": False,
    "msp": False,
    "score": (),
    "mc_dropout": None,
    "test": False,
    "ckpt_test": None,
    "ckpt": None,
    "opt_level": None,
}
OWN_DEFAULTS = {
    "ablate": None,
    "config": None,
    "default": False,
    "checkpoints": "./checkpoints",
    "trained_on": None,
    "skip_bad_files": False,
    "pretrained": None,
    "predict": (),
    "out": None,
    "threshold": None,
    "calibrate_fpr": None,
    "frame_step": 1,
    "overwrite": False,
    "export": None,
    "ignore_classes": (),
    "precision": "fp32",
    "test_weights": "last",
    "eval_size": None,
    "plain": False,
    "compile": False,
    "checkpoint_activations": False,
    "accumulate": 1,
    "nproc": None,
    "local_rank": None,
    "restart": False,
    "accept_changes": False,
    "deterministic": False,
    "ckpt_minutes": 15.0,
    "clip_grad_norm": None,
    "max_bad_steps": 10,
    "timeout": 600.0,
}
# A value other than the default for every flag that takes one.
OTHER_VALUES = {
    "name": "second",
    "random_seed": 7,
    "num_workers": 0,
    "data_root": "elsewhere",
    "unk_class": 20,
    "epochs": 3,
    "batch_size": 8,
    "crop_size": 64,
    "lr": 0.5,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "lr_policy": "step",
    "lr_decay_step": 10,
    "lr_decay_factor": 0.25,
    "lr_power": 2.0,
    "deepsup": 0.0,
    "logdir": "l",
    "sample_num": 0,
    "print_interval": 3,
    "val_interval": 2,
    "ckpt_interval": 5,
    "backbone": "resnet101",
    "output_stride": 16,
    "norm_act": "std",
    "classifier": "cosine",
    "ckpt_test": "best.pth",
    "ckpt": "last.pth",
    "checkpoints": "c",
    "pretrained": "w.pth",
    "frame_step": 5,
    "precision": "bf16",
    "test_weights": "best",
    "eval_size": "input",
    "accumulate": 4,
    "nproc": 2,
    "local_rank": 1,
    "ckpt_minutes": 0.5,
    "clip_grad_norm": 2.0,
    "max_bad_steps": 3,
    "timeout": 30.0,
}
SWITCHES = [flag.name for flag in fields(Options) if isinstance(flag.default, bool)]


def refusal(*argv: str) -> str:
    with pytest.raises(OptionError) as caught:
        parse_options(argv)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("; see --help")
    return message.removesuffix("; see --help")


def test_published_defaults_hold_without_any_flag() -> None:
    options = parse_options([])
    found = {flag.name: getattr(options, flag.name) for flag in fields(options)}
    assert found == PUBLISHED_DEFAULTS | OWN_DEFAULTS


@pytest.mark.parametrize(
    ("flags", "num_classes", "unk_class"),
    [
        ("--dataset bdd_anomaly", 17, 17),
        ("--dataset bdd_anomaly_16 --unk_class 17", 16, 17),
        ("--dataset road_anomaly --test", 13, 254),
        ("--dataset road_anomaly_21 --test --trained_on bdd_anomaly", 17, 254),
    ],
)
def test_the_number_of_classes_is_that_of_the_data_set(
    flags: str, num_classes: int, unk_class: int
) -> None:
    options = parse_options(flags.split())
    assert (options.num_classes, options.unk_class) == (num_classes, unk_class)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_flags_take_values_in_both_spellings(name: str) -> None:
    value = OTHER_VALUES[name]
    for typed in (
        [f"--{name}", str(value)],
        [f"--{name}={value}"],
        [f"--{name.replace('_', '-')}", str(value)],
        [f"--{name.replace('_', '-')}={value}"],
    ):
        assert getattr(parse_options(typed), name) == value


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_turn_on_and_off_again(name: str) -> None:
    # What a switch needs beside it to be accepted.
    needs = {
        "cosine_scores": ["--classifier", "cosine"],
        "compile": ["--norm_act", "iabn"],
    }
    extra = needs.get(name, [])
    for on in (f"--{name}", f"--{name.replace('_', '-')}"):
        assert getattr(parse_options([*extra, on]), name) is True
        if name == "no_pretrained":  # its opposite is a flag with a value
            continue
        off = f"--no_{name}"
        assert getattr(parse_options([*extra, on, off]), name) is False
        assert getattr(parse_options([*extra, off.replace("_", "-"), on]), name) is True


def test_every_flag_is_tested_above() -> None:
    tested = {*OTHER_VALUES, *SWITCHES, "dataset", "num_classes", "pooling", "head", "opt_level"}
    tested |= {"trained_on", "ignore_classes", "score", "mc_dropout"}
    tested |= {"predict", "out", "threshold", "calibrate_fpr", "export"}
    tested |= {"ablate", "config"}  # see tests/test_ablate.py and tests/test_config.py
    assert tested == {flag.name for flag in fields(Options)}


def test_multi_scale_is_multi_scala() -> None:
    assert parse_options(["--multi_scale"]).multi_scala
    assert parse_options(["--multi-scale"]).multi_scala
    assert not parse_options(["--default", "--no-multi-scale"]).multi_scala


def test_default_sets_the_published_recipe() -> None:
    options = parse_options(["--default"])
    changed = {flag.name for flag in fields(options) if getattr(options, flag.name) != flag.default}
    assert changed == {"default", "multi_scala", "crop_size", "classifier", "cosine_scores"}
    assert options.multi_scala
    assert options.cosine_scores
    assert (options.crop_size, options.classifier) == (450, "cosine")
    assert (options.batch_size, options.epochs, options.lr) == (2, 40, 0.007)


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        (["--crop_size", "512"], "crop_size", 512),
        (["--epochs=3"], "epochs", 3),
        (["--lr", "0.1"], "lr", 0.1),
        (["--no_multi_scala"], "multi_scala", False),
        (["--no-cosine-scores"], "cosine_scores", False),
        (["--backbone", "resnet101"], "backbone", "resnet101"),
    ],
)
def test_passed_flag_overrides_default_in_any_order(
    typed: list[str], name: str, value: object
) -> None:
    assert getattr(parse_options(["--default", *typed]), name) == value
    assert getattr(parse_options([*typed, "--default"]), name) == value


def test_no_default_turns_the_recipe_off() -> None:
    assert parse_options(["--default", "--no_default"]) == Options()


@pytest.mark.parametrize(
    ("typed", "score", "says"),
    [
        ([], "msp", "neither --score, --msp nor --cosine_scores"),
        (["--msp"], "msp", None),
        (["--default"], "prototype", None),
        (["--default", "--msp"], "msp", None),
        (["--classifier", "cosine", "--cosine_scores"], "prototype", None),
        (["--default", "--no_cosine_scores"], "msp", "neither --score, --msp nor --cosine_scores"),
        (["--default", "--classifier", "standard"], "msp", "need --classifier cosine"),
        (["--classifier", "standard", "--cosine_scores", "--msp"], "msp", None),
    ],
)
def test_score(typed: list[str], score: str, says: str | None) -> None:
    options = parse_options(typed)
    assert options.scores == (score,)
    if says is None:
        assert options.notes == ()
    else:
        (note,) = options.notes
        assert note.startswith("the anomaly score is msp")
        assert says in note


@pytest.mark.parametrize(
    ("typed", "scores"),
    [
        ("--score maxlogit,msp,maxlogit", ("maxlogit", "msp")),
        ("--default --score entropy", ("entropy",)),
        ("--score entropy --default", ("entropy",)),
        ("--default --score prototype --cosine_scores", ("prototype",)),
        ("--score msp --msp", ("msp",)),
        ("--classifier cosine --score prototype --no_cosine_scores", ("prototype",)),
        ("--default --score mc_dropout --mc_dropout 4", ("mc_dropout",)),
    ],
)
def test_score_takes_a_list(typed: str, scores: tuple[str, ...]) -> None:
    options = parse_options(typed.split())
    assert options.scores == scores
    assert options.notes == ()


@pytest.mark.parametrize("crf", [True, False])
@pytest.mark.parametrize("classifier", ["cosine", "standard"])
def test_all_is_every_available_score(
    classifier: str, crf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.scores.dense_crf.is_installed", lambda: crf)
    options = parse_options(["--classifier", classifier, "--score", "energy,all"])
    left_out = {"prototype", "prototype_margin"} if classifier == "standard" else set()
    left_out |= set() if crf else {"msp_crf"}
    assert options.scores[0] == "energy"
    assert set(options.scores) == set(SCORES) - left_out
    assert len(options.scores) == len(SCORES) - len(left_out)
    assert {note.split()[4].rstrip(":") for note in options.notes} == left_out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--score mps", "argument --score: must be one or more of prototype, msp, maxlogit,"),
        ("--score msp --cosine_scores --classifier cosine", "--cosine_scores, which means proto"),
        ("--score prototype --msp --cosine_scores --classifier cosine", "--msp, which means msp"),
        ("--default --score msp,prototype --msp", "contradicts --msp"),
        ("--score prototype", "argument --score: prototype needs --classifier cosine"),
        ("--score msp,prototype_margin", "prototype_margin needs --classifier cosine"),
        ("--score msp_crf", "msp_crf needs the package pydensecrf2; run pip install -e '.[crf]'"),
        ("--score msp --mc_dropout 5", "argument --mc_dropout: has no effect without --score"),
        ("--score mc_dropout --mc_dropout 1", "argument --mc_dropout: must be 2 or more, got 1"),
    ],
)
def test_refusals_of_scores(typed: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.scores.dense_crf.is_installed", lambda: False)
    assert message in refusal(*typed.split())


def test_validation_draws_a_score_that_needs_no_training_images() -> None:
    assert parse_options(["--score", "standardized_maxlogit,msp"]).shown_score == "maxlogit"
    assert parse_options(["--score", "entropy"]).shown_score == "entropy"


def test_help_lists_every_score(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help_all"])
    text = capsys.readouterr().out
    for name, score in SCORES.items():
        assert re.search(rf"^  {name} +{re.escape(score.words)}", text, re.MULTILINE)


@pytest.mark.parametrize("beside", [[], ["--default"]])
def test_cosine_scores_of_standard_logits_are_refused(beside: list[str]) -> None:
    message = refusal("--classifier", "standard", "--cosine_scores", *beside)
    assert message.startswith("argument --cosine_scores: needs --classifier cosine")
    assert "unbounded" in message


@pytest.mark.parametrize(
    ("typed", "precision"),
    [
        ([], "fp32"),
        (["--default"], "fp32"),
        (["--precision", "bf16"], "bf16"),
        (["--opt_level", "O0"], "fp32"),
        (["--opt-level", "O1"], "bf16"),
        (["--opt_level", "O1", "--precision", "bf16"], "bf16"),
        (["--plain"], "fp32"),
        (["--plain", "--opt_level", "O0"], "fp32"),
    ],
)
def test_precision(typed: list[str], precision: str) -> None:
    assert parse_options(typed).precision == precision


@pytest.mark.parametrize(
    ("typed", "at_input_size"),
    [
        ("", True),
        ("--default", False),
        ("--default --no_multi_scala", True),
        ("--dataset bdd_anomaly", False),
        ("--dataset bdd_anomaly --eval_size input", True),
        ("--eval_size label", False),
        ("--default --eval_size label", False),
    ],
)
def test_a_single_scale_test_of_streethazards_is_measured_at_the_input_size(
    typed: str, at_input_size: bool
) -> None:
    assert parse_options(typed.split()).at_input_size is at_input_size


@pytest.mark.parametrize(
    ("typed", "file"), [([], "x.pth"), (["--test_weights", "best"], "x_best.pth")]
)
def test_the_last_weights_are_tested_unless_the_best_are_requested(
    typed: list[str], file: str
) -> None:
    options = parse_options(["--name", "x", *typed])
    assert str(options.tested_checkpoint_path) == f"checkpoints/streethazards/{file}"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--default --eval_size input", "argument --eval_size: five scales have five input sizes"),
        ("--eval_size file", "argument --eval_size: must be one of label, input, got 'file'"),
        ("--test_weights first", "argument --test_weights: must be one of last, best"),
        ("--opt_level O2", "argument --opt_level: O2 keeps the weights in half precision"),
        ("--opt_level O3", "argument --opt_level: O3 keeps the weights in half precision"),
        ("--opt_level O4", "argument --opt_level: must be one of O0, O1, got 'O4'"),
        (
            "--opt_level O0 --precision bf16",
            "argument --opt_level: O0 contradicts --precision bf16",
        ),
        ("--precision fp16", "argument --precision: must be one of fp32, bf16, got 'fp16'"),
        ("--plain --precision bf16", "argument --plain: is the reference implementation in fp32"),
        ("--compile", "argument --compile: the compiler breaks the sums of --norm_act iabn_sync"),
        ("--compile --norm_act iabn --plain", "argument --compile: does not go with --plain"),
        (
            "--compile --norm_act std --checkpoint_activations",
            "argument --compile: does not go with --checkpoint_activations",
        ),
        ("--plain --opt_level O1", "argument --plain: is the reference implementation in fp32"),
        ("--pooling 16", "argument --pooling: 16 has no effect"),
        ("--num_classes 12", "argument --num_classes: streethazards has 13 classes to train"),
        ("--unk_class 12", "argument --unk_class: must lie from 13"),
        ("--unk_class 255", "argument --unk_class: must lie from 13"),
        ("--dataset cityscapes", "argument --dataset: must be one of streethazards, bdd_anomaly, "),
        ("--trained_on cityscapes", "argument --trained_on: must be one of streethazards, bdd_"),
        ("--trained_on bdd_anomaly", "argument --trained_on: streethazards has labels of its own"),
        ("--dataset bdd_anomaly --num_classes 13", "argument --num_classes: bdd_anomaly has 17"),
        (
            "--dataset road_anomaly --test --trained_on bdd_anomaly --num_classes 13",
            "argument --num_classes: bdd_anomaly has 17 classes to train",
        ),
        (
            "--dataset road_anomaly --test --unk_class 13",
            "argument --unk_class: anomalies of road_anomaly are 254",
        ),
        ("--dataset road_anomaly", "argument --dataset: road_anomaly is for evaluation only"),
        ("--head ASPP", "argument --head: must be one of PPM, got 'ASPP'"),
        (
            "--backbone vgg",
            "argument --backbone: must be one of resnet50, resnet101, resnet152, got 'vgg'",
        ),
        ("--output_stride 32", "argument --output_stride: must be one of 8, 16, got 32"),
        ("--norm_act bn", "argument --norm_act: must be one of iabn_sync, iabn, abn, std"),
        ("--classifier linear", "argument --classifier: must be one of standard, cosine"),
        ("--lr_policy cosine", "argument --lr_policy: must be one of poly, step"),
        ("--no_pretrained --pretrained a", "argument --pretrained: contradicts --no_pretrained"),
        ("--no_pretrained --pretrained auto", "argument --pretrained: contradicts"),
        ("--pretrained", "argument --pretrained: expected one argument"),
        ("--predict a --out b", "argument --ckpt_test: is needed by --predict"),
        ("--predict a --ckpt_test c", "argument --out: is needed by --predict"),
        ("--export onnx --ckpt_test c", "argument --out: is needed by --export"),
        ("--export tflite", "argument --export: must be one of onnx, got 'tflite'"),
        ("--predict", "argument --predict: expected at least one argument"),
        ("--predict=", "argument --predict: must be paths, got ('',)"),
        ("--test --predict a", "argument --predict: is a job of its own; pass it without --test"),
        ("--predict a --export onnx", "argument --export: is a job of its own; pass it without"),
        ("--out d", "argument --out: belongs to --predict or --export"),
        ("--threshold 1", "argument --threshold: belongs to --predict"),
        ("--calibrate_fpr 0.1 --test", "argument --calibrate_fpr: belongs to --predict"),
        ("--threshold nan", "argument --threshold: must be a number, got nan"),
        ("--calibrate_fpr 1", "argument --calibrate_fpr: must be a number between 0 and 1"),
        (
            "--predict a --ckpt_test c --out d --threshold 1 --calibrate_fpr 0.1",
            "argument --threshold: contradicts --calibrate_fpr",
        ),
        ("--frame_step 0", "argument --frame_step: must be 1 or more"),
        ("--name a/b", "argument --name: must be a plain file name of "),
        ("--name ..", "argument --name: must be a plain file name of "),
        ("--name=", "argument --name: must be a plain file name of "),
        ("--data_root=", "argument --data_root: must be a path, got ''"),
        ("--random_seed -1", "argument --random_seed: must be 0 or more and below 2**32, got -1"),
        ("--random_seed 4294967296", "argument --random_seed: must be 0 or more and below"),
        ("--epochs 0", "argument --epochs: must be 1 or more, got 0"),
        ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
        ("--batch-size 0", "argument --batch_size: must be 1 or more, got 0"),
        ("--crop_size 7", "argument --crop_size: must be 8 or more, got 7"),
        ("--lr 0", "argument --lr: must be a number above 0, got 0.0"),
        ("--lr nan", "argument --lr: must be a number above 0, got nan"),
        ("--lr inf", "argument --lr: must be a number above 0, got inf"),
        ("--lr fast", "argument --lr: invalid float value: 'fast'"),
        ("--lr", "argument --lr: expected one argument"),
        ("--momentum 1", "argument --momentum: must be 0 or more and below 1, got 1.0"),
        ("--weight_decay -0.1", "argument --weight_decay: must be a number, 0 or above, got -0.1"),
        ("--lr_power -1", "argument --lr_power: must be a number, 0 or above"),
        ("--lr_decay_step 0", "argument --lr_decay_step: must be 1 or more"),
        ("--lr_decay_factor 0", "argument --lr_decay_factor: must be a number above 0"),
        ("--deepsup -1", "argument --deepsup: must be a number, 0 or above"),
        ("--num_workers -1", "argument --num_workers: must be 0 or more"),
        ("--sample_num -1", "argument --sample_num: must be 0 or more"),
        ("--print_interval 0", "argument --print_interval: must be 1 or more"),
        ("--val_interval 0", "argument --val_interval: must be 1 or more"),
        ("--ckpt_interval 0", "argument --ckpt_interval: must be 1 or more"),
        ("--accumulate 0", "argument --accumulate: must be 1 or more"),
        ("--ckpt_minutes 0", "argument --ckpt_minutes: must be a number above 0"),
        ("--clip_grad_norm 0", "argument --clip_grad_norm: must be a number above 0"),
        ("--clip_grad_norm nan", "argument --clip_grad_norm: must be a number above 0"),
        ("--max_bad_steps 0", "argument --max_bad_steps: must be 1 or more"),
        ("--timeout 0", "argument --timeout: must be a number above 0"),
        ("--nproc 0", "argument --nproc: must be 1 or more"),
        ("--local-rank -1", "argument --local_rank: must be 0 or more"),
        ("--test=1", "argument --test: ignored explicit argument '1'"),
        ("--epoch 3", "argument --epoch: no such flag, did you mean --epochs?"),
        ("--defualt", "argument --defualt: no such flag, did you mean --default?"),
        ("--batch-sise=4", "argument --batch_sise: no such flag, did you mean --batch_size?"),
        ("--quux 1", "argument --quux: no such flag"),
        ("-x", "argument -x: no such flag"),
        ("--test best.pth", "'best.pth' belongs to no flag; --ckpt_test FILE names a checkpoint"),
    ],
)
def test_refusals(typed: str, message: str) -> None:
    assert refusal(*typed.split()).startswith(message)


def test_ignored_classes_are_split_at_commas() -> None:
    options = parse_options(["--ignore_classes", "road line, car,"])
    assert options.ignore_classes == ("road line", "car")


def test_an_unknown_class_to_ignore_is_refused_at_once() -> None:
    message = "argument --ignore_classes: there is no class 'traffic sgn'; the classes: unlabeled"
    assert refusal("--ignore_classes", "traffic sgn").startswith(message)


def test_pictures_need_no_split_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("road 1 2 3\ncar 4 5 6\n")
    folder = ["--dataset", "folder", "--data_root", str(tmp_path), "--ckpt_test", "f", "--out", "o"]
    assert parse_options([*folder, "--predict", "a.png"]).num_classes == 2
    assert parse_options([*folder, "--export", "onnx"]).num_classes == 2
    with pytest.raises(OptionError, match="folder has no validation images"):
        parse_options([*folder, "--predict", "a.png", "--calibrate_fpr", "0.1"])


def test_paths_of_a_run() -> None:
    options = parse_options(["--name", "x", "--logdir", "/l", "--checkpoints", "/c"])
    assert str(options.log_folder) == "/l/streethazards/x"
    assert str(options.checkpoint_path) == "/c/streethazards/x.pth"
    assert str(options.best_checkpoint_path) == "/c/streethazards/x_best.pth"


def test_pictures_are_a_list_of_paths() -> None:
    typed = ["--predict", "a,b.png", "c", "--out", "d", "--ckpt_test", "e", "--threshold", "-0.5"]
    options = parse_options(typed)
    assert (options.predict, options.threshold) == (("a,b.png", "c"), -0.5)
    assert options.to_dict()["predict"] == ["a,b.png", "c"]


def test_stored_values_override_default_and_passed_flags_override_both() -> None:
    stored = {"classifier": "standard", "output_stride": 16, "cosine_scores": True}
    options = parse_options(["--default", "--output_stride", "8"], stored)
    assert (options.classifier, options.output_stride, options.scores) == ("standard", 8, ("msp",))
    assert options.multi_scala  # of --default, as nothing else says


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"epochs": "3"}, {"name": None}, {"msp": "yes"}])
def test_values_are_checked_without_a_command_line(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"argument --{next(iter(values))}: "):
        Options(**values)


def test_help_shows_every_flag_and_its_default_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help_all"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in fields(Options):
        (line,) = re.findall(rf"^  --{flag.name} .*$", text, re.MULTILINE)
        assert re.search(r"\S  .+ \(default .+\)$", line), line
        shown = line.split("(default ")[-1].removesuffix(")")
        if flag.default not in (None, ()):
            on_off = {False: "off", True: "on"}
            expected = on_off[flag.default] if isinstance(flag.default, bool) else flag.default
            assert shown == str(expected)
    assert max(map(len, text.splitlines())) <= 110


def test_help_explains_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help_all"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in RECIPE.items():
        assert (f"--{name}" if value is True else f"--{name} {value}") in text
    assert "A flag passed beside --default overrides it" in text
    assert "the published code silently overrides such a flag" in text


@pytest.mark.parametrize("typed", ["-h", "--help"])
def test_the_short_help_fits_on_a_screen(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options([typed])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 110
    text = "\n".join(lines)
    names = set(re.findall(r"\w+", text))
    assert {*DATASETS, *SCORES, "help_all"} <= names
    jobs = re.findall(r"^  (\w+) +python run\.py (.+)$", text, re.MULTILINE)
    assert [job for job, _ in jobs] == ["train", "test", "predict", "export", "ablate"]
    for job, words in jobs:
        assert {"train": "default"}.get(job, job) in typed_flags(words.split())


def test_old_flags_are_listed_separately(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help_all"])
    text = capsys.readouterr().out
    (group,) = re.findall(r"^old flags.*:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert re.findall(r"--(\w+) [A-Z]", group) == ["pooling", "head", "opt_level", "local_rank"]


@pytest.mark.parametrize(
    "typed",
    ["", "--nproc 2", "--num_workers 0 --logdir l", "--data_root data", "--print_interval 5"],
)
def test_flags_without_a_purpose_start_no_training(typed: str) -> None:
    with pytest.raises(OptionError, match=r"the baseline, not PAnS: add --name NAME --default, or"):
        require_purpose(typed_flags(typed.split()))
    with pytest.raises(OptionError, match=r"not PAnS: add --default, or --classifier standard if"):
        require_purpose(typed_flags([*typed.split(), "--name", "x"]))


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "--name x --classifier standard",
            "--default",
            "--epochs 1",
            "--no_pretrained",
            "--score msp",
            "--lr 0.1",
        ),
        *("--dataset bdd_anomaly", "--test", "--predict a", "--export onnx", "--ablate a.toml"),
    ],
)
def test_a_training_flag_or_a_job_is_a_purpose(typed: str) -> None:
    require_purpose(typed_flags(typed.split()))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--name x", "without --default this trains the baseline (--classifier standard)"),
        ("--default --classifier standard", "--classifier standard: this trains the baseline"),
        ("--default", None),
        ("--classifier cosine", None),
        ("--name x --test", None),
    ],
)
def test_a_training_of_the_baseline_says_so(typed: str, says: str | None) -> None:
    note = parse_options(typed.split()).baseline_note
    assert note is None if says is None else str(note).startswith(says)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--resume", "the same command continues its run by itself; --ckpt FILE"),
        ("--resume last.pth", "the same command continues its run by itself; --ckpt FILE"),
        ("--gpu 0", "CUDA_VISIBLE_DEVICES=0,1 before the command, and --nproc N"),
        ("--gpus=2", "CUDA_VISIBLE_DEVICES=0,1 before the command, and --nproc N"),
        ("--device cuda:0", "CUDA_VISIBLE_DEVICES=0,1 before the command, and --nproc N"),
        ("--wandb", "TensorBoard's files go below --logdir"),
        ("--batch 8", "type --batch_size N"),
        ("-b 8", "type --batch_size N"),
        ("--learning-rate 0.1", "type --lr X"),
        ("--seed 1", "type --random_seed N"),
        ("--workers 4", "type --num_workers N"),
        ("--data-dir d", "type --data_root FOLDER"),
        ("--amp", "type --precision bf16"),
        ("--eval", "--test --ckpt_test FILE"),
        ("--weights w.pth", "--ckpt FILE trains on from a checkpoint, --ckpt_test FILE tests one"),
        ("--input a.png", "--predict PATH... --ckpt_test FILE --out DIR"),
        ("--cfg a.yaml", "type --config FILE"),
    ],
)
def test_flags_of_other_programs_are_answered_with_ours(typed: str, says: str) -> None:
    message = refusal(*typed.split())
    shown = typed.split()[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
    assert message.startswith(f"argument {'-b' if typed[1] == 'b' else shown}: no such flag; ")
    assert says in message


def test_a_habit_s_flags_and_what_it_names_do_and_do_not_exist() -> None:
    flags = {flag.name for flag in fields(Options)}
    for words, names in HABITS.items():
        assert not flags & set(names.split())
        assert set(re.findall(r"--(\w+)", words)) <= flags | {"multi_scale", "help"}
    every = [name for names in HABITS.values() for name in names.split()]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("typed", "cure"),
    [
        ("--multi_scala False", "--multi_scala takes no value, --no_multi_scala is its opposite"),
        ("--multi-scale=0", "--multi_scala takes no value, --no_multi_scala is its opposite"),
        ("--no_test 1", "--no_test takes no value, --test is its opposite"),
        ("--lr 0,01", "invalid float value: '0,01', write a decimal point: 0.01"),
        ("--epochs 1e2", "invalid int value: '1e2', pass an integer"),
        ("--classifier", "expected one argument: one of standard, cosine"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_what_to_type(typed: str, cure: str) -> None:
    assert cure in refusal(*typed.split())


@pytest.mark.parametrize("word", ["test", "predict", "help"])
def test_a_job_without_dashes_is_told_its_flag(word: str) -> None:
    assert refusal("train") == "'train' belongs to no flag; to train, type --name pans --default"
    assert refusal(word) == f"'{word}' belongs to no flag, did you mean --{word}?"


TOKENS = [*(f"--{flag.name}" for flag in fields(Options)), "0", "1", "-1", "O1", "fp32", "a=b"]


def outcome(argv: list[str]) -> Options | PansError | SystemExit:
    try:
        return parse_options(argv)
    except (PansError, SystemExit) as end:
        return end


@given(st.lists(st.sampled_from(TOKENS) | st.text()))
@settings(max_examples=300, deadline=None)
def test_any_command_line_ends_in_options_or_one_line(argv: list[str]) -> None:
    end = outcome(argv)
    if isinstance(end, Options):
        assert json.loads(json.dumps(end.to_dict())) == end.to_dict()
    elif isinstance(end, PansError):
        assert len(str(end).splitlines()) == 1
    else:
        assert any(token.startswith(("-h", "--help")) for token in argv)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "--name"),
        (["--lrr", "1"], 2, "did you mean --lr?"),
        (["--default", "--score", "mps"], 2, "argument --score"),
    ],
)
def test_the_command_line_is_checked_before_torch_is_imported(words, code, said):
    program = (
        "import sys, runpy, atexit; sys.argv = ['run.py', *sys.argv[1:]]\n"
        "atexit.register(lambda: print({'torch', 'torchvision'} & sys.modules.keys() or 'none'))\n"
        "runpy.run_path('run.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stdout + ended.stderr
    assert ended.stdout.endswith("none\n")


def test_a_run_without_downloads_does_not_load_torchvision():
    program = "import run, sys; print('torchvision' in sys.modules)"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert printed.stdout == "False\n"
