"""Too little memory or disk, as torch, numpy and the operating system report it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.faults import known_fault

TOO_MUCH = 2**50
REMEDY = "fix it and run the same command again, without --restart"
EXPECTED = "this machine has too little memory; lower --batch_size or --crop_size or --num_workers"

# The second process may take no more than 64 MB beyond what it has, once it has done ten steps.
HUNGRY = """
import os, resource, sys, tiny, torch

steps = 0
forward = tiny.SegmentationModel.forward

def hungry(self, images):
    global steps
    steps += self.training
    if os.environ.get("RANK") == "1" and steps == 11:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 2**26
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        torch.ones(2**28)
    return forward(self, images)

tiny.SegmentationModel.forward = hungry
tiny.__file__ = __file__
sys.exit(tiny.main())
"""


def bytes_of_torch() -> Any:
    return torch.empty(TOO_MUCH, dtype=torch.uint8)


def bytes_of_numpy() -> Any:
    return np.empty(TOO_MUCH, dtype=np.uint8)


def bytes_of_python() -> Any:
    return bytearray(TOO_MUCH)


@pytest.mark.parametrize("take", [bytes_of_torch, bytes_of_numpy, bytes_of_python])
def test_real_failures_are_recognised(take: Callable[[], Any]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        take()
    assert known_fault(caught.value) == EXPECTED


def test_a_gpu_failure_is_recognised() -> None:
    line = known_fault(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert line is not None
    assert line.startswith("the GPU has too little memory; lower --batch_size or --crop_size")


def test_disk_errors_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        (tmp_path / "file/logs").mkdir()
    line = known_fault(caught.value)
    assert line is not None
    assert line.endswith(f"'{tmp_path}/file/logs'; {REMEDY}")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert known_fault(full) == f"{full}; {REMEDY}"
    assert known_fault(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


def test_a_process_out_of_memory_ends_all_with_one_line(runs: Any) -> None:
    flags = ("--nproc", "2", "--batch_size", "1", "--epochs", "60", "--ckpt_interval", "1")
    process = runs.start(*flags, program=HUNGRY)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    reports = [line for line in errors.splitlines() if "error" in line]
    assert reports == [f"error: {EXPECTED}", "error: a process failed; see its report above"]
    assert "Traceback" not in errors
    assert runs.state()["iteration"] == 8  # two epochs of four steps
