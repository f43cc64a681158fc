"""Checkpoints on disk: written atomically, with a checksum, and read without running their code."""

import argparse
import pathlib
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor, nn

from utils.errors import PansError
from utils.files import replacing, same_file
from utils.seal import seal, seal_is_broken

_MODEL_KEYS = ("model_state", "model_state_dict", "state_dict", "model")

# Numbers may be saved as numpy scalars, by numpy 1 (numpy.core) or 2 (numpy._core).
_NUMPY_SCALARS: list[Any] = [
    np.dtype,
    scalar,
    (scalar, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdg"),
]
# Harmless types that are often saved beside weights.
_PLAIN_CLASSES: list[Any] = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath]
# Prefixes of torch.compile, DistributedDataParallel and Lightning.
_WRAPPERS = {"module", "_orig_mod", "model", "net", "network"}
_SAVE_AGAIN = 'save it again with torch.save({"model_state": model.state_dict()}, FILE)'
_COUNTER = ".num_batches_tracked"
DEEP_SUPERVISION = "deepsup"
"""Part of the names of weights that are only needed in training."""
_SHOWN = 3


class CheckpointError(PansError):
    """A checkpoint is missing, unreadable, or of another network."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is truncated, altered or missing; an older one may be used instead."""


class MissingCheckpoint(DamagedCheckpoint):
    """There is no checkpoint of that name."""


class WeightsError(PansError):
    """ImageNet weights are missing or do not fit the backbone."""


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: tensors, numbers, texts and containers of them, no code.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or tries to run code.
    """
    path = Path(path)
    refuse_no_file(path)
    if not path.exists():
        raise MissingCheckpoint(f"there is no checkpoint {path}; check its name, or train first")
    try:
        if seal_is_broken(path):
            raise _damaged(path, "another SHA-256 than it was written with")
        with torch.serialization.safe_globals(_NUMPY_SCALARS + _PLAIN_CLASSES):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedCheckpoint:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"the checkpoint {path} holds a {type(state).__name__} where a dict was expected"
        )
    return state


def peek(path: Path) -> dict[str, Any]:
    """A checkpoint's content, without reading tensors or checking it; empty if it is damaged."""
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # as for `load_checkpoint`
        return {}
    return content if isinstance(content, dict) else {}


def refuse_no_file(path: Path) -> None:
    """Raise CheckpointError if a path is a folder, a pipe, or a broken link."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which is not there; mount its disk, or "
            "remove the link"
        )
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise CheckpointError(f"{path} is {kind} where a checkpoint was expected; rename it")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, PermissionError):
        return CheckpointError(f"the checkpoint {path} may not be read; check its rights")
    forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and forbidden:
        return CheckpointError(
            f"the checkpoint {path} asks to load {forbidden[1]}, which could run code, and is "
            f"refused; {_SAVE_AGAIN}"
        )
    return _damaged(path, type(error).__name__)


def _damaged(path: Path, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"the checkpoint {path} is damaged or no checkpoint ({path.stat().st_size} bytes, "
        f"{reason}); copy it again or use another one"
    )


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state dict in a checkpoint, under the network's own names.

    It may be wrapped or bare. Prefixes of torch.compile, DistributedDataParallel and Lightning are
    removed, and tensors that are not the network's are ignored.

    Raises:
        CheckpointError: there is no state dict of plain tensors.
    """
    wrapped = (checkpoint[key] for key in _MODEL_KEYS if isinstance(checkpoint.get(key), Mapping))
    state = next(wrapped, checkpoint)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            "the checkpoint holds no network: neither is it a state dict, nor does it hold one as "
            f"{', '.join(_MODEL_KEYS)}; {_SAVE_AGAIN}"
        )
    other = next((name for name, value in state.items() if not _is_dense(value)), None)
    if other is not None:
        raise CheckpointError(
            f"the checkpoint's {other} is no plain tensor of real numbers (it is sparse, "
            "quantized, complex or without values); save it again as one"
        )
    networks: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        prefix, own_name = _split_wrappers(str(name))
        networks.setdefault(prefix, {})[own_name] = value
    largest = max(networks.values(), key=len)
    # The others are of a loss, say.
    return largest if 2 * len(largest) > len(state) else dict(state)


def _split_wrappers(name: str) -> tuple[str, str]:
    """Split model._orig_mod.body.mod1 into (model._orig_mod, body.mod1)."""
    parts = name.split(".")
    start = next((i for i, part in enumerate(parts) if part not in _WRAPPERS), 0)
    return ".".join(parts[:start]), ".".join(part for part in parts[start:] if part != "_orig_mod")


def _is_dense(value: Tensor) -> bool:
    is_stored = value.layout == torch.strided and value.device.type != "meta"
    return is_stored and not (value.is_nested or value.is_quantized or value.is_complex())


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


def link_checkpoint(source: Path, path: Path) -> None:
    """Make `path` the checkpoint `source` too, as a hard link if the disk supports it.

    The old file is kept as `previous_path(path)`.

    Raises:
        CheckpointError: see `save_checkpoint`.
    """
    try:
        if path.exists():
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
    # Some are hard links to others.
    there = {(one.st_dev, one.st_ino): one.st_size for one in found}
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
