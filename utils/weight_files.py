"""The reader of checkpoints and ImageNet weights; never runs code from a file."""

import argparse
import pathlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor

from utils.errors import PansError
from utils.seal import seal_is_broken

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
