"""Shared memory (/dev/shm), in which loader workers pass their samples."""

import contextlib
import math
import os
import sys
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

SHARED_MEMORY = Path("/dev/shm")
MOST_READY = 2  # samples prefetched per worker, torch's default
TAKEN = 2  # further samples: one in the network, and the previous one in the metrics
LOOKED_AT = 16

Sample = TypeVar("Sample")


class Workers(NamedTuple):
    """Number of loader processes, and the samples that each of them prefetches."""

    processes: int
    ready: int


def fitting_workers(wanted: int, sample_bytes: int, *, tells: bool) -> Workers:
    """Limit the loader processes to the free shared memory.

    With 0 processes the main process reads the samples, which needs no shared memory.

    Args:
        wanted: number of processes.
        sample_bytes: size of the largest sample.
        tells: whether to print a note, once, if there are fewer.
    """
    fewer = [Workers(processes, 1) for processes in range(wanted, -1, -1)]
    choices = [Workers(wanted, MOST_READY), *fewer]
    free = free_bytes()
    if free is None or not wanted:
        return choices[0]
    fitting = next(
        workers
        for workers in choices
        if not workers.processes
        or (workers.processes * workers.ready + TAKEN) * sample_bytes <= free
    )
    if tells and fitting != choices[0]:
        ahead = ", one sample ahead each" if fitting.processes else ""
        _tell(
            f"note: {SHARED_MEMORY} has {free / 2**20:.0f} MiB left for each process, and a sample "
            f"takes {sample_bytes / 2**20:.1f} MiB: {fitting.processes} of {wanted} loader "
            f"processes{ahead}; for all, give it more room (docker run --shm-size=1g)"
        )
    return fitting


@cache
def _tell(note: str) -> None:
    print(note, file=sys.stderr)


def free_bytes() -> int | None:
    """This process's share of the free shared memory; None if the system has no such folder."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def largest_size(files: Sequence[Path]) -> tuple[int, int]:
    """(height, width) of the largest picture; (0, 0) if there are none.

    Only the headers of some evenly spaced files are read.
    """
    sizes = [(0, 0)]
    for path in files[:: max(1, len(files) // LOOKED_AT)]:
        if not path.is_file():  # opening a named pipe would block
            continue
        # Unreadable files are reported when they are read as samples.
        with contextlib.suppress(Exception), Image.open(path) as picture:
            sizes.append((picture.height, picture.width))
    return max(sizes, key=math.prod)


def in_shared_memory(sample: Sample) -> Sample:
    """In a loader process, move the tensors of a sample to shared memory.

    torch does this too, but in a thread that only prints its errors, so that the program waits
    forever for the sample. Errors raised here reach the program.
    """
    if get_worker_info() is not None and isinstance(sample, tuple):
        for value in chain.from_iterable(
            part if isinstance(part, list) else [part] for part in sample
        ):
            if isinstance(value, Tensor):
                value.share_memory_()
    return sample
