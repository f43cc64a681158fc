"""Training and test of a tiny backbone on a GPU that is not there."""

import pytest
import torch

import train
from argparser import parse_options
from dataset.demo import write_demo
from modules import abn
from modules.backbones import BACKBONES
from tests.gpu.pretend_gpu import CUDA
from tests.reliability.tiny import ONE_BLOCK
from utils.distributed import Process
from utils.logger import Logger

FLAGS = "--default --no_pretrained --crop_size 48 --num_workers 0 --epochs 2 --sample_num 0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_demo(root, train=4, validation=3, test=3, size=(96, 64), seed=1)
    return root


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet50", ONE_BLOCK)
    monkeypatch.setattr(Logger, "figure", lambda *_: None)
    # The package's C++ would take the tensors for the CPU's.
    monkeypatch.setattr(abn, "package_function", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trainer(data, tmp_path, small):
    def make(words="", world_size=1, device=CUDA):
        flags = f"{FLAGS} --data_root {data} --logdir {tmp_path} --checkpoints {tmp_path} {words}"
        options = parse_options(flags.split())
        options.log_folder.mkdir(parents=True, exist_ok=True)
        return train.Trainer(options, Process(0, 0, world_size, device), Logger(None))

    return make
