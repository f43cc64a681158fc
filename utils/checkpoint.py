"""Checkpoints on disk: written atomically, with a checksum."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.files import replacing, same_file
from utils.seal import seal
from utils.weight_files import (
    CheckpointError,
    DamagedCheckpoint,
    MissingCheckpoint,
    load_checkpoint,
    model_state,
    peek,
    refuse_no_file,
)

__all__ = [
    "CheckpointError",
    "DamagedCheckpoint",
    "MissingCheckpoint",
    "checkpoint_places",
    "find_checkpoint",
    "link_checkpoint",
    "load_checkpoint",
    "load_model_state",
    "model_state",
    "peek",
    "previous_path",
    "refuse_no_file",
    "require_room",
    "save_checkpoint",
]

_COUNTER = ".num_batches_tracked"
DEEP_SUPERVISION = "deepsup"
"""Part of the names of weights that are only needed in training."""
_SHOWN = 3


def previous_path(path: Path) -> Path:
    """Path of the checkpoint before `path`: NAME_previous.pth for NAME.pth."""
    return path.with_stem(f"{path.stem}_previous")


def checkpoint_places(given: str, folder: Path) -> list[Path]:
    """Candidates for `given`: a path, or a name in `folder`, with or without .pth."""
    path, named = Path(given), folder / given
    if path.is_file() or path.is_absolute():
        return [path]
    return [path, named] if named.suffix == ".pth" else [path, named, folder / f"{given}.pth"]


def find_checkpoint(given: str, folder: Path) -> Path:
    """The first of `checkpoint_places` that exists, or whose previous checkpoint exists.

    Raises:
        MissingCheckpoint: none exists.
        CheckpointError: one of them is a folder, a pipe or a broken link.
    """
    places = checkpoint_places(given, folder)
    for place in places:
        if place.is_file() or previous_path(place).is_file():
            return place
    for place in places:
        refuse_no_file(place)
    others = ", ".join(map(str, places[1:]))
    raise MissingCheckpoint(
        f"there is no checkpoint {places[0]}{f' (also looked for {others})' * bool(others)}; "
        "check its name, or train first"
    )


def save_checkpoint(
    path: Path | str, state: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Write `state` with its checksum to `path`, atomically by `utils.files.replacing`.

    Args:
        keep_previous: keep the old file as `previous_path(path)`.

    Raises:
        CheckpointError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
            seal(file)
            if keep_previous and path.exists():
                same_file(path, previous_path(path))
    except (OSError, RuntimeError) as error:
        # torch's writer hides a full disk behind a RuntimeError about file positions.
        fault = error if isinstance(error, OSError) else error.__context__
        if not isinstance(fault, OSError):
            raise
        raise _not_written(path, fault) from error


def link_checkpoint(source: Path, path: Path, *, keep_previous: bool = False) -> None:
    """Make `path` the checkpoint `source` too, as a hard link if the disk supports it.

    Args, Raises:
        See `save_checkpoint`.
    """
    try:
        if keep_previous and path.exists():
            same_file(path, previous_path(path))
        same_file(source, path)
    except OSError as error:
        raise _not_written(path, error) from error


def require_room(paths: Sequence[Path], size: int) -> str:
    """Check that checkpoints and a temporary one fit on the disk.

    Args:
        paths: paths of checkpoints in one folder, which may exist already.
        size: size of each in bytes.

    Returns:
        A sentence about the space they need.

    Raises:
        CheckpointError: they do not fit, or the folder cannot be written to.
    """
    folder = paths[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        disk = shutil.disk_usage(folder)
        found = [path.stat() for path in paths if path.exists()]
    except OSError as error:
        raise _not_written(paths[0], error) from error
    there = {
        (one.st_dev, one.st_ino): one.st_size for one in found
    }  # some are hard links to others
    needed, kept = (len(paths) + 1) * size, sum(there.values())
    words = f"checkpoints: {_gigabytes(needed)} in {folder}"
    if disk.total and disk.free + kept < needed:  # some network disks report no sizes
        raise CheckpointError(
            f"{words}, {len(paths)} of {_gigabytes(size)} and one while it is written, do not fit: "
            f"{_gigabytes(disk.free)} are free and {_gigabytes(kept)} are theirs already; make "
            "room, or name another folder by --checkpoints"
        )
    return f"{words} at most, {_gigabytes(disk.free)} are free"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _not_written(path: Path, fault: OSError) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} could not be written: {fault.strerror}; "
        f"{path.parent} should be a folder with space that may be written to"
    )


def load_model_state(
    model: nn.Module, state: Mapping[str, Tensor], source: Path | str, *, may_lack: str = _COUNTER
) -> None:
    """Copy a state dict into the network; names and shapes must be the network's own.

    Only some norms have `num_batches_tracked`, which may therefore differ.

    Args:
        source: the file, for the error message.
        may_lack: weights whose names contain this are not changed if `state` lacks them.

    Raises:
        CheckpointError: names or shapes differ, or not all values are finite; nothing is copied.
    """
    own = {name: value.shape for name, value in model.state_dict().items()}
    given = {name: value.shape for name, value in state.items()}
    missing = [
        name
        for name in own
        if name not in given and not name.endswith(_COUNTER) and may_lack not in name
    ]
    unexpected = [name for name in given if name not in own and not name.endswith(_COUNTER)]
    other_shape = [name for name in own if name in given and own[name] != given[name]]
    if missing or unexpected or other_shape:
        shapes = [f"{name} {list(given[name])} for {list(own[name])}" for name in other_shape]
        differences = (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
        raise CheckpointError(
            f"{source} is not of this network: "
            + "; ".join(_shortened(kind, names) for kind, names in differences if names)
            + _likely_cause(set(missing), set(unexpected), set(other_shape))
        )
    broken = [name for name in own if name in state and not _is_finite(state[name])]
    if broken:
        raise CheckpointError(
            f"{source} holds values that are not finite, NaN or infinity: "
            f"{_shortened('tensors', broken)}; its training had failed, use an earlier checkpoint"
        )
    model.load_state_dict(dict(state), strict=False)


def _is_finite(value: Tensor) -> bool:
    return bool((value.float() if value.is_floating_point() else value).isfinite().all())


def _shortened(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"


def _likely_cause(missing: set[str], unexpected: set[str], other_shape: set[str]) -> str:
    def any_starts(names: Iterable[str], prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    causes = {
        "it was trained with --classifier standard": "cls.cls.bias" in unexpected,
        "it was trained with --classifier cosine": "cls.cls.bias" in missing,
        "it was trained with --backbone resnet152": any_starts(unexpected, "body.mod4.block24."),
        "it was trained with --backbone resnet101": any_starts(unexpected, "body.mod4.block7.")
        or (
            any_starts(missing, "body.mod4.block24.")
            and not any_starts(missing, "body.mod4.block7.")
        ),
        "it was trained with --backbone resnet50": any_starts(missing, "body.mod4.block7."),
        "it was trained with another number of classes, so name the --dataset that it was trained "
        "on": "cls.cls.weight" in other_shape,
    }
    found = [cause for cause, holds in causes.items() if holds]
    return f"; {found[0]}" if found else ""
