"""A grid of options and seeds, run one after the other: `python run.py --ablate FILE.toml`.

Every run is a separate process, so that a crash of one does not affect the others. Completed runs
are skipped, and runs that differ only in their test share one training.
"""

import hashlib
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

from argparser import FLAGS, OptionError, Options, as_words, flags_that_affect, parse_options
from metrics.report import UnreadableResults, read_results
from report.ablation_table import METRICS, Row, draw_plot, write_tables
from utils.errors import PansError
from utils.flag_files import read_toml, refuse_unknown
from utils.interruption import SAVING_SIGNAL, Interrupted, handling, heeded_signals
from utils.parent import as_parent
from utils.run_lock import holding, lock_file

TEST_FLAGS = flags_that_affect("test")
_JOBS = {"test", "ckpt_test", "predict", "export", "out", "ablate", "config", "local_rank"}
_WITHOUT_EFFECT = flags_that_affect("nothing") - {"data_root"}
_TABLES = {"seeds", "flags", "grid", "published"}
_PUBLISHED_KEYS = {"name", "source", "cell", "figures"}
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Grid:
    """The contents of a file of --ablate: flags for all runs, axes with their values, seeds."""

    path: Path
    seeds: tuple[int, ...]
    flags: Mapping[str, Any]
    axes: Mapping[str, Sequence[Any]]
    published: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Run:
    """One cell with one seed. `options` are those of a training with the cell's test."""

    flags: Mapping[str, Any]
    options: Options
    test_name: str

    @property
    def training_name(self) -> str:
        """Shared by all runs that differ only in their test."""
        return self.options.name

    def results_path(self, name: str) -> Path:
        """Path of the results of the training or test of this name."""
        return self.options.log_folder.parent / name / "results.json"


@dataclass(frozen=True)
class Cell:
    """A value per axis, with its runs, one per seed, or the reason why it is left out."""

    values: Mapping[str, Any]
    runs: tuple[Run, ...]
    left_out: str = ""


def read_grid(path: Path) -> Grid:
    """Read and check a file of --ablate.

    Raises:
        PansError: the file cannot be read, or names a table or a flag that does not exist.
    """
    content = read_toml(path, "ablate", "docs/ablation.md")
    refuse_unknown(path, content, _TABLES)
    flags, axes = content.get("flags", {}), content.get("grid", {})
    known = FLAGS.keys() - _JOBS - {"name", "random_seed"}
    for table in (flags, axes):
        if not isinstance(table, dict):
            raise PansError(f"{path}: flags and grid should be tables; see docs/ablation.md")
        refuse_unknown(path, table, known)
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise PansError(f"{path}: {axis} should be a list of values, got {values!r}")
        if axis in flags:
            raise PansError(f"{path}: {axis} is in both flags and grid; remove it from one")
    seeds = content.get("seeds", [42])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise PansError(f"{path}: seeds should be a list of integers, got {seeds!r}")
    runs = math.prod(map(len, axes.values())) * len(seeds)
    if runs > MOST_RUNS:
        raise PansError(f"{path}: that makes {runs} runs, more than {MOST_RUNS}; shorten its lists")
    published = _published(path, content.get("published", []), set(axes))
    return Grid(path, tuple(dict.fromkeys(seeds)), flags, axes, published)


def _published(path: Path, entries: Any, axes: set[str]) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(entries, list) or not all(map(_is_published, entries)):
        raise PansError(
            f"{path}: every [[published]] needs name and source, which are strings, and figures, a "
            "table of numbers; see docs/ablation.md"
        )
    for entry in entries:
        refuse_unknown(path, entry, _PUBLISHED_KEYS)
        refuse_unknown(path, entry["figures"], set(METRICS))
        refuse_unknown(path, entry.get("cell", {}), axes)
    return tuple(entries)


def _is_published(entry: Any) -> bool:
    """Whether the parts of an entry have the right types."""
    match entry:
        case {"name": str(), "source": str(), "figures": dict(metrics)}:
            numbers = all(isinstance(value, int | float) for value in metrics.values())
            return numbers and isinstance(entry.get("cell", {}), dict)
    return False


def expand(grid: Grid, typed: Mapping[str, Any]) -> list[Cell]:
    """Every combination of the axes' values, the last axis running fastest.

    Args:
        typed: the flags passed beside --ablate; they override the file's.

    Raises:
        PansError: a passed flag is an axis or a job, or a value is invalid in every cell.
    """
    typed = {name: value for name, value in typed.items() if name != "ablate"}
    taken = set(typed) & (_JOBS | set(grid.axes) | {"random_seed"})
    if taken:
        name = min(taken)
        raise PansError(
            f"argument --{name}: cannot be combined with --ablate {grid.path}; remove it"
        )
    shared = {**grid.flags, **typed}
    combinations = product(*grid.axes.values())
    cells = [
        _cell(shared, dict(zip(grid.axes, values, strict=True)), grid.seeds)
        for values in combinations
    ]
    for axis, values in grid.axes.items():
        for value in values:
            reasons = [cell.left_out for cell in cells if cell.values[axis] is value]
            if all(reasons):
                raise PansError(f"{grid.path}: no run accepts {axis} = {value!r}: {reasons[0]}")
    if all(cell.left_out for cell in cells):
        raise PansError(f"{grid.path}: no combination is valid: {cells[0].left_out}")
    return cells


def _cell(shared: Mapping[str, Any], values: Mapping[str, Any], seeds: Sequence[int]) -> Cell:
    trained = {axis: value for axis, value in values.items() if axis not in TEST_FLAGS}
    tested = {axis: value for axis, value in values.items() if axis in TEST_FLAGS}
    runs = []
    for seed in seeds:
        name = "_".join(
            [shared.get("name", "ablation"), *map(_label, trained, trained.values()), f"seed{seed}"]
        )
        flags = {**shared, **values, "random_seed": seed, "name": name}
        try:
            options = parse_options(as_words(flags))
        except OptionError as error:
            return Cell(values, (), str(error).removesuffix("; see --help"))
        runs.append(Run(flags, options, "_".join([name, *map(_label, tested, tested.values())])))
    return Cell(values, tuple(runs))


def _label(axis: str, value: Any) -> str:
    """An axis's value as part of a file name, unique per value."""
    if isinstance(value, bool):
        return axis if value else f"no_{axis}"
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    if not re.fullmatch(r"[\w.+-]{1,40}", text):
        text = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{axis}-{text}"


def find_results(run: Run) -> dict[str, Any] | None:
    """The run's results, from its training's own test or from a later one; None if not done."""
    return _results_of(run, run.training_name) or _results_of(run, run.test_name)


def is_trained(run: Run) -> bool:
    """Whether the run's training is done, including its test."""
    results = _results_of(run, run.training_name, but=TEST_FLAGS)
    return results is not None and run.options.tested_checkpoint_path.is_file()


def _results_of(run: Run, name: str, but: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """The results of this name, if they were measured with the options of the run.

    Only options that affect the metrics are compared, and scores after resolving aliases: --msp and
    --score msp are the same.

    Args:
        but: flags that may differ.
    """
    try:
        results = read_results(run.results_path(name))
        options = Options.from_dict(results["options"])
    except (UnreadableResults, KeyError, TypeError, AttributeError, OptionError):
        return None
    there, here = ({**one.to_dict(), "score": one.scores} for one in (options, run.options))
    compared = FLAGS.keys() - _WITHOUT_EFFECT - {"cosine_scores", "msp"} - but
    return results if all(there[flag] == here[flag] for flag in compared) else None


def command_of(run: Run) -> list[str]:
    """The command line of a run's next step: a training, or a test of one."""
    if not is_trained(run):
        return as_words(run.flags)
    tested = {
        "name": run.test_name,
        "test": True,
        "ckpt_test": str(run.options.tested_checkpoint_path),
    }
    return as_words({**run.flags, **tested})


def ablate(typed: Mapping[str, Any], program: str) -> None:
    """Do the runs of a grid that are not done yet; write its tables after every run, then its plot.

    Args:
        typed: the flags passed, including --ablate.
        program: the script that is started for every run.

    Raises:
        PansError: the grid cannot be read or contradicts the flags beside it.
        PansError: some runs failed; all others are done.
        Interrupted: a signal stopped the current run, which has saved.
    """
    grid = read_grid(Path(typed["ablate"]))
    cells = expand(grid, typed)
    first = next(cell.runs[0] for cell in cells if cell.runs)
    folder = first.options.log_folder.parent / typed.get("name", "ablation")
    with holding([lock_file(folder)], f"the ablation {folder.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        _run_all(grid, cells, folder, program)


def _run_all(grid: Grid, cells: Sequence[Cell], folder: Path, program: str) -> None:
    for cell in cells:
        if cell.left_out:
            print(f"left out: {_described(cell.values)}: {cell.left_out}")
    # Seed by seed, so that an interrupted grid has already compared all cells.
    runs = [cell.runs[number] for number in range(len(grid.seeds)) for cell in cells if cell.runs]
    failures: dict[str, str] = {}  # by the name of a test, or of a training for all of its tests
    for number, run in enumerate(runs, 1):
        print(f"{number} of {len(runs)}: {run.test_name}: ", end="", flush=True)
        print(_complete(run, failures, folder, program))
        write_tables(folder, _rows(grid, cells, failures))
    draw_plot(folder, _rows(grid, cells, failures))
    print(f"table: {folder / 'ablation.md'}, {folder / 'ablation.csv'}   plot: ablation.png there")
    failed = [run for run in runs if _failure(run, failures)]
    if failed:
        raise PansError(
            f"{len(failed)} of {len(runs)} runs failed, such as {failed[0].test_name}: "
            f"{_failure(failed[0], failures)}; the same command retries them"
        )


def _complete(run: Run, failures: dict[str, str], folder: Path, program: str) -> str:
    """Do a run's next step; returns its outcome in words, and records a failure."""
    if find_results(run) is not None:
        return "done before"
    if _failure(run, failures):
        return "its training has failed"
    testing = is_trained(run)
    name = run.test_name if testing else run.training_name
    log = folder / f"{name}.txt"
    print(f"{'test' if testing else 'training'}, see {log} ", end="", flush=True)
    exit_code = _start([sys.executable, program, *command_of(run)], log)
    if exit_code == 0 and find_results(run) is not None:
        return "done"
    failures[name] = _reason(log, exit_code)
    return f"FAILED: {failures[name]}"


def _failure(run: Run, failures: Mapping[str, str]) -> str | None:
    if find_results(run) is not None:
        return None
    return failures.get(run.training_name) or failures.get(run.test_name)


def _start(command: Sequence[str], log: Path) -> int:
    """Run a command with its output in `log`; signals are forwarded to it, then end the grid."""
    received = 0
    with (
        as_parent(),
        log.open("w") as out,
        # In its own session, or a terminal's SIGINT would reach it twice.
        subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        ) as child,
    ):

        def forward(number: int, frame: FrameType | None) -> None:
            nonlocal received
            if number != SAVING_SIGNAL:
                received = number
            child.send_signal(number)

        with handling(dict.fromkeys([*heeded_signals(), SAVING_SIGNAL], forward)):
            exit_code = child.wait()
    if received:
        raise Interrupted(received, "the same command resumes the grid")
    return exit_code


def _reason(log: Path, exit_code: int) -> str:
    """Why a run failed: its last error line, or else its last line of output."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = lines[-1] if lines else "no output"
    return errors[-1] if errors else f"exit code {exit_code}: {last}"


def _rows(grid: Grid, cells: Sequence[Cell], failures: Mapping[str, str]) -> list[Row]:
    rows = [_measured(grid, cell, failures) for cell in cells]
    for entry in grid.published:
        given = entry.get("cell", {})
        values = {axis: _text(given[axis]) if axis in given else "" for axis in grid.axes}
        metrics = {name: [value] for name, value in entry["figures"].items()}
        rows.append(Row(values, f"published, {entry['source']}", "", metrics, entry["name"]))
    return rows


def _measured(grid: Grid, cell: Cell, failures: Mapping[str, str]) -> Row:
    values = {axis: _text(value) for axis, value in cell.values.items()}
    if cell.left_out:
        return Row(values, "left out", "", {}, cell.left_out)
    results = [found for run in cell.runs if (found := find_results(run)) is not None]
    metrics = {
        name: [scale * one[name] for one in results if isinstance(one.get(name), int | float)]
        for name, scale in METRICS.items()
    }
    reasons = [
        f"seed {run.options.random_seed} failed: {reason}"
        for run in cell.runs
        if (reason := _failure(run, failures))
    ]
    runs = f"{len(results)} of {len(cell.runs)}"
    return Row(values, "measured", runs, metrics, "; ".join(reasons))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _described(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} {_text(value)}" for axis, value in values.items())
