"""ImageNet weights of the backbone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from errors import PansError
from modules.abn import EPS
from modules.resnet import ResNet


class WeightsError(PansError):
    """ImageNet weights are missing or do not fit the backbone."""


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


def load_backbone(
    body: ResNet, content: Mapping[str, Any], source: Path, *, plain_norms: bool
) -> None:
    """Fill `body` from the content of an ImageNet file, {"state_dict": {"module.mod1...": ...}}.

    The `module.` prefix is stripped and the ImageNet classifier dropped; `num_batches_tracked` may
    be absent.

    Args:
        source: where the content comes from, for the error.
        plain_norms: the body's norms are BatchNorm2d (`abn`, `std`): convert the weights.

    Raises:
        WeightsError: these are the weights of another network.
    """
    state = {
        key.removeprefix("module."): value
        for key, value in content.get("state_dict", content).items()
        if not key.removeprefix("module.").startswith("classifier.")
    }
    if plain_norms:
        state = to_plain_norms(state)
    expected = body.state_dict()
    wrong = [key for key in state if key not in expected or state[key].shape != expected[key].shape]
    missing = [
        key for key in expected if key not in state and not key.endswith("num_batches_tracked")
    ]
    if wrong or missing:
        raise WeightsError(
            f"{source} is not the ImageNet file of this backbone: {len(missing)} tensors missing, "
            f"{len(wrong)} that do not fit, such as {(missing + wrong)[0]}; check --backbone"
        )
    body.load_state_dict(state, strict=False)
