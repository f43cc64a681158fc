"""PAnS for torch.hub: `torch.hub.load(".", "pans", source="local", checkpoint=FILE)`."""

from pathlib import Path
from typing import Any

import torch

from argparser import as_words
from predict import Predictor
from stored_flags import with_stored_flags
from utils.distributed import Process

dependencies = ["torch", "torchvision", "numpy", "PIL"]


def pans(checkpoint: str | Path, device: str | torch.device = "cpu", **flags: Any) -> Predictor:
    """Load a trained network: `classes, score = pans(FILE).predict(picture)`.

    Args:
        checkpoint: a checkpoint file, of this code or a published one.
        device: the device to run on, such as "cuda".
        flags: any flag of run.py that --predict accepts, such as score="msp", multi_scala=False or
            precision="bf16"; the others are taken from the checkpoint.

    Raises:
        PansError: the file is not a checkpoint, or a flag is invalid.
    """
    words = as_words({"predict": ".", "out": ".", "ckpt_test": checkpoint, **flags})
    options, _ = with_stored_flags(words)
    return Predictor(options, Process(0, 0, 1, torch.device(device)))
