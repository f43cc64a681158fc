"""Checkpoints on disk: written whole or not at all, read without running any code of theirs.

A checkpoint is the zip archive of `torch.save`, which any torch reads. Its SHA-256 is the archive's
comment, so that the two can't part.
"""

import contextlib
import hashlib
import os
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor, nn

from errors import PansError

_MODEL_KEYS = ("model_state", "model_state_dict", "state_dict", "model")
_COUNTER = ".num_batches_tracked"
_SHOWN = 3

# A zip archive ends with a record of 22 bytes, the last two of which are the comment's length.
_END_RECORD = b"PK\x05\x06"
_END_RECORD_BYTES = 22
_SEAL = b"PAnS SHA-256 "
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size

# Best scores and the like were saved as numpy scalars, by numpy 1 (numpy.core) and 2 (numpy._core).
_NUMPY_SCALARS: list[Any] = [
    np.dtype,
    scalar,
    (scalar, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdg"),
]


class CheckpointError(PansError):
    """A checkpoint that is missing, unreadable, or of another network."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is missing, cut off or altered: an older one may serve instead."""


def previous_path(path: Path) -> Path:
    """Where the checkpoint before `path` is kept: NAME_previous.pth for NAME.pth."""
    return path.with_stem(f"{path.stem}_previous")


def save_checkpoint(
    path: Path | str, state: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Write `state` to `path`: whatever happens meanwhile, `path` holds the old or the new state.

    The state goes to a temporary file in the same folder, gets its checksum, is synced to the disk
    and then renamed.

    Args:
        keep_previous: leave what `path` held as `previous_path(path)`.

    Raises:
        CheckpointError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            torch.save(dict(state), file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            _keep(path)
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer covers a full disk with a RuntimeError about file positions.
        fault = error if isinstance(error, OSError) else error.__context__
        if not isinstance(fault, OSError):
            raise
        raise CheckpointError(
            f"the checkpoint {path} could not be written: {fault.strerror}; "
            f"{path.parent} should be a folder with space that may be written to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _seal(file: BufferedRandom) -> None:
    """Make the archive's SHA-256 its comment."""
    end = file.seek(-_END_RECORD_BYTES, os.SEEK_END)
    if file.read(len(_END_RECORD)) != _END_RECORD:
        raise RuntimeError("torch.save has not written a zip archive without a comment")
    file.seek(end + _END_RECORD_BYTES - 2)
    file.write(struct.pack("<H", _SEAL_BYTES))
    file.seek(0)
    file.write(_SEAL + hashlib.file_digest(file, "sha256").digest())


def _seal_is_broken(path: Path) -> bool:
    """Whether the file has a checksum that is not its own; files of other programs have none."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        tail_start = file.seek(max(0, size - 2 * _SEAL_BYTES))
        before, seal, digest = file.read().rpartition(_SEAL)
        if not seal:
            return False
        unread = tail_start + len(before)
        file.seek(0)
        found = hashlib.sha256()
        while block := file.read(min(unread, 1 << 20)):
            found.update(block)
            unread -= len(block)
    return found.digest() != digest


def _keep(path: Path) -> None:
    """Give `path` its second name, `previous_path`, without a moment in which it has none."""
    link = path.with_name(f".{path.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: the newer file is whole and comes next
        path.replace(previous_path(path))
    else:
        link.replace(previous_path(path))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: tensors, numbers, texts and containers of them, no code.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or it wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise DamagedCheckpoint(f"there is no checkpoint {path}; check its name, or train first")
    try:
        if _seal_is_broken(path):
            raise _damaged(path, "another SHA-256 than it was written with")
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
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


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, PermissionError):
        return CheckpointError(f"the checkpoint {path} may not be read; check its rights")
    forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and forbidden:
        return CheckpointError(
            f"the checkpoint {path} asks to load {forbidden[1]}, which could run code, and is "
            "refused; save it again as tensors and plain values"
        )
    return _damaged(path, type(error).__name__)


def _damaged(path: Path, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"the checkpoint {path} is damaged or no checkpoint ({path.stat().st_size} bytes, "
        f"{reason}); copy it again or use another one"
    )


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state dict in a checkpoint, wrapped or bare, without a `module.` prefix.

    Raises:
        CheckpointError: there is no state dict in it.
    """
    wrapped = (checkpoint[key] for key in _MODEL_KEYS if isinstance(checkpoint.get(key), Mapping))
    state = next(wrapped, checkpoint)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            "the checkpoint holds no network: neither is it a state dict, nor does it hold one as "
            + ", ".join(_MODEL_KEYS)
        )
    prefixed = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if prefixed else name: state[name] for name in state}


def load_model_state(model: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy a state dict into the network; names and shapes must be the network's own.

    Norms count batches only in some of their kinds, so that `num_batches_tracked` may differ.

    Args:
        source: where the state comes from, for the error.

    Raises:
        CheckpointError: names or shapes differ; nothing was copied then.
    """
    own = {name: value.shape for name, value in model.state_dict().items()}
    given = {name: value.shape for name, value in state.items()}
    missing = [name for name in own if name not in given and not name.endswith(_COUNTER)]
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
    model.load_state_dict(dict(state), strict=False)


def _shortened(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"


def _likely_cause(missing: set[str], unexpected: set[str], other_shape: set[str]) -> str:
    def any_starts(names: Iterable[str], prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    causes = {
        "it was trained with --classifier standard": "cls.cls.bias" in unexpected,
        "it was trained with --classifier cosine": "cls.cls.bias" in missing,
        "it was trained with --backbone resnet101": any_starts(unexpected, "body.mod4.block7."),
        "it was trained with --backbone resnet50": any_starts(missing, "body.mod4.block7."),
        "it was trained with another number of classes": "cls.cls.weight" in other_shape,
    }
    found = [cause for cause, holds in causes.items() if holds]
    return f"; {found[0]}" if found else ""
