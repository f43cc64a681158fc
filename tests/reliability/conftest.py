import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import train
from argparser import parse_options
from dataset.demo.writer import write_demo
from modules.backbones import BACKBONES
from tests.reliability.tiny import TINY
from utils.checkpoint import load_checkpoint
from utils.distributed import Process
from utils.logger import Logger

PROGRAM = Path(__file__).with_name("tiny.py")
TRAINING = (
    "--default --no_pretrained --crop_size 48 --epochs 2 --num_workers 0 --print_interval 1 "
    "--sample_num 0"
)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight training images: four steps of two images an epoch."""
    root = tmp_path_factory.mktemp("data")
    write_demo(root, train=8, validation=3, test=3, size=(96, 64), seed=1)
    return root


class Runs:
    """Runs of one name in one folder, with the tiny network."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        self.flags = [*TRAINING.split(), "--name", "x", "--data_root", str(data)]
        self.flags += ["--logdir", f"{folder}/logs", "--checkpoints", f"{folder}/checkpoints"]
        self.checkpoints = folder / "checkpoints/streethazards"

    def trainer(self, *flags: str) -> train.Trainer:
        options = parse_options([*self.flags, *flags])
        process = Process(0, 0, 1, torch.device("cpu"))
        return train.Trainer(options, process, Logger(options.log_folder))

    def fit(self, *flags: str) -> train.Trainer:
        trainer = self.trainer(*flags)
        with trainer.logger:
            trainer.fit()
        return trainer

    def stop_at(self, step: int, action: Callable[[], None], *flags: str) -> None:
        """Train, and call `action` in the middle of a step."""
        trainer = self.trainer(*flags)

        def act(model: nn.Module, images: Any) -> None:
            if model.training and trainer.iteration == step:
                action()

        trainer.model.register_forward_pre_hook(act)
        with trainer.logger:
            trainer.fit()

    def state(self, name: str = "x") -> dict[str, Any]:
        return load_checkpoint(self.checkpoints / f"{name}.pth")

    def points(self, tag: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(self.folder / "logs/streethazards/x"))
        return [(event.step, event.value) for event in events.Reload().Scalars(tag)]

    def start(
        self,
        *flags: str,
        launcher: tuple[str, ...] = (),
        program: str = "",
        environment: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], object] | None = None,
    ) -> subprocess.Popen[str]:
        """The same in a process of its own, as a user starts it; `program` in tiny.py's place."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            **(environment or {}),
        }
        path = PROGRAM
        if program:
            path = self.folder / "program.py"
            path.write_text(program)
            environment["PYTHONPATH"] = str(PROGRAM.parent)
        return subprocess.Popen(
            [sys.executable, *launcher, str(path), *self.flags, *flags],
            env=environment,
            preexec_fn=preexec_fn,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def runs(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    make_small(monkeypatch)
    return Runs(tmp_path, data)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables, so that run.main starts by itself."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Runs:
    """What a run that nothing stops ends with."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        runs = Runs(tmp_path_factory.mktemp("unbroken"), data)
        runs.fit()
    return runs


def make_small(patch: pytest.MonkeyPatch) -> None:
    """The tiny backbone, and no drawing of figures, which takes longer than all the rest."""
    patch.setitem(BACKBONES, "resnet50", TINY)
    patch.setattr(Logger, "figure", lambda *_: None)
