"""The README's three lines of Python, from another folder, as a user of torch.hub calls them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import hubconf
from modules.segmentation import build_model
from utils.checkpoint import MissingCheckpoint, save_checkpoint

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import sys
import torch
from PIL import Image

repository, checkpoint, picture = sys.argv[1:]
model = torch.hub.load(repository, "pans", source="local", checkpoint=checkpoint)
classes, score = model.predict(Image.open(picture))
print(classes.shape, classes.dtype, score.shape, score.dtype, model.class_names[7])
"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "street.png"
    values = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(picture):
    """The real ResNet-50, as a published checkpoint without options."""
    torch.manual_seed(0)
    path = picture.with_name("pans.pth")
    save_checkpoint(path, {"model_state": build_model().state_dict()})
    return path


def test_three_lines_from_another_folder(checkpoint, picture):
    words = [sys.executable, "-c", PROGRAM, str(REPOSITORY), str(checkpoint), str(picture)]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=picture.parent)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split("\n")[-2] == "(48, 80) uint8 (48, 80) float32 road"


def test_the_score_is_that_of_the_network(checkpoint, picture):
    """One scale: 48x80 becomes 37x62, rounded up to 40x64; 1 - up((max + 10) / 20)."""
    model = hubconf.pans(checkpoint, score="prototype", multi_scala=False, plain=True)
    classes, score = model.predict(Image.open(picture))
    network = build_model(plain=True).eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["model_state"])
    scaled = np.asarray(Image.open(picture).resize((64, 40), Image.Resampling.BILINEAR)) / 255
    scaled = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        logits = network(torch.from_numpy(scaled).permute(2, 0, 1)[None].float())
        nearest = F.interpolate((logits.amax(1, keepdim=True) + 10) / 20, (48, 80), mode="bilinear")
        full = F.interpolate(logits, (48, 80), mode="bilinear")
    np.testing.assert_allclose(score, 1 - nearest[0, 0].numpy(), atol=2e-6)
    assert (classes == full.argmax(1)[0].numpy()).mean() > 0.999


def test_a_picture_is_turned_upright(checkpoint, picture, tmp_path):
    upright = Image.open(picture)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    model = hubconf.pans(checkpoint, multi_scala=False)
    expected = model.predict(upright)
    found = model.predict(Image.open(tmp_path / "turned.png"))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_missing_file_is_one_line():
    with pytest.raises(MissingCheckpoint, match=r"there is no checkpoint .*gone\.pth"):
        hubconf.pans("gone.pth")
