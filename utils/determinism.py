"""Deterministic algorithms: the same numbers from the same seed."""

import os

import torch


def make_deterministic() -> None:
    """Make torch choose deterministic algorithms; to be called before the first use of a GPU.

    All operations of the network and its loss have a deterministic form. For any other operation
    torch prints a warning instead of ending the run.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
