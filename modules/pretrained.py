"""Weight files -> state dicts, and the ImageNet backbone."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import PansError
from modules.abn import EPS
from modules.resnet import ResNet

# Published files hold their best score as a numpy scalar; nothing else is let through.
SAFE_TYPES = [
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
]


class WeightsError(PansError):
    """A weight file is missing, unreadable, unsafe, or does not fit the network."""


def read_weights_file(path: Path) -> Any:
    """What torch.save wrote into `path`, on the CPU, without running any code from it.

    Raises:
        WeightsError: missing, not a file of torch.save, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing: check the path")
    try:
        with torch.serialization.safe_globals(SAFE_TYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error):
            reason = "it holds more than tensors and numbers and could run code"
        else:
            reason = "it is not a file of torch.save, or is damaged"
        raise WeightsError(f"{path} is refused: {reason}; download or save it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} cannot be read: it is truncated or not a file of torch.save; "
            "download or save it again"
        ) from error


def strip_module_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the `module.` that DistributedDataParallel puts before every key."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def to_plain_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In-place ABN weights -> BatchNorm2d weights: gamma = |weight| + eps; the rest unchanged."""
    norms = {key.removesuffix("running_mean") for key in state if key.endswith("running_mean")}
    weights = {f"{norm}weight" for norm in norms}
    return {key: v.abs() + EPS if key in weights else v for key, v in state.items()}


def find_backbone_file(folder: Path, backbone: str) -> Path:
    """The ImageNet file of `backbone` under either of the names it is spread by.

    Raises:
        WeightsError: neither is there.
    """
    names = [f"{backbone}_iabn_sync.pth.tar", f"{backbone}.pth.tar"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder / names[0]} (or {names[1]}) is missing: put the ImageNet weights with in-place "
        "ABN there (pretrained/README.md), or train from scratch with --no_pretrained"
    )


def load_backbone(body: ResNet, path: Path, *, plain_norms: bool) -> None:
    """Fill `body` from an ImageNet file {"state_dict": {"module.mod1...": ...}, ...}.

    The ImageNet classifier is dropped; `num_batches_tracked` may be absent.

    Args:
        plain_norms: the body's norms are BatchNorm2d (`abn`, `std`): convert the weights.

    Raises:
        WeightsError: the file is unreadable or of another network.
    """
    content = read_weights_file(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    state = strip_module_prefix(content.get("state_dict", content))
    state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    if plain_norms:
        state = to_plain_norms(state)
    expected = body.state_dict()
    wrong = [key for key in state if key not in expected or state[key].shape != expected[key].shape]
    missing = [
        key for key in expected if key not in state and not key.endswith("num_batches_tracked")
    ]
    if wrong or missing:
        raise WeightsError(
            f"{path} is not the ImageNet file of this backbone: {len(missing)} tensors missing, "
            f"{len(wrong)} that do not fit, such as {(missing + wrong)[0]}; check --backbone"
        )
    body.load_state_dict(state, strict=False)
