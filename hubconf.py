"""PAnS for torch.hub: `torch.hub.load(".", "pans", source="local", checkpoint=FILE)`."""

from pathlib import Path
from typing import Any

import torch

from argparser import as_words, parse_options, typed_flags
from predict import Predictor, stored_flags
from utils.distributed import Process

dependencies = ["torch", "torchvision", "numpy", "PIL"]


def pans(checkpoint: str | Path, device: str | torch.device = "cpu", **flags: Any) -> Predictor:
    """A trained network for pictures: `classes, score = pans(FILE).predict(picture)`.

    Args:
        checkpoint: of this code or published.
        device: where it runs, such as "cuda".
        flags: any flag of run.py that --predict takes, such as score="msp", multi_scala=False or
            precision="bf16"; those not given are the checkpoint's.

    Raises:
        PansError: the file is no checkpoint, or a flag does not fit; one line says what to do.
    """
    words = as_words({"predict": ".", "out": ".", "ckpt_test": checkpoint, **flags})
    options = parse_options(words, stored_flags(Path(checkpoint), typed_flags(words)))
    return Predictor(options, Process(0, 0, 1, torch.device(device)))
