import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argparser import RECIPE, OptionError, Options, parse_options

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
    "test": False,
    "ckpt_test": None,
    "ckpt": None,
    "opt_level": None,
}
OWN_DEFAULTS = {
    "default": False,
    "checkpoints": "./checkpoints",
    "pretrained_file": None,
    "ignore_classes": (),
    "precision": None,
    "plain": False,
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
    "pretrained_file": "w.pth",
    "precision": "bf16",
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
    off = {"no_pretrained": "--pretrained"}.get(name, f"--no_{name}")
    # What a switch needs beside it to be accepted.
    extra = ["--classifier", "cosine"] if name == "cosine_scores" else []
    for on in (f"--{name}", f"--{name.replace('_', '-')}"):
        assert getattr(parse_options([*extra, on]), name) is True
        assert getattr(parse_options([*extra, on, off]), name) is False
        assert getattr(parse_options([*extra, off.replace("_", "-"), on]), name) is True


def test_every_flag_is_tested_above() -> None:
    tested = {*OTHER_VALUES, *SWITCHES, "dataset", "num_classes", "pooling", "head", "opt_level"}
    assert tested | {"ignore_classes"} == {flag.name for flag in fields(Options)}


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
def test_typed_flag_wins_over_default_in_any_order(
    typed: list[str], name: str, value: object
) -> None:
    assert getattr(parse_options(["--default", *typed]), name) == value
    assert getattr(parse_options([*typed, "--default"]), name) == value


def test_no_default_turns_the_recipe_off() -> None:
    assert parse_options(["--default", "--no_default"]) == Options()


@pytest.mark.parametrize(
    ("typed", "score", "says"),
    [
        ([], "msp", "neither --msp nor --cosine_scores"),
        (["--msp"], "msp", None),
        (["--default"], "cosine", None),
        (["--default", "--msp"], "msp", None),
        (["--classifier", "cosine", "--cosine_scores"], "cosine", None),
        (["--default", "--no_cosine_scores"], "msp", "neither --msp nor --cosine_scores"),
        (["--default", "--classifier", "standard"], "msp", "need --classifier cosine"),
        (["--classifier", "standard", "--cosine_scores", "--msp"], "msp", None),
    ],
)
def test_score(typed: list[str], score: str, says: str | None) -> None:
    options = parse_options(typed)
    assert options.score == score
    if says is None:
        assert options.notes == ()
    else:
        (note,) = options.notes
        assert note.startswith("the anomaly score is msp")
        assert says in note


@pytest.mark.parametrize("beside", [[], ["--default"]])
def test_cosine_scores_of_standard_logits_are_refused(beside: list[str]) -> None:
    message = refusal("--classifier", "standard", "--cosine_scores", *beside)
    assert message.startswith("argument --cosine_scores: needs --classifier cosine")
    assert "unbounded" in message


@pytest.mark.parametrize(
    ("typed", "precision"),
    [
        ([], None),
        (["--precision", "bf16"], "bf16"),
        (["--opt_level", "O0"], "fp32"),
        (["--opt-level", "O1"], "bf16"),
        (["--opt_level", "O1", "--precision", "bf16"], "bf16"),
        (["--plain"], "fp32"),
        (["--plain", "--opt_level", "O0"], "fp32"),
    ],
)
def test_precision(typed: list[str], precision: str | None) -> None:
    assert parse_options(typed).precision == precision


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--opt_level O2", "argument --opt_level: O2 keeps the weights in half precision"),
        ("--opt_level O3", "argument --opt_level: O3 keeps the weights in half precision"),
        ("--opt_level O4", "argument --opt_level: must be one of O0, O1, got 'O4'"),
        (
            "--opt_level O0 --precision bf16",
            "argument --opt_level: O0 contradicts --precision bf16",
        ),
        ("--precision fp16", "argument --precision: must be one of fp32, bf16, got 'fp16'"),
        ("--plain --precision bf16", "argument --plain: is the published order of work in fp32"),
        ("--plain --opt_level O1", "argument --plain: is the published order of work in fp32"),
        ("--pooling 16", "argument --pooling: 16 has no effect"),
        ("--num_classes 12", "argument --num_classes: streethazards has 13 classes to train"),
        ("--unk_class 12", "argument --unk_class: must lie from 13"),
        ("--unk_class 255", "argument --unk_class: must lie from 13"),
        ("--dataset cityscapes", "argument --dataset: must be one of streethazards, got"),
        ("--head ASPP", "argument --head: must be one of PPM, got 'ASPP'"),
        ("--backbone vgg", "argument --backbone: must be one of resnet50, resnet101, got 'vgg'"),
        ("--output_stride 32", "argument --output_stride: must be one of 8, 16, got 32"),
        ("--norm_act bn", "argument --norm_act: must be one of iabn_sync, iabn, abn, std"),
        ("--classifier linear", "argument --classifier: must be one of standard, cosine"),
        ("--lr_policy cosine", "argument --lr_policy: must be one of poly, step"),
        ("--no_pretrained --pretrained_file a", "argument --pretrained_file: contradicts"),
        ("--name a/b", "argument --name: must be a plain file name, got 'a/b'"),
        ("--name ..", "argument --name: must be a plain file name, got '..'"),
        ("--name=", "argument --name: must be a plain file name, got ''"),
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
        ("--test best.pth", "'best.pth' belongs to no flag"),
    ],
)
def test_refusals(typed: str, message: str) -> None:
    assert refusal(*typed.split()).startswith(message)


def test_ignored_classes_are_split_at_commas() -> None:
    options = parse_options(["--ignore_classes", "road line, car,"])
    assert options.ignore_classes == ("road line", "car")


def test_paths_of_a_run() -> None:
    options = parse_options(["--name", "x", "--logdir", "/l", "--checkpoints", "/c"])
    assert str(options.log_folder) == "/l/streethazards/x"
    assert str(options.checkpoint_path) == "/c/streethazards/x.pth"
    assert str(options.best_checkpoint_path) == "/c/streethazards/x_best.pth"


def test_pretrained_file_is_a_path_if_given() -> None:
    assert Options().pretrained_path is None
    assert parse_options(["--pretrained_file", "a/b.pth"]).pretrained_path == Path("a/b.pth")


def test_options_come_back_from_json() -> None:
    options = parse_options(["--default", "--lr", "0.1", "--ignore_classes", "car,wall"])
    stored = json.loads(json.dumps(options.to_dict()))
    assert Options.from_dict(stored) == options


def test_from_dict_drops_unknown_flags_and_fills_in_missing_ones() -> None:
    assert Options.from_dict({"lr": 0.1, "of_another_version": 1}) == Options(lr=0.1)


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"epochs": "3"}, {"name": None}, {"msp": "yes"}])
def test_from_dict_checks(values: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"argument --{next(iter(values))}: "):
        Options.from_dict(values)


def test_help_tells_every_flag_and_its_default_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help"])
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


def test_help_tells_what_default_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["-h"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in RECIPE.items():
        assert (f"--{name}" if value is True else f"--{name} {value}") in text
    assert "A flag typed beside --default wins over it" in text
    assert "the published code silently overrides such a flag" in text


TOKENS = [*(f"--{flag.name}" for flag in fields(Options)), "0", "1", "-1", "O1", "fp32", "a=b"]


def outcome(argv: list[str]) -> Options | OptionError | SystemExit:
    try:
        return parse_options(argv)
    except (OptionError, SystemExit) as end:
        return end


@given(st.lists(st.sampled_from(TOKENS) | st.text()))
@settings(max_examples=300, deadline=None)
def test_any_command_line_ends_in_options_or_one_line(argv: list[str]) -> None:
    end = outcome(argv)
    if isinstance(end, Options):
        assert Options.from_dict(end.to_dict()) == end
    elif isinstance(end, OptionError):
        assert len(str(end).splitlines()) == 1
    else:
        assert any(token.startswith(("-h", "--help")) for token in argv)
