"""Pictures of bytes to the input that the network was pretrained with."""

from functools import cache

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalised(images: Tensor) -> Tensor:
    """(byte / 255 - mean) / std, with ImageNet's mean and standard deviation of each channel.

    The 256 values of each channel are computed once, on the CPU, and looked up: the same bits on
    every device as torchvision's ToTensor and Normalize give on a CPU.

    Args:
        images: (N, 3, H, W) uint8 RGB.

    Returns:
        (N, 3, H, W) float32, where `images` is.
    """
    values = _values(images.device)
    places = images.to(torch.int32, memory_format=torch.contiguous_format)
    places[:, 1] += 256
    places[:, 2] += 512
    return values.index_select(0, places.flatten()).view(images.shape)


@cache
def _values(device: torch.device) -> Tensor:
    """(3 * 256,) float32: those of red, green and blue."""
    with torch.inference_mode(False):  # training uses them too
        shares = torch.arange(256).float() / 255
        mean, std = torch.tensor([MEAN, STD])[..., None]
        return ((shares - mean) / std).flatten().to(device, non_blocking=True)
