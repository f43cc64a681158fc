"""Whole programs on a GPU that is not there: no mix of devices, no waits, and CUDA takes it."""

import collections
import contextlib

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import predict
import train
from argparser import parse_options
from benchmarks import launches
from modules import abn
from modules.backbones import BACKBONES, Backbone
from tests.gpu.pretend_gpu import CUDA, SCORES, PretendGpu, lines
from utils.distributed import Process


def step(gpu, trained):
    """The second step of a training; the first has set-up in it."""
    trained._prepare_training()
    trained.model.train()
    trained.loader.sampler.set_epoch(0)
    batches = iter(trained.loader)
    for _ in range(2):
        gpu.clear()
        if trained.options.accumulate * 2 > len(trained.loader):
            batches = iter(trained.loader)
        trained.train_step(batches)


STEPS = (
    "",
    "--precision bf16",
    "--plain",
    "--norm_act iabn --fix_bn",
    "--norm_act abn",
    "--norm_act std --classifier standard",
    "--clip_grad_norm 1 --accumulate 2",
    "--checkpoint_activations --precision bf16",
)


@pytest.mark.parametrize("words", STEPS)
def test_a_training_step_waits_for_nothing(trainer, words):
    with PretendGpu() as gpu:
        step(gpu, trainer(words))
        assert not gpu.waits, lines(gpu.waits)


class NoExchange(torch.nn.Module):
    """In the place of DistributedDataParallel, whose C++ takes the tensors for the CPU's."""

    def __init__(self, module, **settings):
        super().__init__()
        self.module, self.settings = module, settings

    def forward(self, images):
        return self.module(images)


@contextlib.contextmanager
def two_processes():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("words", ["", "--precision bf16"])
def test_a_step_of_two_processes_waits_for_nothing(trainer, monkeypatch, words):
    exchanges = collections.Counter()
    for name in ("all_reduce", "all_gather_into_tensor"):

        def none(*_, name=name, **__):
            exchanges[name] += 1

        monkeypatch.setattr(dist, name, none)
    monkeypatch.setattr(train, "DistributedDataParallel", NoExchange)
    with two_processes(), PretendGpu() as gpu:
        trained = trainer(words, world_size=2)
        exchanges.clear()
        step(gpu, trained)
        assert not gpu.waits, lines(gpu.waits)
    norms = sum(isinstance(module, abn.InPlaceABN) for module in trained.model.modules())
    # In two steps: one a norm and pass, and whether the step is good.
    assert exchanges == {"all_gather_into_tensor": 2 * norms, "all_reduce": 2 * norms + 2}
    assert not trained.network.settings["forward_sync_buffers"]


@pytest.mark.parametrize("words", ["", "--precision bf16", "--plain"])
def test_cuda_accepts_every_call_of_a_step(trainer, words):
    with PretendGpu(probe=True) as gpu:
        step(gpu, trainer(words))
        assert not gpu.refusals, gpu.refusals


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("words", ["", "--precision bf16"])
def test_a_deterministic_step_uses_only_operations_that_cuda_has_in_deterministic_form(
    trainer, words
):
    with PretendGpu(probe=True) as gpu:
        step(gpu, trainer(words))
        assert not gpu.refusals, gpu.refusals


def test_layout_is_channels_last_but_for_the_plain_path(trainer):
    with PretendGpu() as gpu:
        for words, expected in (("", True), ("--plain", False)):
            trained = trainer(words)
            weight = trained.model.body.mod2.block1.convs.conv2.weight
            assert weight.is_contiguous(memory_format=torch.channels_last) == expected
            assert ("channels_last" in trained.describe()) == expected
        trained = trainer()
        step(gpu, trained)
        for parameter in trained.model.parameters():
            momentum = trained.optimizer.state[parameter]["momentum_buffer"]
            assert momentum.stride() == parameter.stride()


def test_the_norms_are_counted_in_one_launch(trainer):
    with PretendGpu() as gpu:
        trained = trainer()
        step(gpu, trained)
        counts = {m.num_batches_tracked.item() for m in trained.model._norms()}
    assert counts == {2}
    assert gpu.launches["_foreach_add_"] >= 1
    assert gpu.launches["add_"] < 10


@pytest.mark.usefixtures("small")
def test_a_step_of_the_whole_body_stays_within_its_launches(data, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet50", Backbone((3, 4, 6, 3)))
    counted, waits = launches.count(data, tmp_path, "--precision bf16")
    assert 1000 < counted <= launches.GOAL
    assert waits == 0


def test_train_validate_save_resume_test_predict_calibrate(trainer, data, tmp_path):
    """The same numbers as on the CPU, and no mix of devices on the way."""
    picture = next(data.rglob("*test*/**/*.png"))
    words = "--precision fp32 --no_multi_scala"
    with PretendGpu() as gpu:
        first = trainer(words)
        step(gpu, first)
        first._training_report(1.0)
        mean_iou = first.validate()
        first._save()
        step(gpu, trainer(words))
        results = trainer(f"--score {SCORES} {words}").test()
        out = f"--ckpt_test {first.options.checkpoint_path} --out {tmp_path}/out"
        out += f" --data_root {data} --num_workers 0 --calibrate_fpr 0.05 {words}"
        flags = f"--default --predict {picture} {out}"
        predict.predict(parse_options(flags.split()), Process(0, 0, 1, CUDA))
    assert (tmp_path / "out").is_dir()
    cpu = trainer(f"--score {SCORES} {words}", device=torch.device("cpu"))
    wanted = cpu.test()
    assert 0 <= mean_iou <= 1
    assert results["options"]["precision"] == "fp32"
    for name, score in wanted["scores"].items():
        assert results["scores"][name]["protocols"]["pooled"]["figures"] == pytest.approx(
            score["protocols"]["pooled"]["figures"], abs=0.01, nan_ok=True
        ), name
