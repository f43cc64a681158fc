"""Shared memory (/dev/shm), through which loader processes hand over their samples."""

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
MOST_READY = 2  # samples that each process keeps ready, torch's default
TAKEN = 2  # samples beside those: the network has one, the metrics of the one before are at work
LOOKED_AT = 16

Sample = TypeVar("Sample")


class Workers(NamedTuple):
    """Loader processes, and how many samples each of them keeps ready."""

    processes: int
    ready: int


def fitting_workers(wanted: int, sample_bytes: int, *, tells: bool) -> Workers:
    """As many loader processes, up to `wanted`, as the free shared memory has room for.

    Without any, the program reads its samples itself and needs none of this memory.

    Args:
        wanted: processes.
        sample_bytes: of one sample, as large as they get.
        tells: whether to say on stderr that they are fewer; once.
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
    """This process's share of what is left, None where the system has no such folder."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def largest_size(files: Sequence[Path]) -> tuple[int, int]:
    """(height, width) of the largest of some of the pictures, (0, 0) without any.

    Only the headers of some files are read, evenly spaced.
    """
    sizes = [(0, 0)]
    for path in files[:: max(1, len(files) // LOOKED_AT)]:
        if not path.is_file():  # such as a named pipe, whose opening would wait
            continue
        # What is wrong with a file is told when it is its turn.
        with contextlib.suppress(Exception), Image.open(path) as picture:
            sizes.append((picture.height, picture.width))
    return max(sizes, key=math.prod)


def in_shared_memory(sample: Sample) -> Sample:
    """Moves the tensors of a sample to shared memory in a loader process; elsewhere does nothing.

    torch does it too, but in a thread that prints its errors and leaves the program waiting for
    the sample. From here they reach the program.
    """
    if get_worker_info() is not None and isinstance(sample, tuple):
        for value in chain.from_iterable(
            part if isinstance(part, list) else [part] for part in sample
        ):
            if isinstance(value, Tensor):
                value.share_memory_()
    return sample
