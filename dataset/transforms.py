"""From a decoded picture and its label map to input tensors.

Random transforms are called as `transform(image, label, rng)` and draw all random numbers from
`rng`, so that a sample can be reproduced from the state of one generator.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dataset.description import IGNORE_INDEX

Pair = tuple[Image.Image, Image.Image]

SMALLEST_SCALE, LARGEST_SCALE = 300 / 720, 1000 / 1280
TEST_SCALES = (SMALLEST_SCALE, 375 / 720, 450 / 720, 525 / 720, LARGEST_SCALE)
SIZE_MULTIPLE = 8


class Sample(NamedTuple):
    """An input of the network, which does the normalisation itself, and its label.

    Attributes:
        image: (3, H, W) uint8 RGB.
        label: (H, W) uint8, class indices, 255 ignored.
    """

    image: Tensor
    label: Tensor


def random_scale(image: Image.Image, label: Image.Image, rng: random.Random) -> Pair:
    """Resize both by a factor drawn uniformly from [300/720, 1000/1280]."""
    scale = rng.uniform(SMALLEST_SCALE, LARGEST_SCALE)
    return _resized(image, label, (int(image.height * scale), int(image.width * scale)))


def _resized(image: Image.Image, label: Image.Image, size: tuple[int, int]) -> Pair:
    """Resize both to (height, width) `size`: image bilinear, label nearest neighbour."""
    return (
        image.resize(size[::-1], Image.Resampling.BILINEAR),
        label.resize(size[::-1], Image.Resampling.NEAREST),
    )


def random_crop(image: Image.Image, label: Image.Image, rng: random.Random, size: int) -> Pair:
    """Crop a random square of `size` pixels, after padding images that are too small.

    If a side is shorter than `size`, all four sides are padded by half the difference; width first.
    """
    for side in (0, 1):
        if image.size[side] < size:
            padding = (1 + size - image.size[side]) // 2
            image = ImageOps.expand(image, padding, fill=0)
            label = ImageOps.expand(label, padding, fill=IGNORE_INDEX)
    top = rng.randint(0, image.height - size)
    left = rng.randint(0, image.width - size)
    box = left, top, left + size, top + size
    return image.crop(box), label.crop(box)


def random_flip(image: Image.Image, label: Image.Image, rng: random.Random) -> Pair:
    """Flip both horizontally with probability 1/2."""
    if rng.random() < 0.5:
        return ImageOps.mirror(image), ImageOps.mirror(label)
    return image, label


def training_sample(
    image: Image.Image, label: Image.Image, rng: random.Random, crop_size: int
) -> Sample:
    """Draw a training input: scale, crop, flip.

    Returns:
        A sample of (3, crop_size, crop_size) and (crop_size, crop_size).
    """
    image, label = random_scale(image, label, rng)
    image, label = random_crop(image, label, rng, crop_size)
    image, label = random_flip(image, label, rng)
    return Sample(byte_planes(image), byte_tensor(label))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Size (h, w) at a test scale: int(side * scale), rounded up to a multiple of 8."""
    return _rounded_up(int(height * scale)), _rounded_up(int(width * scale))


def _rounded_up(length: int) -> int:
    return -(-length // SIZE_MULTIPLE) * SIZE_MULTIPLE


def scaled_images(image: Image.Image, scales: Sequence[float]) -> list[Tensor]:
    """Resize one decoded image to each test scale.

    Returns:
        One (3, h, w) uint8 tensor per scale.
    """
    sizes = [scaled_size(image.height, image.width, scale) for scale in scales]
    return [byte_planes(image.resize(size[::-1], Image.Resampling.BILINEAR)) for size in sizes]


def scaled_pair(image: Image.Image, label: Image.Image, scale: float) -> Pair:
    """Resize both to the size of a test scale."""
    return _resized(image, label, scaled_size(image.height, image.width, scale))


def byte_planes(image: Image.Image) -> Tensor:
    """Copy an RGB picture to (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def byte_tensor(picture: Image.Image) -> Tensor:
    """Copy a picture to uint8: (H, W) for a label map, (H, W, 3) for an image."""
    return torch.from_numpy(np.array(picture))
