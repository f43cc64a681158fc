"""Grids of runs: what they come to, what is shared, what is skipped, and their table by hand."""

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import run as program
from ablate import command_of, expand, find_results, is_trained, read_grid
from argparser import as_words, parse_options
from dataset.demo.writer import write_demo
from report.ablation_table import Row, draw_plot, mean_and_deviation, write_tables
from utils.errors import PansError

REPOSITORY = Path(__file__).parents[1]
PAPER = REPOSITORY / "docs/ablation.toml"
TINY = REPOSITORY / "tests/reliability/tiny.py"


def grid_of(folder, text):
    path = folder / "grid.toml"
    path.write_text(text)
    return read_grid(path)


@pytest.fixture
def paper(tmp_path):
    places = {"logdir": f"{tmp_path}/logs", "checkpoints": f"{tmp_path}/checkpoints"}
    return expand(read_grid(PAPER), {"ablate": "x", "name": "p", **places})


def leave_results(run, name, words=()):
    """What a run of this name leaves, but for the figures."""
    options = parse_options([*as_words(run.flags), *words])
    path = run.results_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"protocols": {}, "options": options.to_dict()}))


def leave_training(run):
    leave_results(run, run.training_name)
    run.options.tested_checkpoint_path.parent.mkdir(parents=True, exist_ok=True)
    run.options.tested_checkpoint_path.touch()


def test_the_paper_s_grid_leaves_out_prototypes_without_a_cosine_classifier(paper):
    assert len(paper) == 2 * 2 * 2
    left_out = [cell for cell in paper if cell.left_out]
    assert [tuple(cell.values.values()) for cell in left_out] == [
        ("standard", "prototype", False),
        ("standard", "prototype", True),
    ]
    assert all("prototype needs --classifier cosine" in cell.left_out for cell in left_out)
    for cell in paper:
        assert len(cell.runs) == (0 if cell.left_out else 3)
        for run, seed in zip(cell.runs, (42, 43, 44), strict=False):
            options = run.options
            assert options.random_seed == seed
            assert options.classifier == cell.values["classifier"]
            assert options.scores == (cell.values["score"],)
            assert options.multi_scala is cell.values["multi_scala"]
            assert options.crop_size == 450  # by default = true


def test_a_grid_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "grid.toml").write_text("seeds = [7]", encoding="utf-8-sig")
    assert read_grid(tmp_path / "grid.toml").seeds == (7,)


def test_too_many_runs_are_refused(tmp_path):
    axes = [f"{name} = {list(range(1, 30))}" for name in ("epochs", "batch_size", "crop_size")]
    (tmp_path / "grid.toml").write_text("\n".join(["[grid]", *axes]))
    with pytest.raises(PansError, match="that makes 24389 runs, more than 10000; shorten"):
        read_grid(tmp_path / "grid.toml")


def test_runs_that_differ_in_their_test_alone_share_a_training(paper):
    runs = [run for cell in paper for run in cell.runs]
    assert len({run.test_name for run in runs}) == len(runs) == 18
    assert {run.training_name for run in runs} == {
        f"p_classifier-{classifier}_seed{seed}"
        for classifier in ("standard", "cosine")
        for seed in (42, 43, 44)
    }


def test_one_training_is_shared_by_several_tests(paper):
    one, other = [cell.runs[0] for cell in paper if cell.values["classifier"] == "cosine"][:2]
    trained = parse_options(command_of(one))
    assert (trained.name, trained.test, trained.ckpt_test) == (one.training_name, False, None)
    leave_training(one)
    assert find_results(one) is not None
    assert find_results(other) is None
    assert is_trained(other)
    tested = parse_options(command_of(other))
    assert (tested.name, tested.test) == (other.test_name, True)
    assert tested.ckpt_test == str(one.options.checkpoint_path)  # the last weights, as published
    leave_results(other, other.test_name)
    assert find_results(other) is not None


@pytest.mark.parametrize("flag", ["--epochs=7", "--data_root=elsewhere", "--lr=0.5"])
def test_results_of_other_flags_are_not_reused(paper, flag):
    run = paper[0].runs[0]
    leave_training(run)
    leave_results(run, run.training_name, [flag])
    assert find_results(run) is None


@pytest.mark.parametrize("flag", ["--num_workers=1", "--print_interval=7", "--sample_num=0"])
def test_flags_that_affect_no_metric_may_differ(paper, flag):
    run = paper[0].runs[0]
    leave_results(run, run.training_name, [flag])
    assert find_results(run) is not None


def test_a_score_is_the_same_under_either_of_its_flags(paper):
    run = next(cell.runs[0] for cell in paper if cell.values["score"] == "prototype" and cell.runs)
    flags = {name: value for name, value in run.flags.items() if name != "score"}
    options = parse_options([*as_words(flags), "--cosine_scores"])
    path = run.results_path(run.training_name)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"protocols": {}, "options": options.to_dict()}))
    assert find_results(run) is not None


def test_damaged_results_are_not_reused(paper):
    run = paper[0].runs[0]
    leave_training(run)
    for text in ("", "[]", '{"protocols": {}}', '{"protocols": {}, "options": {"epochs": "x"}}'):
        run.results_path(run.training_name).write_text(text)
        assert find_results(run) is None
        assert not is_trained(run)


def test_arguments_of_a_command_line():
    flags = {"default": True, "multi_scala": False, "no_pretrained": False, "score": ["msp", "all"]}
    words = ["--default", "--no_multi_scala", "--score=msp,all"]
    assert as_words(flags) == words
    assert as_words({"lr": 0.5, "ckpt": None, "name": "-x"}) == ["--lr=0.5", "--name=-x"]


def test_values_that_are_not_file_names_get_unique_names(tmp_path):
    grid = grid_of(tmp_path, "[grid]\ndata_root = ['/a/b', '/a_b', 'c']\nepochs = [1, 2]\n")
    runs = [run for cell in expand(grid, {"ablate": "x"}) for run in cell.runs]
    names = {run.training_name for run in runs}
    assert len(names) == 6
    assert all("/" not in name and len(name) < 80 for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = [", "cannot be read"),
        ("[grids]", "'grids' has no place here; take flags, grid, published, seeds"),
        ("[grid]\nepoch = [1]", "'epoch' has no place here"),
        ("[grid]\nname = ['a']", "'name' has no place here"),
        ("[flags]\ntest = true", "'test' has no place here"),
        ("[grid]\nepochs = 3", "epochs should be a list of values, got 3"),
        ("seeds = 3", "seeds should be a list of integers"),
        ("[flags]\nepochs = 2\n[grid]\nepochs = [3]", "epochs is in both flags and grid"),
        ("[[published]]\nname = 'a'", "needs name and source, which are strings, and figures"),
        ("[[published]]\nname='a'\nsource='b'\nfigures=3", "figures, a table of numbers"),
        ("[[published]]\nname=2021\nsource='b'\nfigures={AUPR=1}", "which are strings"),
        ("[[published]]\nname='a'\nsource='b'\nfigures={AUPR='1'}", "a table of numbers"),
        ("[[published]]\nname='a'\nsource='b'\nfigures={AUC=1}", "'AUC' has no place here"),
        ("[grid]\nlr = [0.1, nan]", "no run accepts lr = nan: argument --lr: "),
        ("[grid]\nepochs = [1, 0]", "no run accepts epochs = 0: argument --epochs: must be 1 or"),
        ("seeds = [-1]", "no combination is valid: argument --random_seed: must be 0 or more"),
    ],
)
def test_bad_grids_are_one_line(tmp_path, text, message):
    with pytest.raises(PansError) as raised:
        expand(grid_of(tmp_path, text), {"ablate": "x"})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["epochs", "test", "random_seed", "ckpt_test"])
def test_passed_flags_that_contradict_the_grid_are_refused(tmp_path, name):
    grid = grid_of(tmp_path, "[grid]\nepochs = [1]\n")
    with pytest.raises(PansError, match=f"argument --{name}: cannot be combined with --ablate"):
        expand(grid, {"ablate": "x", name: "1"})


def test_passed_flags_override_the_flags_of_the_file(tmp_path):
    grid = grid_of(tmp_path, "[flags]\nlr = 0.1\nbatch_size = 3\n")
    (cell,) = expand(grid, {"ablate": "x", "lr": 0.2})
    (run,) = cell.runs
    assert (run.options.lr, run.options.batch_size, run.options.random_seed) == (0.2, 3, 42)


def test_mean_and_deviation_by_hand():
    # 2, 4, 9: mean 5, squares of the differences 9 + 1 + 16 = 26, over n - 1 = 2: 13.
    assert mean_and_deviation([2.0, 4.0, 9.0]) == pytest.approx((5.0, 13**0.5))
    mean, deviation = mean_and_deviation([3.0])
    assert (mean, deviation != deviation) == (3.0, True)
    assert all(value != value for value in mean_and_deviation([]))


def test_the_table_by_hand(tmp_path):
    rows = [
        Row({"lr": "0.1"}, "measured", "3 of 3", {"AUPR": [2, 4, 9], "FPR95": [30]}, ""),
        Row({"lr": "0.2"}, "measured", "0 of 3", {}, "seed 1 failed: a | b"),
        Row({"lr": ""}, "published, somewhere", "", {"AUPR": [8.8]}, "PAnS"),
    ]
    write_tables(tmp_path, rows)
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert lines[0] == "| lr | origin | runs | AUPR % | AUROC % | FPR95 % | Mean IoU % | note |"
    assert lines[2] == "| 0.1 | measured | 3 of 3 | 5.00 ± 3.61 |  | 30.00 |  |  |"
    assert lines[3] == "| 0.2 | measured | 0 of 3 |  |  |  |  | seed 1 failed: a \\| b |"
    assert lines[4] == "|  | published, somewhere |  | 8.80 |  |  |  | PAnS |"
    read = list(csv.DictReader((tmp_path / "ablation.csv").open()))
    assert float(read[0]["AUPR mean"]) == 5
    assert float(read[0]["AUPR standard deviation"]) == pytest.approx(13**0.5)
    assert read[0]["FPR95 standard deviation"] == read[1]["AUPR mean"] == ""
    assert read[1]["note"] == "seed 1 failed: a | b"
    draw_plot(tmp_path, rows)
    assert (tmp_path / "ablation.png").stat().st_size > 10_000


def test_a_plot_needs_metrics(tmp_path):
    draw_plot(tmp_path, [Row({"lr": "1"}, "measured", "0 of 1", {}, "seed 42 failed: x")])
    assert not (tmp_path / "ablation.png").exists()


GRID = """
[flags]
default = true
no_pretrained = true
crop_size = 48
epochs = 1
num_workers = 0
sample_num = 0

[grid]
data_root = ["{good}", "{late}"]
score = ["prototype", "msp"]

[[published]]
name = "PAnS"
source = "secondary source"
figures = {{ AUPR = 8.8 }}
"""


def test_a_grid_continues_after_a_failure_and_a_second_call_completes_it(
    tmp_path, capsys, monkeypatch
):
    """With the tiny network in every run; one of the two data sets comes late."""
    good, late = tmp_path / "good", tmp_path / "late"
    write_demo(good, train=4, validation=1, test=2, size=(96, 64), seed=1)
    (tmp_path / "grid.toml").write_text(GRID.format(good=good, late=late))
    folder = tmp_path / "logs/streethazards/tiny"
    monkeypatch.setattr(program, "__file__", str(TINY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run_grid():
        places = ["--logdir", tmp_path / "logs", "--checkpoints", tmp_path / "checkpoints"]
        words = ["--ablate", tmp_path / "grid.toml", "--name", "tiny", "--nproc", "1", *places]
        exit_code = program.main([str(word) for word in words])
        return (
            exit_code,
            capsys.readouterr(),
            list(csv.DictReader((folder / "ablation.csv").open())),
        )

    capsys.readouterr()
    exit_code, said, rows = run_grid()
    assert exit_code == 2
    (line,) = said.err.splitlines()
    assert line.startswith("error: 2 of 4 runs failed, such as tiny_data_root-")
    assert line.endswith("; the same command retries them")
    assert [row["runs"] for row in rows] == ["1 of 1", "1 of 1", "0 of 1", "0 of 1", ""]
    for row in rows[2:4]:
        assert row["note"].startswith("seed 42 failed: ")
        assert str(late) in row["note"]
    measured = {path.parent.name for path in folder.parent.glob("*/results.json")}
    assert len(measured) == 2  # a training, and a test of the same checkpoint
    assert len(list((tmp_path / "checkpoints/streethazards").glob("*_best.pth"))) == 1

    write_demo(late, train=4, validation=1, test=2, size=(96, 64), seed=2)
    capsys.readouterr()
    exit_code, said, mended = run_grid()
    assert exit_code == 0, said.err
    assert said.out.count("done before") == 2
    assert mended[:2] == rows[:2]
    assert [row["runs"] for row in mended[2:4]] == ["1 of 1", "1 of 1"]
    for row in mended[:4]:
        named = [
            path
            for path in folder.parent.glob("*/results.json")
            if (options := json.loads(path.read_text())["options"])["data_root"] == row["data_root"]
            and options["score"] == [row["score"]]
        ]
        (path,) = named
        results = json.loads(path.read_text())
        assert float(row["AUPR mean"]) == pytest.approx(results["AUPR"])
        assert float(row["Mean IoU mean"]) == pytest.approx(100 * results["Mean IoU"])
    assert mended[4]["origin"] == "published, secondary source"
    assert (folder / "ablation.png").exists()


SLOW_PROGRAM = """
import pathlib, signal, sys, time

def save(number, frame):
    print("saved")
    sys.exit(128 + number)

signal.signal({number}, save)
pathlib.Path("started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_makes_the_current_run_save_and_ends_the_grid(
    tmp_path, capsys, monkeypatch, number
):
    """A program that saves when it is told to end, instead of run.py."""
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(SLOW_PROGRAM.format(number=int(number)))
    Path("grid.toml").write_text("seeds = [1, 2]")
    monkeypatch.setattr(program, "__file__", "program.py")

    def interrupt():
        while not Path("started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert program.main(["--ablate", "grid.toml"]) == 128 + number
    thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: stopped by {number.name}: the same command resumes the grid"
    logs = list(Path("logs/streethazards/ablation").glob("*.txt"))
    assert [log.read_text() for log in logs] == ["saved\n"]  # and the second seed was not begun


def test_a_launcher_is_refused():
    with pytest.raises(PansError, match="--ablate launches every run itself"):
        program.work(parse_options(["--ablate", "grid.toml"]))
