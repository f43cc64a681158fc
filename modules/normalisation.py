"""Normalisation of uint8 images by ImageNet's statistics."""

from functools import cache

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalised(images: Tensor) -> Tensor:
    """(byte / 255 - mean) / std, with ImageNet's mean and standard deviation per channel.

    The 256 values per channel are computed once on the CPU and looked up, so that every device
    gives bit for bit the result of torchvision's ToTensor and Normalize on a CPU.

    Args:
        images: (N, 3, H, W) uint8 RGB.

    Returns:
        (N, 3, H, W) float32 on the device of `images`.
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
