"""Flags from files: --config with a TOML table or a results.json."""

import json
from pathlib import Path

import pytest

from argparser import beneath, parse_options, typed_flags
from utils.errors import PansError


def write(folder: Path, text: str, name: str = "run.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("table", ["", "[flags]\n"])
def test_a_table_of_flags_equals_the_command_line(tmp_path: Path, table: str) -> None:
    path = write(
        tmp_path,
        table
        + """name = "mine"
default = true
lr = 1
batch-size = 4
multi_scale = false
score = ["prototype", "msp"]
ignore_classes = "road line"
""",
    )
    words = "--name mine --default --lr 1 --batch_size 4 --no_multi_scala --score prototype,msp"
    typed = parse_options([*words.split(), "--ignore_classes", "road line"])
    found = parse_options(["--config", path])
    assert found.to_dict() == typed.to_dict() | {"config": path}
    assert isinstance(found.lr, float)


def test_passed_flags_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'default = true\nepochs = 3\nscore = "entropy"\nprecision = "bf16"\n')
    options = parse_options(["--epochs", "5", "--config", path, "--msp", "--opt_level", "O0"])
    assert (options.epochs, options.scores, options.precision) == (5, ("msp",), "fp32")
    assert not parse_options(["--config", path, "--no_default"]).default


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch = 3", "'epoch' has no place here; .*did you mean epochs?"),
        ("epochs = '3'", "argument --epochs: invalid int value: '3'"),
        ("epochs = true", "epochs: invalid int value: True"),
        ("epochs = 1.5", "argument --epochs: invalid int value: 1.5"),
        ("epochs = 0", "argument --epochs: must be 1 or more, got 0"),
        ("default = 1", "default: invalid bool value: 1"),
        ("score = [1]", r"score should be a list of words, got \[1\]"),
        ("lr = [0.1]", r"argument --lr: invalid float value: \(?\[0.1"),
        ("name = {a = 1}", "argument --name: invalid str value"),
        ("flags = 3", "flags should be a table"),
        ("[flags]\n[grid]\nlr = [1]", "'grid' has no place here; take flags"),
        ("config = 'a'", "'config' has no place here"),
        ("lr =", "run.toml cannot be read"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PansError, match=says) as caught:
        typed_flags(["--config", path])
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    for name in ("gone.toml", "gone.json"):
        with pytest.raises(PansError, match=f"--config .*{name} cannot be read: .*is missing"):
            typed_flags(["--config", str(tmp_path / name)])


@pytest.mark.parametrize(
    "words",
    [
        "--name a --default",
        "--name a --default --no_multi_scala --score entropy,mc_dropout --mc_dropout 3",
        "--dataset bdd_anomaly --classifier cosine --cosine_scores --restart --local_rank 1",
        "--test --ckpt_test f.pth --default --opt_level O1 --ignore_classes car,road",
        "--no_pretrained --norm_act std --clip_grad_norm 2",
    ],
)
def test_a_results_json_repeats_its_run(tmp_path: Path, words: str) -> None:
    options = parse_options(words.split())
    path = write(tmp_path, json.dumps({"options": options.to_dict()}), "results.json")
    once = {"config": path, "restart": False, "local_rank": None}
    again = parse_options(["--config", path])
    assert again.to_dict() == options.to_dict() | once
    longer = parse_options(["--config", path, "--epochs", "80", "--name", "b"])
    assert longer.to_dict() == options.to_dict() | once | {"epochs": 80, "name": "b"}


def test_another_data_set_brings_its_own_classes(tmp_path: Path) -> None:
    options = parse_options(["--dataset", "bdd_anomaly", "--ignore_classes", "car"])
    path = write(tmp_path, json.dumps({"options": options.to_dict()}), "results.json")
    other = parse_options(["--config", path, "--dataset", "streethazards"])
    assert (other.num_classes, other.unk_class, other.ignore_classes) == (13, 13, ())


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"options": 3}', '{"options": {"quux": 1}}'])
def test_a_json_without_options_is_one_line(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content, "results.json")
    with pytest.raises(PansError) as caught:
        typed_flags(["--config", path])
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_passed_flag_replaces() -> None:
    stored = {"score": ("mc_dropout",), "mc_dropout": 4, "cosine_scores": False, "msp": False}
    assert beneath(stored, {}) == stored
    assert beneath(stored, {"mc_dropout": 8}) == {
        "score": ("mc_dropout",),
        "cosine_scores": False,
        "msp": False,
    }
    assert beneath(stored, {"msp": True}) == {}
    assert beneath(stored, {"score": ("mc_dropout", "msp")}) == {"mc_dropout": 4}
    sized = {"eval_size": "input", "multi_scala": False}
    assert beneath(sized, {"multi_scala": True}) == {}
    assert beneath(sized, {"multi_scala": False}) == {"eval_size": "input"}
    assert beneath({"test": True, "ckpt_test": "f"}, {"predict": ("a",)}) == {"ckpt_test": "f"}
    assert beneath({"precision": "bf16"}, {"opt_level": "O0"}) == {}
