"""The same numbers from the same seed: algorithms whose result depends on no race."""

import os

import torch


def make_deterministic() -> None:
    """Have torch choose deterministic algorithms; call it before the first use of a GPU.

    The network and its loss use none of which torch has no such form. If one comes in, torch warns,
    naming the operation, instead of ending the run.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
