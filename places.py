"""The places that a job writes to, held for it alone from its first tenth of a second on."""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from argparser import Options, check_words, typed_flags
from utils.errors import exit_code
from utils.flag_files import read_toml
from utils.output import lasting_output
from utils.run_lock import holding, lock_file
from utils.slurm import task_count

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

    Ends the program after --help, and with exit code 2 where another process holds one of them.
    Processes of a launcher or of srun hold nothing yet: the first of them does, once they are
    joined.
    """
    check_words(argv)
    held = ExitStack()

    def hold() -> None:
        typed = typed_flags(argv)
        name = typed.get("name", "ablation" if "ablate" in typed else Options.name)
        what = "the ablation" if "ablate" in typed else "run"
        held.enter_context(holding(_told_places(typed), f"{what} {name}"))

    if not _is_one_of_several():
        with lasting_output():
            code = exit_code(hold)
        if code:
            sys.exit(code)
    return held


def _is_one_of_several() -> bool:
    return "RANK" in os.environ or "WORLD_SIZE" in os.environ or task_count(os.environ) != "1"


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
