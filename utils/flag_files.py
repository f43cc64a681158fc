"""Files that hold flags: TOML tables, and the options in a results.json."""

import difflib
import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from utils.errors import PansError
from utils.reading import Unreadable, read_text

# Flags that apply to one start of a run only.
_OF_ONE_START = {"config", "ablate", "local_rank", "restart", "accept_changes"}

_MOST_LISTED = 12


def read_toml(path: Path, flag: str, page: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        flag, page: the flag that names the file and its page in docs/, for the error message.

    Raises:
        PansError: it is missing or no TOML.
    """
    try:
        return tomllib.loads(read_text(path, "TOML"))
    except (Unreadable, ValueError, RecursionError) as error:
        raise PansError(f"--{flag} {path} cannot be read: {error}; see {page}") from error


def refuse_unknown(path: Path, names: Collection[str], known: Collection[str]) -> None:
    """Raise at the first of `names` that is not known.

    Raises:
        PansError: it names the nearest known ones.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            listed = f"take {', '.join(sorted(known))}"
            if len(known) > _MOST_LISTED:
                listed = "python run.py --help_all lists the flags"
            raise PansError(f"{path}: {name!r} has no place here; {listed}{hint}")


def read_config(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Read the flags of --config by name, with the file's values.

    Args:
        path: TOML with flags at the top level or in a table `flags`; or a results.json with
            options.
        known: the names of all flags.

    Raises:
        PansError: the file cannot be read, or has an unknown flag.
    """
    if path.suffix == ".json":
        flags = _options_in(path)
    else:
        content = read_toml(path, "config", "docs/training.md")
        flags = content
        if "flags" in content:
            refuse_unknown(path, content, {"flags"})
            flags = content["flags"]
    if not isinstance(flags, Mapping):
        raise PansError(f"{path}: flags should be a table; see docs/training.md")
    flags = {name.replace("-", "_"): value for name, value in flags.items()}
    refuse_unknown(path, flags, known)
    return flags


def _options_in(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, "JSON"))
    except (Unreadable, ValueError, RecursionError) as error:
        raise PansError(f"--config {path} cannot be read: {error}; see docs/training.md") from error
    options = content.get("options") if isinstance(content, dict) else None
    if not isinstance(options, dict):
        raise PansError(
            f"--config {path} holds no options of a run; name the results.json of a training or "
            "a test, or a TOML file of flags"
        )
    return {
        name: value
        for name, value in options.items()
        if value is not None and name not in _OF_ONE_START
    }
