"""--test, --predict and --export take the flags that nobody typed from the checkpoint."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import run
from argparser import Options, parse_options
from dataset.demo.writer import write_demo
from modules import build_model
from modules.backbones import BACKBONES
from stored_flags import with_stored_flags
from tests.dataset import trees
from tests.reliability.tiny import ONE_BLOCK
from utils.checkpoint import MissingCheckpoint
from utils.errors import PansError

TRAINED = "--classifier cosine --norm_act iabn --output_stride 16 --multi_scala --score prototype"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Checkpoints of networks of one block per stage, with and without the options of a run."""
    root = tmp_path_factory.mktemp("stored")
    write_demo(root / "data", train=1, validation=1, test=2, size=(96, 64), seed=3)
    trees.write_road_anomaly(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet50", ONE_BLOCK)
        save(root / "own.pth", TRAINED.split())
        save(root / "bdd.pth", ["--dataset", "bdd_anomaly", "--ignore_classes", "car"])
        save(root / "checkpoints/streethazards/pans.pth", [*TRAINED.split(), "--name", "pans"])
        for classifier, classes in (("cosine", 13), ("standard", 17), ("cosine", 9)):
            state = build_model(classifier=classifier, num_classes=classes).state_dict()
            torch.save({"model_state": state}, root / f"foreign{classes}.pth")
        yield root


def save(path, words):
    options = parse_options(words)
    torch.manual_seed(0)
    network = build_model(
        options.backbone, options.classifier, options.norm_act, options.num_classes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state": network.state_dict(), "options": options.to_dict()}, path)


def changed(options, *but):
    """The flags that are not the default's."""
    default, left_out = Options().to_dict(), {"test", "ckpt_test", "checkpoints", *but}
    values = options.to_dict().items()
    return {k: v for k, v in values if v != default[k] and k not in left_out}


def taken(root, *words):
    words = ["--checkpoints", str(root / "checkpoints"), *words]
    options, note = with_stored_flags(
        [str(root / word) if str(word).endswith(".pth") else word for word in words]
    )
    return changed(options), note


STORED = {
    "classifier": "cosine",
    "norm_act": "iabn",
    "output_stride": 16,
    "multi_scala": True,
    "score": ["prototype"],
}


def test_a_test_takes_unset_flags_from_the_checkpoint(root):
    options, note = taken(root, "--test", "--ckpt_test", "own.pth")
    assert options == STORED
    file, _, flags = note.partition(": ")
    assert file == f"taken from {root / 'own.pth'}"
    assert changed(parse_options(flags.split())) == STORED


def test_a_run_of_a_name_is_tested_with_its_own_flags(root):
    options, note = taken(root, "--test", "--name", "pans")
    assert options == STORED | {"name": "pans"}
    assert note.startswith(f"taken from {root}/checkpoints/streethazards/pans.pth: ")
    best, _ = taken(root, "--test", "--name", "pans", "--test_weights", "best")
    assert best == options | {"test_weights": "best"}  # of the newest, as long as no best is there
    with pytest.raises(MissingCheckpoint, match=r"gone.pth; check --name, .*there are .*pans.pth"):
        taken(root, "--test", "--name", "gone")


@pytest.mark.parametrize(
    ("typed", "changes"),
    [
        ("--output_stride 8", {"output_stride": None}),
        ("--no_multi_scale", {"multi_scala": None}),
        ("--msp", {"msp": True, "score": None}),
        ("--score entropy", {"score": ["entropy"]}),
        ("--cosine_scores", {"cosine_scores": True, "score": None}),
        ("--epochs 3", {"epochs": 3}),
        # The published recipe, as if each of its flags were typed.
        (
            "--default",
            {
                "default": True,
                "output_stride": None,
                "norm_act": None,
                "crop_size": 450,
                "score": None,
                "cosine_scores": True,
            },
        ),
        (
            "--default --output_stride 16 --norm_act iabn",
            {"default": True, "crop_size": 450} | {"score": None, "cosine_scores": True},
        ),
    ],
)
def test_passed_flags_override_the_checkpoint(root, typed, changes):
    options, _ = taken(root, "--test", "--ckpt_test", "own.pth", *typed.split())
    expected = STORED | changes
    assert options == {name: value for name, value in expected.items() if value is not None}


def test_a_set_for_evaluation_only_has_the_network_s_classes(root):
    asked = ["--test", "--dataset", "road_anomaly", "--ckpt_test"]
    numbers = {"dataset": "road_anomaly", "trained_on": "bdd_anomaly"}
    numbers |= {"num_classes": 17, "unk_class": 254}
    assert taken(root, *asked, "bdd.pth")[0] == numbers
    assert taken(root, *asked, "foreign17.pth")[0] == numbers
    found = taken(root, *asked, "own.pth")[0]
    assert found == STORED | {
        "dataset": "road_anomaly",
        "trained_on": "streethazards",
        "unk_class": 254,
    }
    own = {"dataset": "bdd_anomaly", "num_classes": 17, "unk_class": 17, "ignore_classes": ["car"]}
    assert taken(root, "--test", "--ckpt_test", "bdd.pth")[0] == own
    other = taken(root, "--test", "--ckpt_test", "bdd.pth", "--dataset", "streethazards")[0]
    assert other == {}  # whose 13 classes the weights then do not fit


def test_flags_are_inferred_from_the_tensors_of_a_file_without_flags(root):
    cosine = {"classifier": "cosine", "cosine_scores": True}
    assert taken(root, "--test", "--ckpt_test", "foreign13.pth")[0] == cosine
    bdd = {"dataset": "bdd_anomaly", "num_classes": 17, "unk_class": 17}
    assert taken(root, "--test", "--ckpt_test", "foreign17.pth")[0] == bdd
    with pytest.raises(PansError, match="streethazards has 13 classes to train, got 9"):
        taken(root, "--test", "--ckpt_test", "foreign9.pth")


def test_a_training_takes_no_flags_from_the_checkpoint(root):
    assert taken(root, "--name", "pans", "--ckpt_test", "own.pth") == ({"name": "pans"}, None)


def results_of(root, *words):
    folders = ["--data_root", root / "data", "--logdir", root / "logs", "--num_workers", 0]
    words = ["--test", *words, *folders, "--nproc", 1, "--sample_num", 0]
    assert run.main([str(word) for word in words]) == 0
    dataset = next((b for a, b in pairwise(words) if a == "--dataset"), None)
    path = root / "logs" / (dataset or "streethazards") / "Experiment/results.json"
    return json.loads(path.read_text())


def test_the_test_equals_one_with_all_flags_passed(root, capsys):
    short = results_of(root, "--ckpt_test", root / "own.pth")
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "taken from" in line]
    assert line.startswith(f"note: taken from {root / 'own.pth'}: --")
    for flag in ("classifier=cosine", "norm_act=iabn", "output_stride=16", "multi_scala", "score"):
        assert f"--{flag}" in line
    typed = results_of(root, "--ckpt_test", root / "own.pth", *TRAINED.split())
    assert "taken from" not in capsys.readouterr().out
    for results in (short, typed):
        del results["environment"]
    assert short == typed
    road = results_of(root, "--ckpt_test", root / "bdd.pth", "--dataset", "road_anomaly")
    assert road["options"]["trained_on"] == "bdd_anomaly"
    assert 0 < road["AUPR"] < 100


def test_a_results_json_repeats_its_test(root):
    first = results_of(root, "--ckpt_test", root / "own.pth", "--no_multi_scale")
    path = Path(root / "logs/streethazards/Experiment/results.json")
    kept = path.rename(root / "first.json")
    assert run.main(["--config", str(kept)]) == 0
    again = json.loads(path.read_text())
    assert again.pop("options") == first.pop("options") | {"config": str(kept)}
    for results in (first, again):
        del results["environment"]
    assert first == again


def test_a_run_is_found_by_its_name_whatever_it_was_trained_on(root, tmp_path):
    bdd = tmp_path / "checkpoints/bdd_anomaly/one.pth"
    bdd.parent.mkdir(parents=True)
    bdd.write_bytes((root / "bdd.pth").read_bytes())
    words = ["--checkpoints", str(tmp_path / "checkpoints"), "--test", "--name", "one"]
    options, note = with_stored_flags(words)
    assert (options.tested_checkpoint_path, options.num_classes) == (bdd, 17)
    assert note.startswith(f"taken from {bdd}: ")
    assert "--dataset=bdd_anomaly" in note
    options, _ = with_stored_flags([*words, "--dataset", "road_anomaly"])
    assert (options.ckpt_test, options.dataset) == (str(bdd), "road_anomaly")
    assert options.trained_on == "bdd_anomaly"
    missing = str(tmp_path / "checkpoints/streethazards/one.pth")
    with pytest.raises(MissingCheckpoint, match=f"no checkpoint {missing}; .*there are {bdd}"):
        with_stored_flags([*words, "--dataset", "streethazards"])
    other = tmp_path / "checkpoints/bdd_anomaly_16/one_best.pth"
    other.parent.mkdir()
    other.write_bytes(b"")
    assert with_stored_flags(words)[0].dataset == "bdd_anomaly"
    other.rename(other.with_name("one.pth"))
    with pytest.raises(PansError, match=f"name of {bdd} and .*; add --ckpt_test FILE"):
        with_stored_flags(words)
