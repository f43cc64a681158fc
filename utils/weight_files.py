"""Files of tensors, read without running any code of theirs, and the networks in them.

The one reader of checkpoints and of ImageNet weights alike.
"""

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


class WeightsError(PansError):
    """ImageNet weights are missing or do not fit the backbone."""


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: tensors, numbers, texts and containers of them, no code.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or it wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise DamagedCheckpoint(f"there is no checkpoint {path}; check its name, or train first")
    try:
        if seal_is_broken(path):
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
