"""The places that a job writes to, held for it alone from its first tenth of a second on."""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from argparser import Options, parse_options, require_purpose, typed_flags
from utils.errors import exit_code
from utils.flag_files import read_toml
from utils.output import lasting_output
from utils.run_lock import holding, lock_file
from utils.slurm import launched, task_count

_NAMING = ("name", "dataset", "logdir", "checkpoints", "test", "predict", "ckpt_test", "out")


def places(options: Options) -> list[Path]:
    """The lock files of all places that the job writes to."""
    if options.export:
        return []  # one file, whole at any time
    if options.predict:
        return [Path(options.out or "") / ".lock"]
    own = [options.log_folder] if options.test else [options.checkpoint_path, options.log_folder]
    return [lock_file(place) for place in own]


def hold_at_once(argv: Sequence[str]) -> ExitStack:
    """Check the words of the command line and hold the job's places, before torch is imported.

    Ends the program after --help, and with exit code 2 for what is wrong in the command line, or
    where another process holds one of the places. Processes of srun hold nothing yet, and those of
    a launcher check nothing either: the first of them does both, once they are joined.
    """
    held = ExitStack()
    if launched():
        return held
    with lasting_output():
        code = exit_code(lambda: _check_and_hold(argv, held))
    if code:
        sys.exit(code)
    return held


def _check_and_hold(argv: Sequence[str], held: ExitStack) -> None:
    typed = typed_flags(argv)
    require_purpose(typed)
    if not any(map(typed.get, ("ablate", "predict", "export", "test"))):  # files tell flags too
        parse_options(argv)
    if task_count(os.environ) == "1":
        name = typed.get("name", "ablation" if "ablate" in typed else Options.name)
        what = "the ablation" if "ablate" in typed else "run"
        held.enter_context(holding(_told_places(typed), f"{what} {name}"))


def _told_places(typed: Mapping[str, Any]) -> list[Path]:
    """The places, as far as the command line alone tells them."""
    if "export" in typed:
        return []
    if "ablate" in typed:
        return [_ablation_place(typed)]
    options = Options(**{name: typed[name] for name in _NAMING if name in typed})
    if options.test and options.ckpt_test and not {"dataset", "default"} & set(typed):
        # The checkpoint names its data set, and only torch reads it: the command's own place.
        mark = hashlib.sha256(os.path.realpath(options.ckpt_test).encode()).hexdigest()[:8]
        return [lock_file(Path(options.logdir) / f"{options.name}.{mark}")]
    return places(options)


def _ablation_place(typed: Mapping[str, Any]) -> Path:
    """Where `ablate.ablate` writes its tables, for a grid that is right."""
    grid = read_toml(Path(typed["ablate"]), "ablate", "docs/ablation.md")
    first = {
        axis: values[0]
        for axis, values in _table(grid, "grid").items()
        if isinstance(values, list) and values
    }
    flags = {**first, **_table(grid, "flags"), **typed}
    options = Options(**{name: flags[name] for name in ("dataset", "logdir") if name in flags})
    return lock_file(options.log_folder.parent / typed.get("name", "ablation"))


def _table(grid: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = grid.get(name)
    return table if isinstance(table, dict) else {}
