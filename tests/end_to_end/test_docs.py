"""Every command in README.md and docs/ is accepted, its files exist, and it is run.

Those of run.py and of small programs run here, with a network of one block per stage on tiny data
sets; those of torchrun and --ablate run in the tests of processes and of grids. Those of pytest are
part of this suite, and `make test` starts it; for other targets of make the syntax is checked.
"""

import argparse
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import onnx
import pytest
import torch
from tensorboard.plugins.core.core_plugin import CorePluginLoader
from torch.distributed.run import get_args_parser

import run
from ablate import expand, read_grid
from argparser import parse_options, typed_flags
from build import model_of
from dataset.base import DatasetNotFound
from dataset.demo.writer import write_demo
from dataset.prepare.archives import ARCHIVES, PUBLISHED
from dataset.prepare.command import main as prepare
from dataset.readers.streethazards import STREETHAZARDS
from dataset.registry import DATASETS, describe
from modules.backbones import BACKBONES
from modules.segmentation import build_model
from tests.dataset import trees
from tests.reliability.tiny import ONE_BLOCK

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHELL = {"", "sh", "bash", "shell", "console"}
PROGRAMS = ("python", "torchrun", "make", "pip", "tensorboard", "pytest")
# Programs are started by their modules' names, of which these tests have imported some already.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Command:
    """A command line and where it stands."""

    place: str
    words: tuple[str, ...]

    def __str__(self):
        return f"{self.place}: {shlex.join(self.words)}"


def commands_of(document):
    """Those in fenced shell blocks, and those in code inside of sentences and tables."""
    text = document.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [
        line
        for language, block in blocks
        if language in SHELL
        for line in block.replace("\\\n", " ").splitlines()
        if starts_a_program(line)
    ]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose)
    lines += [span for span in spans if starts_a_program(span) and len(span.split()) > 1]
    return [Command(document.name, words_of(line)) for line in lines]


def starts_a_program(line):
    words = [word for word in line.split() if not ASSIGNMENT.fullmatch(word)]
    return bool(words) and words[0] in PROGRAMS


def words_of(line):
    """Without comment and variables in front, with what is optional and the first of choices."""
    given = shlex.split(line, comments=True)
    extra = re.compile(r"\.\[\w+\]")
    words = [w if extra.fullmatch(w) else w.strip("[]").split("|")[0] for w in given]
    while ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    return tuple(words)


COMMANDS = [command for document in DOCUMENTS for command in commands_of(document)]


class Parsed(BaseException):
    """A program has parsed its command line."""


def check(words):
    """Raise where a command would not be understood."""
    program, *rest = words
    if program == "make":
        ended = subprocess.run(
            ["make", "-n", *rest], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
    elif program == "torchrun":
        check_launcher(rest)
    elif program == "pip":
        check_packages(rest)
    elif program == "pytest":
        check_tests(rest)
    elif program == "tensorboard":
        parser = argparse.ArgumentParser(exit_on_error=False)
        CorePluginLoader().define_flags(parser)
        parser.parse_args(rest)
    elif rest[0] == "-m":
        check_module(rest[1], rest[2:])
    else:
        check_script(rest[0], rest[1:])


def check_launcher(words):
    found = get_args_parser().parse_args(words)
    check_script(found.training_script, found.training_script_args)


def check_script(script, words):
    assert (REPOSITORY / script).is_file(), f"{script} does not exist"
    if script != "run.py":
        check_parser(lambda: runpy.run_path(str(REPOSITORY / script), run_name="__main__"), words)
        return
    if {"--help", "--help_all"} & {*words}:
        return
    typed = typed_flags(words)
    if "ablate" in typed:
        assert expand(read_grid(REPOSITORY / typed["ablate"]), typed)
        return
    if typed.get("dataset") == "folder":  # the user's own, whose classes only its files tell
        with pytest.raises(DatasetNotFound):
            parse_options(words)
    else:
        parse_options(words)


def check_module(name, words):
    if name == "pytest":
        check_tests(words)
    elif name == "torch.distributed.launch":
        check_launcher(words)
    else:
        check_parser(lambda: runpy.run_module(name, run_name="__main__"), words, name)


PASSING_FLAGS_ON = {"benchmarks.latency"}
"""Programs that pass unknown flags on to run.py's parser."""


def check_parser(start, words, module=""):
    """Start a program until it has parsed its command line."""
    with pytest.MonkeyPatch.context() as patch:
        read = argparse.ArgumentParser.parse_args
        read_known = argparse.ArgumentParser.parse_known_args

        def parse_flags_and_leave(parser, *arguments):
            if parser.prog == "run.py":
                return read_known(parser, *arguments)
            parse_options(read_known(parser, *arguments)[1])
            raise Parsed

        def parse_and_leave(parser, *arguments):
            read(parser, *arguments)
            raise Parsed

        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
        if module in PASSING_FLAGS_ON:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_flags_and_leave)
        patch.setattr(sys, "argv", ["program", *words])
        with pytest.raises(Parsed):
            start()


def check_packages(words):
    """`pip install -e .` and an extra of the project, or packages that pyproject.toml pins."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert words[0] == "install"
    if words[1] == "-e":
        extra = re.fullmatch(r"\.(?:\[(\w+)\])?", words[2])
        assert extra, words[2]
        assert extra[1] in (None, *project["optional-dependencies"])
        return
    extras = project["optional-dependencies"].values()
    pinned = {one.split("==")[0] for one in chain(project["dependencies"], *extras)}
    for name in words[1:]:
        assert name in pinned, f"pyproject.toml does not know {name}"


def check_tests(words):
    """Files of tests exist, and every word of -k is in the name of a test there."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("-k", default="")
    found = parser.parse_args(words)
    source = ""
    for path in found.paths:
        assert (REPOSITORY / path).exists(), f"{path} does not exist"
        files = [REPOSITORY / path] if path.endswith(".py") else (REPOSITORY / path).glob("*.py")
        source += "".join(file.read_text() for file in files)
    names = " ".join(re.findall(r"def (test_\w+)", source))
    for word in re.findall(r"\w+", found.k):
        assert word in {"or", "and", "not"} or word in names, f"no test is named {word}"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    check(command.words)


def test_commands_of_every_kind_are_collected():
    assert {command.place for command in COMMANDS} >= {"README.md", "training.md", "faq.md"}
    assert {command.words[0] for command in COMMANDS} >= {"python", "torchrun", "make"}
    assert len(COMMANDS) > 50


@pytest.mark.parametrize(
    "line",
    [
        "python run.py --nam x",
        "python run.py --epochs 0",
        "python run.py --ablate docs/no.toml",
        "python runs.py --name x",
        "python -m dataset.prepare --rot data",
        "python -m dataset.prepares",
        "torchrun --processes=8 run.py --name x",
        "torchrun --nproc_per_node=8 run.py --nam x",
        "python -m pytest tests/test_argparser.py -k no_such_test",
        "make demos",
        "pip install no_such_package",
        "tensorboard --logdirs logs",
    ],
)
def test_a_wrong_command_is_found(line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises((Exception, SystemExit, pytest.fail.Exception)):
        check(words_of(line))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_point_to_existing_files(document):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    for link in links:
        if "://" not in link:
            assert (document.parent / link).exists(), link


def test_the_grid_in_the_docs_is_the_file_beside_them():
    text = (REPOSITORY / "docs/ablation.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shown, kept = (
        tomllib.loads(block),
        tomllib.loads((REPOSITORY / "docs/ablation.toml").read_text()),
    )
    assert shown.pop("published") == kept.pop("published")[:1]
    assert shown == kept


def test_the_flags_in_the_docs_are_the_file_beside_them():
    text = (REPOSITORY / "docs/training.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert tomllib.loads(block) == tomllib.loads((REPOSITORY / "docs/run.toml").read_text())


def test_the_classes_in_the_docs_are_those_of_the_code():
    text = (REPOSITORY / "docs/data.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (\d+) (\d+) (\d+) \|$", text, re.MULTILINE)
    shown = [(int(index), name, tuple(map(int, rgb))) for index, name, *rgb in rows]
    colours = STREETHAZARDS.class_colours.items()
    assert shown == [(index, *pair) for index, pair in enumerate(colours)]


def test_every_data_set_has_its_row_in_the_docs():
    text = (REPOSITORY / "docs/data.md").read_text()
    described = re.findall(r"^\| `(\w+)` \| (\d+|none|your own) \|", text, re.MULTILINE)
    assert [name for name, _ in described] == list(DATASETS)
    for name, count in described:
        if name != "folder":
            info = describe(name, REPOSITORY / "data")
            assert info.has_class_labels == (count != "none")
            assert not info.has_class_labels or info.num_classes == int(count)
    fetched = {archive.dataset for archive in PUBLISHED}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .* \| `\S+/` \|$", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"\w+", row)}
    assert named == fetched | {"bdd_anomaly", "bdd_anomaly_16"}


def command_with(*parts):
    """The first command of the docs with these words."""
    return next(command.words for command in COMMANDS if {*parts} <= {*command.words})


def exit_code_of(start):
    """0 for programs that end without sys.exit."""
    try:
        start()
    except SystemExit as ended:
        return ended.code
    return 0


def test_cheap_commands_run(tmp_path, monkeypatch, capsys):
    """Predict, export, evaluate, report, look at weights and data as the docs have it."""
    write_demo(tmp_path / "data", train=1, validation=1, test=2, size=(96, 64), seed=3)
    test = tmp_path / "data/StreetHazards/test"
    monkeypatch.setitem(BACKBONES, "resnet50", ONE_BLOCK)
    torch.save({"model_state": build_model().state_dict()}, tmp_path / "FILE")
    monkeypatch.chdir(tmp_path)

    def start(words, places):
        words = [places.get(word, word) for word in words]
        if words[1] == "run.py":
            assert run.main(words[2:]) == 0, capsys.readouterr().err
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words[2:])
            code = exit_code_of(lambda: runpy.run_module(words[2], run_name="__main__"))
            assert not code, capsys.readouterr().err

    check_data = command_with("dataset.prepare", "--check", "road_anomaly")
    check_data = [word.replace("road_anomaly", "streethazards") for word in check_data]
    counts = {"train": 1, "validation": 1, "test": 2}
    archives = [
        replace(archive, images={split: counts[split] for split in archive.images}, size=(96, 64))
        for archive in ARCHIVES
    ]
    assert prepare(check_data[3:], archives) == 0
    assert len(re.findall(r"(train|validation|test) +\d", capsys.readouterr().out)) == 3
    start(command_with("run.py", "--export"), {"pans.onnx": "out/pans.onnx"})
    assert onnx.load("out/pans.onnx").graph.input[0].name == "image"
    start(command_with("modules.pretrained", "FILE"), {})
    assert "resnet50" in capsys.readouterr().out
    start(command_with("run.py", "--predict"), {"PATH": str(test / "images"), "DIR": "scored"})
    assert len(list((tmp_path / "scored/score").rglob("*.npy"))) == 2
    evaluate = list(command_with("metrics.evaluate", "--scores", "--labels"))
    evaluate[evaluate.index("--scores") + 1] = "scored/score"
    evaluate[evaluate.index("--labels") + 1] = str(test / "annotations")
    start([*evaluate, "--out", "results.json"], {})
    table = capsys.readouterr().out
    assert "| per image | AUROC |" in table
    start(command_with("metrics.report", "results.json"), {})
    assert "| per image | AUROC |" in capsys.readouterr().out


OTHER_JOBS = {"--predict", "--export", "--ablate", "--help", "--help_all"}
SMALL = ("--epochs", "1", "--crop_size", "32", "--no_pretrained", "--num_workers", "0")


def runs_of(commands):
    """Trainings and tests by run.py, each once, regardless of the flags' order and of --nproc."""
    runs = {}
    for command in commands:
        words = ["pans" if word == "NAME" else word for word in command.words]
        if words[1] == "run.py" and not OTHER_JOBS & {*words}:
            if "--nproc" in words:
                place = words.index("--nproc")
                del words[place : place + 2]
            runs.setdefault(frozenset(words), words)
    return list(runs.values())


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """A folder with all data that the docs' trainings and tests need."""
    root = tmp_path_factory.mktemp("docs")
    write_demo(root / "data", train=2, validation=1, test=2, size=(96, 64), seed=3)
    trees.write_bdd100k(root / "data")
    trees.write_road_anomaly(root / "data")
    trees.write_folder(root / "ROOT")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", list(command_with("dataset.bdd_anomaly")[2:]))
        assert not exit_code_of(lambda: runpy.run_module(sys.argv[0], run_name="__main__"))
    return root


@pytest.mark.parametrize("words", runs_of(COMMANDS), ids=shlex.join)
def test_trainings_and_tests_run(words, data_sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BACKBONES, "resnet50", ONE_BLOCK)
    for name in ("data", "ROOT"):
        Path(name).symlink_to(data_sets / name)
    Path("docs").symlink_to(REPOSITORY / "docs")
    options = parse_options(words[2:])
    if options.test:
        tested = Path(options.ckpt_test or options.tested_checkpoint_path)
        tested.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model_state": model_of(options).state_dict()}, tested)
    assert run.main([*words[2:], *SMALL, "--nproc", "1"]) == 0
    results = json.loads((options.log_folder / "results.json").read_text())
    assert set(results["scores"]) == set(options.scores)
    assert all(0 < scored["AUPR"] < 100 for scored in results["scores"].values())
