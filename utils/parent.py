"""Processes that end with the one that started them, however that ends."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARENT_VARIABLE = "PANS_PARENT"
"""Where a process leaves its number to those that shall not outlive it."""

_PR_SET_PDEATHSIG = 1
_WATCHED_SECONDS = 1.0


def children() -> list[int]:
    """The processes that this one has started; none where the system does not tell."""
    found: list[int] = []
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # of a thread that ends meanwhile
            found += map(int, listing.read_text().split())
    return found


@contextmanager
def as_parent() -> Iterator[None]:
    """What is started in the body and calls `end_with_starter` ends with this process."""
    before = os.environ.get(PARENT_VARIABLE)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(PARENT_VARIABLE)
        if before is not None:
            os.environ[PARENT_VARIABLE] = before


def end_with_parent(parent: int | None = None) -> None:
    """Have this process killed when its parent ends, also by SIGKILL, and also while stopped.

    Args:
        parent: the number of the process that started this one, if known; once it is gone, this
            one ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    if parent is not None and os.getppid() != parent:  # it ended before the lines above
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_starter() -> None:
    """The same for a process that PAnS or torchrun has started; nothing for one by hand."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        end_with_parent(int(parent))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCHED_SECONDS)
    os._exit(1)
