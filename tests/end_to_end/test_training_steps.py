"""Four training steps against the same steps written in plain PyTorch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from argparser import parse_options
from dataset.demo.writer import write_demo
from dataset.loaders import training_loader
from modules.loss import segmentation_loss
from modules.normalisation import normalised
from modules.segmentation import build_model
from train import Trainer
from utils.distributed import Process
from utils.logger import Logger


def test_four_steps_follow_the_recipe(tmp_path):
    write_demo(tmp_path, train=8, validation=1, test=1, size=(96, 64), seed=1)
    # Two crops give the 1x1 grid's norm two values a channel, which magnifies rounding: both heads
    # are the plain one here; test_pyramid.py compares it with the exact one.
    flags = "--default --plain --no_pretrained --crop_size 48 --epochs 1 --num_workers 0"
    options = parse_options([*flags.split(), "--data_root", str(tmp_path)])
    trainer = Trainer(options, Process(0, 0, 1, torch.device("cpu")), Logger(None))
    trainer._prepare_training()
    model = build_model(plain=True, norm_act="iabn")
    model.load_state_dict(trainer.model.state_dict())
    for module in (*trainer.model.modules(), *model.modules()):
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    loader = training_loader(
        tmp_path, batch_size=2, crop_size=48, seed=42, num_workers=0, rank=0, world_size=1
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.007, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    batches = iter(trainer.loader)
    for step, (images, labels) in enumerate(loader):
        optimizer.param_groups[0]["lr"] = 0.007 * (1 - step / 4) ** 0.9
        main, auxiliary = (
            F.cross_entropy(
                F.interpolate(logits, size=(48, 48), mode="bilinear"),
                labels.long(),
                ignore_index=255,
            )
            for logits in model(normalised(images))
        )
        loss = main + 0.4 * auxiliary
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = trainer.train_step(batches)
        assert float(found) == pytest.approx(float(loss.detach()), abs=1e-3)
    assert trainer.iteration == 4


def test_loss_of_a_wholly_ignored_crop_is_zero():
    logits = torch.randn(1, 13, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
