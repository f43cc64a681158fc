"""Convert torchvision's ResNet-50 and -101 to weights of a body with in-place ABN."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modules.abn import EPS
from utils.checkpoint import WeightsError

# The weights from which torchvision's own segmentation networks were trained.
VERSION = "IMAGENET1K_V1"

_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(.+)")


def download(backbone: str) -> tuple[dict[str, Tensor], str]:
    """Get torchvision's ImageNet weights of `backbone`, from its cache or by download, and the URL.

    Raises:
        WeightsError: the download fails, or the file is damaged.
    """
    from torchvision.models import WeightsEnum, get_model_weights  # takes a second

    entry: WeightsEnum = get_model_weights(backbone)[VERSION]
    try:
        state = entry.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        raise WeightsError(
            f"torchvision's weights of {backbone} could not be fetched from {entry.url} ({error}); "
            "fetch that file by other means and pass it as --pretrained FILE"
        ) from error
    # torch.load and the hash check raise errors of many types on damaged files.
    except Exception as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        raise WeightsError(
            f"torchvision's weights of {backbone} from {entry.url} are damaged "
            f"({type(error).__name__}); delete {cached} and start again"
        ) from error
    return state, entry.url


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map torchvision's names to those of `modules.resnet.ResNet`, without the classifier.

    conv1, bn1 -> mod1; layerL.B -> mod(L+1).block(B+1); downsample.0, .1 -> proj_conv, proj_bn.
    Names that torchvision's ResNet does not have stay as they are.
    """
    return {_own_name(name): value for name, value in state.items() if not name.startswith("fc.")}


def _own_name(name: str) -> str:
    if name.startswith(("conv1.", "bn1.")):
        return f"mod1.{name}"
    block = _BLOCK.fullmatch(name)
    if block is None:
        return name
    layer, index, rest = block.groups()
    place = f"mod{int(layer) + 1}.block{int(index) + 1}"
    for torchvision_name, own_name in (("downsample.0", "proj_conv"), ("downsample.1", "proj_bn")):
        if rest.startswith(f"{torchvision_name}."):
            return f"{place}.{own_name}{rest.removeprefix(torchvision_name)}"
    return f"{place}.convs.{rest}"


def to_inplace_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert BatchNorm2d weights of any sign to in-place ABN, whose scale is |weight| + eps.

    A norm after a convolution computes gamma (W x - mean) / sd + bias. Where gamma < 0,

        gamma (W x - mean) / sd = |gamma| ((-W) x - (-mean)) / sd,

    so the signs of the convolution's channel and of the running mean are flipped: the same function
    in training and evaluation. Then weight = |gamma| - eps. In-place ABN has no scale below
    eps = 1e-5: smaller |gamma| become eps, which changes the channel by at most 1e-5 of its
    deviation.

    Args:
        state: state dict of a body, under this network's names, with the convolutions.
    """
    converted = dict(state)
    for name in state:
        if not name.endswith("running_mean"):
            continue
        norm = name.removesuffix(".running_mean")
        before, _, number = norm.rpartition("bn")  # bn1 follows conv1, proj_bn follows proj_conv
        convolution = f"{before}conv{number}.weight"
        gamma = state[f"{norm}.weight"]
        sign = torch.where(gamma < 0, -1, 1).to(gamma.dtype)
        converted[convolution] = state[convolution] * sign.view(-1, 1, 1, 1)
        converted[name] = state[name] * sign
        converted[f"{norm}.weight"] = (gamma.abs() - EPS).clamp_min(0)
    return converted
