import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from dataset import transforms
from modules.normalisation import normalised

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_pair(width: int, height: int, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(seed)
    return (
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 13, (height, width), dtype=np.uint8)),
    )


def planes_of(image: Image.Image) -> np.ndarray:
    return np.array(image).transpose(2, 0, 1)


def test_byte_planes_copy_the_pixels() -> None:
    image, _ = random_pair(7, 5)
    planes = transforms.byte_planes(image)
    assert (planes.dtype, planes.shape) == (torch.uint8, (3, 5, 7))
    assert planes.is_contiguous()
    assert np.array_equal(planes.numpy(), planes_of(image))


def test_byte_tensor_copies_the_pixels() -> None:
    image, label = random_pair(7, 5)
    for picture in (image, label):
        tensor = transforms.byte_tensor(picture)
        assert tensor.dtype == torch.uint8
        assert np.array_equal(tensor.numpy(), np.array(picture))


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (720, 1280, [(304, 536), (376, 672), (456, 800), (528, 936), (568, 1000)]),
        (360, 640, [(152, 272), (192, 336), (232, 400), (264, 472), (288, 504)]),
        (97, 131, [(40, 56), (56, 72), (64, 88), (72, 96), (80, 104)]),
    ],
)
def test_test_sizes(height: int, width: int, sizes: list[tuple[int, int]]) -> None:
    found = [transforms.scaled_size(height, width, scale) for scale in transforms.TEST_SCALES]
    assert found == sizes


def test_scaled_images_are_pillows_bilinear() -> None:
    image, _ = random_pair(131, 97)
    tensors = transforms.scaled_images(image, transforms.TEST_SCALES)
    sizes = [(40, 56), (56, 72), (64, 88), (72, 96), (80, 104)]
    for tensor, (height, width) in zip(tensors, sizes, strict=True):
        reference = image.resize((width, height), Image.Resampling.BILINEAR)
        assert np.array_equal(tensor.numpy(), planes_of(reference))


def test_random_scale_is_pillows_resize_at_a_uniform_factor() -> None:
    image, label = random_pair(144, 72)
    for seed in range(20):
        scale = random.Random(seed).uniform(300 / 720, 1000 / 1280)
        size = (int(144 * scale), int(72 * scale))
        scaled_image, scaled_label = transforms.random_scale(image, label, random.Random(seed))
        assert scaled_image.tobytes() == image.resize(size, Image.Resampling.BILINEAR).tobytes()
        assert scaled_label.tobytes() == label.resize(size, Image.Resampling.NEAREST).tobytes()


def test_random_scale_covers_its_range_evenly() -> None:
    rng = random.Random(0)
    label = Image.new("L", (720, 10))
    widths = np.array([transforms.random_scale(label, label, rng)[1].width for _ in range(2000)])
    # 720 * [300/720, 1000/1280] = [300, 562.5]
    assert (widths.min(), widths.max()) >= (300, 555)
    assert widths.max() <= 562
    assert widths.mean() == pytest.approx(430.75, abs=6)
    assert widths.std() == pytest.approx(262.5 / 12**0.5, abs=3)


@pytest.mark.parametrize(
    ("width", "height", "padding"),
    [
        (9, 8, 0),
        (7, 7, 0),
        (4, 9, 2),  # width 4: (1 + 7 - 4) // 2 = 2 on all four sides
        (9, 4, 2),
        (9, 5, 1),  # (1 + 7 - 5) // 2 = 1
        (4, 3, 2),  # then 3 + 2 * 2 = 7 is high enough
        (6, 2, 3),  # width: (1 + 7 - 6) // 2 = 1; height 2 + 2 = 4: (1 + 7 - 4) // 2 = 2
    ],
)
def test_random_crop_reaches_every_window_of_the_padded_picture(
    width: int, height: int, padding: int
) -> None:
    image, label = random_pair(width, height)
    padded_image = np.pad(np.array(image), ((padding,) * 2, (padding,) * 2, (0, 0)))
    padded_label = np.pad(np.array(label), padding, constant_values=255)
    windows = {
        padded_image[top : top + 7, left : left + 7].tobytes()
        + padded_label[top : top + 7, left : left + 7].tobytes()
        for top in range(padded_label.shape[0] - 6)
        for left in range(padded_label.shape[1] - 6)
    }
    crops = set()
    for seed in range(200):
        crop = transforms.random_crop(image, label, random.Random(seed), 7)
        assert crop[0].size == crop[1].size == (7, 7)
        crops.add(crop[0].tobytes() + crop[1].tobytes())
    assert crops == windows


def test_random_flip_mirrors_both_half_the_time() -> None:
    image, label = random_pair(4, 3)
    flips = 0
    rng = random.Random(0)
    for _ in range(1000):
        new_image, new_label = transforms.random_flip(image, label, rng)
        flipped = not np.array_equal(np.array(new_label), np.array(label))
        step = -1 if flipped else 1
        assert np.array_equal(np.array(new_image), np.array(image)[:, ::step])
        assert np.array_equal(np.array(new_label), np.array(label)[:, ::step])
        flips += int(flipped)
    assert 450 <= flips <= 550


def test_training_sample_is_the_chain_of_its_parts() -> None:
    image, label = random_pair(128, 72)
    rng = random.Random(5)
    scaled = transforms.random_scale(image, label, rng)
    cut = transforms.random_crop(*scaled, rng, 45)
    expected_image, expected_label = transforms.random_flip(*cut, rng)
    sample = transforms.training_sample(image, label, random.Random(5), 45)
    assert np.array_equal(sample.image.numpy(), planes_of(expected_image))
    assert np.array_equal(sample.label.numpy(), np.array(expected_label))


def torchvision_sample(
    image: Image.Image, label: Image.Image, rng: random.Random, crop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training input in torchvision's own transforms, with the same draws in the same order."""
    scale = rng.uniform(300 / 720, 1000 / 1280)
    size = [int(image.height * scale), int(image.width * scale)]
    image = functional.resize(image, size, functional.InterpolationMode.BILINEAR)
    label = functional.resize(label, size, functional.InterpolationMode.NEAREST)
    for side in (0, 1):
        if image.size[side] < crop:
            padding = (1 + crop - image.size[side]) // 2
            image = functional.pad(image, padding)
            label = functional.pad(label, padding, fill=255)
    top, left = rng.randint(0, image.height - crop), rng.randint(0, image.width - crop)
    image = functional.crop(image, top, left, crop, crop)
    label = functional.crop(label, top, left, crop, crop)
    if rng.random() < 0.5:
        image, label = functional.hflip(image), functional.hflip(label)
    tensor = functional.normalize(functional.to_tensor(image), MEAN, STD)
    return tensor, functional.pil_to_tensor(label)[0]


@pytest.mark.parametrize("seed", range(12))
def test_training_sample_has_the_pixels_of_torchvision(seed: int) -> None:
    image, label = random_pair(180, 101, seed)
    sample = transforms.training_sample(image, label, random.Random(seed), 63)
    expected_image, expected_label = torchvision_sample(image, label, random.Random(seed), 63)
    assert torch.equal(normalised(sample.image[None])[0], expected_image)
    assert torch.equal(sample.label, expected_label)


def test_padding_is_black_and_ignored() -> None:
    image, label = Image.new("RGB", (128, 72), (255, 255, 255)), Image.new("L", (128, 72), 7)
    padded = 0
    for seed in range(20):
        sample = transforms.training_sample(image, label, random.Random(seed), 45)
        assert (sample.image.shape, sample.label.shape) == ((3, 45, 45), (45, 45))
        outside = (sample.label == 255).numpy()
        assert (sample.label.numpy()[~outside] == 7).all()
        pixels = sample.image.permute(1, 2, 0).numpy()
        assert (pixels[outside] == 0).all()
        assert (pixels[~outside] == 255).all()
        padded += int(outside.any())
    assert 5 <= padded < 20


def test_sample_depends_on_its_generator_alone() -> None:
    image, label = random_pair(128, 72)
    first = transforms.training_sample(image, label, random.Random(1), 45)
    random.seed(99)
    torch.manual_seed(99)
    again = transforms.training_sample(image, label, random.Random(1), 45)
    other = transforms.training_sample(image, label, random.Random(2), 45)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    assert not torch.equal(first.image, other.image)
