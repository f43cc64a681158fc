"""Checks of this machine's GPUs, and torch's settings for them."""

import ctypes
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from utils.errors import PansError

_HIDE = "hide the GPUs with CUDA_VISIBLE_DEVICES= to run on CPUs"


def usable_gpus() -> int:
    """The number of GPUs that torch can use; 0 on a machine without GPUs.

    Raises:
        PansError: there are GPUs but torch cannot use them, most likely because of an old driver.
    """
    gpus = torch.cuda.device_count()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the message below, over three lines
        starts = torch.cuda.is_available()
    if gpus and not starts:
        found = f"{gpus} GPUs are here with driver {_driver_version()}, but {_refusal()}"
        built = f"PyTorch {torch.__version__} needs CUDA {torch.version.cuda}"
        raise PansError(
            f"{found}; {built}: update the driver, install a PyTorch built for the driver's CUDA "
            f"(https://pytorch.org/get-started), or {_HIDE}"
        )
    return gpus


def _refusal() -> str:
    """The reason why CUDA does not start, shortened."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        text = str(error)
    else:
        return "CUDA does not start"
    old = re.search(r"driver on your system is too old \(found version (\d+)(\d{2})0\)", text)
    if old:
        return f"it is too old: it knows CUDA {old[1]}.{int(old[2])}"
    return f"CUDA does not start: {text.splitlines()[0]}"


def _driver_version() -> str:
    """The driver version from nvidia-smi."""
    text = ctypes.create_string_buffer(80)
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        nvml.nvmlInit_v2()
        nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
    return text.value.decode() or "of unknown version"


def refuse_old_gpu(device: torch.device) -> None:
    """Check that this build of torch has kernels for the GPU.

    Raises:
        PansError: the GPU is older than the oldest one that torch was built for.
    """
    major, minor = torch.cuda.get_device_capability(device)
    built = [int(name[3:]) for name in torch.cuda.get_arch_list() if name[3:].isdecimal()]
    if built and major * 10 + minor < min(built):
        oldest = divmod(min(built), 10)
        raise PansError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and "
            f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) was built for {oldest[0]}."
            f"{oldest[1]} and newer: install an older PyTorch built for this GPU "
            f"(https://pytorch.org/get-started/previous-versions), or {_HIDE}"
        )


def tf32_in(precision: str, device: torch.device) -> str:
    """Describe where float32 is rounded to TF32; empty on a CPU or in bf16."""
    if device.type != "cuda" or precision != "fp32":
        return ""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    names = [*["convolutions"] * convolutions, *["products"] * products]
    return f" (TF32 in {' and '.join(names)})" if names else " (no TF32)"


def describe_device(device: torch.device) -> str:
    """The kind of device, with a GPU's name."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


@contextmanager
def timed_convolutions(device: torch.device) -> Iterator[None]:
    """A context in which cuDNN benchmarks its algorithms for each new size.

    For training, where all crops have the same size. Elsewhere cuDNN uses a heuristic.
    """
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
