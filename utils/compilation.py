"""torch.compile for the network in training."""

import os
import shutil
from typing import cast

import torch
from torch import nn

from utils.errors import PansError


def compiled(network: nn.Module) -> nn.Module:
    """The same network, compiled during its first batch, which takes minutes.

    Raises:
        PansError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise PansError(
            f"--compile needs a C++ compiler, and {compiler} was not found; "
            "install it, set CXX to another one, or remove --compile"
        )
    return cast(nn.Module, torch.compile(network))
