"""Statistics over the training images, and their file beside the checkpoint."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modules.scores import max_logit_sums, statistics_of
from modules.scores.max_logits import statistics_path, training_statistics
from utils.distributed import Process

PROCESS = Process(0, 0, 1, torch.device("cpu"))


class Loader(list):
    """Two images whose pictures are their logits."""

    def __init__(self, images, folder=Path("nowhere")):
        super().__init__(
            SimpleNamespace(images=[image], index=index) for index, image in enumerate(images)
        )
        names = [f"{index}.png" for index in range(len(images))]
        pictures = SimpleNamespace(names=names, folder=folder)
        self.dataset = SimpleNamespace(reader=SimpleNamespace(pictures=pictures))


class Identity:
    """A network that gives its input back, and counts what it sees."""

    looks = 0

    def logits(self, images):
        self.looks += 1
        return images


@pytest.fixture
def images():
    torch.manual_seed(0)
    return [torch.randn(1, 3, 4, 5), torch.randn(1, 3, 2, 2)]


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "best.pth"
    path.write_bytes(b"weights")
    return path


def test_statistics_are_taken_once_for_the_same_weights_images_and_settings(images, checkpoint):
    network, loader = Identity(), Loader(images)
    expected = statistics_of(max_logit_sums(images[:1]) + max_logit_sums(images[1:]))
    looks = []
    for settings in (["bf16"], ["bf16"], ["fp32"], ["fp32"]):
        found = training_statistics(network, loader, PROCESS, checkpoint, settings)
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.deviation, expected.deviation)
        looks.append(network.looks)
    assert looks == [2, 2, 4, 4]
    checkpoint.write_bytes(b"other weights")
    training_statistics(network, loader, PROCESS, checkpoint, ["fp32"])
    assert network.looks == 6
    training_statistics(network, Loader(images[:1]), PROCESS, checkpoint, ["fp32"])
    assert network.looks == 7


def test_images_that_were_written_anew_are_looked_at_again(images, checkpoint, tmp_path):
    network, loader = Identity(), Loader(images, tmp_path)
    looks = []
    for content in ("a", "a", "another"):
        if not looks or content == "another":
            (tmp_path / "0.png").write_text(content)
        training_statistics(network, loader, PROCESS, checkpoint, [])
        looks.append(network.looks)
    assert looks == [2, 2, 4]


def test_a_file_of_something_else_is_replaced(images, checkpoint):
    for content in ("", "[]", "{}", '{"key": 1, "mean": 2}'):
        statistics_path(checkpoint).write_text(content)
        network = Identity()
        training_statistics(network, Loader(images), PROCESS, checkpoint, [])
        assert network.looks == 2
        assert json.loads(statistics_path(checkpoint).read_text()).keys() == {
            "key",
            "mean",
            "deviation",
        }


def test_a_folder_that_cannot_be_written_to_costs_the_pass_again(images, checkpoint):
    statistics_path(checkpoint).mkdir()  # a folder in the file's place refuses root as well
    network = Identity()
    for looks in (2, 4):
        training_statistics(network, Loader(images), PROCESS, checkpoint, [])
        assert network.looks == looks
