"""How often the host waits for a GPU that is not there, in a report, a validation and a test."""

import collections
import itertools

import pytest
import torch

import modules.pyramid
import modules.resnet
import modules.segmentation
import train
from argparser import parse_options
from dataset.demo import write_demo
from modules import abn
from tests.gpu.pretend_gpu import CUDA, PretendGpu, lines
from utils.distributed import Process
from utils.logger import Logger

FLAGS = "--default --no_pretrained --crop_size 48 --num_workers 0 --epochs 1 --sample_num 0"
SCORES = (
    "prototype,msp,maxlogit,entropy,energy,standardized_maxlogit,class_mean,mahalanobis,knn,"
    "prototype_margin,mc_dropout"
)
IMAGES = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_demo(root, train=2, validation=IMAGES, test=IMAGES, size=(96, 64), seed=1)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (modules.resnet, modules.segmentation):
        monkeypatch.setattr(module, "BLOCKS", {"resnet50": (1, 1, 1, 1)})
    for module in (modules.pyramid, modules.segmentation):
        monkeypatch.setattr(module, "HEAD_CHANNELS", 32)
    monkeypatch.setattr(Logger, "figure", lambda *_: None)
    monkeypatch.setattr(abn, "package_function", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trainer(data, tmp_path):
    def make(words=""):
        flags = f"{FLAGS} --data_root {data} --logdir {tmp_path} --checkpoints {tmp_path} {words}"
        options = parse_options(flags.split())
        options.log_folder.mkdir(parents=True, exist_ok=True)
        return train.Trainer(options, Process(0, 0, 1, CUDA), Logger(None))

    return make


def waits_an_image(monkeypatch, gpu, evaluator):
    """From one image to the next, the most: {(what, file:line:function): times}."""
    marks = []

    def marking(items, name):
        for item in items:
            marks.append(gpu.waits.copy())
            yield item

    monkeypatch.setattr(evaluator, "_progress", marking)
    return lambda: max(
        (after - before for before, after in itertools.pairwise(marks)),
        key=collections.Counter.total,
    )


def test_a_report_waits_once(trainer):
    with PretendGpu() as gpu:
        trained = trainer()
        trained._prepare_training()
        trained.model.train()
        trained.train_step(iter(trained.loader))
        gpu.clear()
        report = trained._training_report(1.0)
        assert gpu.waits.total() == 1, lines(gpu.waits)
    assert report["loss"] > 0


def test_a_validation_image_waits_once(monkeypatch, trainer):
    with PretendGpu() as gpu:
        trained = trainer()
        trained._prepare_training()
        found = waits_an_image(monkeypatch, gpu, trained.evaluator)
        assert 0 < trained.validate() < 1
        assert found().total() == 1, lines(found())


@pytest.mark.parametrize("scores", ["prototype", SCORES])
def test_a_test_image_waits_twice_at_most(monkeypatch, trainer, scores):
    with PretendGpu() as gpu:
        trained = trainer()
        trained._prepare_training()
        trained._save(trained.options.checkpoint_path)
        trained._save(trained.options.best_checkpoint_path)
        tested = trainer(f"--multi_scala --score {scores}")
        found = waits_an_image(monkeypatch, gpu, tested.evaluator)
        results = tested.test()
        assert 1 <= found().total() <= 2, lines(found())
    assert results["images"] == IMAGES
