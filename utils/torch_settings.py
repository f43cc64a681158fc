"""Settings of torch and of its memory: determinism, compilation, glibc's allocator."""

import contextlib
import ctypes
import os
import shutil
from typing import cast

import torch
from torch import nn

from utils.errors import PansError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 2**31 - 1


def make_deterministic() -> None:
    """Make torch choose deterministic algorithms; to be called before the first use of a GPU.

    All operations of the network and its loss have a deterministic form. For any other operation
    torch prints a warning instead of ending the run.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


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


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next ones; elsewhere do nothing.

    By default it returns large blocks to the system at once, and every page of the next tensor
    costs a page fault: a tenth of a training step.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system or C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
