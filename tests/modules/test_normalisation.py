"""Bytes to the network's input, against torchvision's own transforms."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from modules.normalisation import normalised

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def all_values():
    """(16, 16, 3) with every byte in every channel, each channel in an order of its own."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return np.stack([values, values[::-1], values.T], axis=2)


@pytest.mark.parametrize("size", [(16, 16), (8, 32)])
def test_every_value_has_the_bits_of_totensor_and_normalize(size):
    picture = all_values().reshape(*size, 3)
    images = torch.from_numpy(np.stack([picture, picture[::-1]])).permute(0, 3, 1, 2)
    found = normalised(images)
    assert (found.dtype, found.shape) == (torch.float32, (2, 3, *size))
    assert found.is_contiguous()
    for image, upside in zip(found, (picture, picture[::-1]), strict=True):
        tensor = functional.to_tensor(Image.fromarray(np.ascontiguousarray(upside)))
        assert torch.equal(image, functional.normalize(tensor, MEAN, STD))


def test_the_formula_by_hand():
    found = normalised(torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_input_first_used_in_inference_mode_can_be_trained_on_later():
    with torch.inference_mode():
        normalised(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    weight = torch.ones(3, 3, 1, 1, requires_grad=True)
    images = normalised(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    torch.nn.functional.conv2d(images, weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
