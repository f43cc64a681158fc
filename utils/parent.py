"""Processes that end with their parent, however it ends."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

PARENT_VARIABLE = "PANS_PARENT"
"""The environment variable in which a process passes its pid to those that must not outlive it."""

_PR_SET_PDEATHSIG = 1
_WATCHED_SECONDS = 1.0


def children() -> list[int]:
    """The child processes; none if the system does not report them."""
    found: list[int] = []
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # of a thread that ends meanwhile
            found += map(int, listing.read_text().split())
    return found


@contextmanager
def passed_on(variable: str, value: str) -> Iterator[None]:
    """Set an environment variable for the processes started in the body."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def as_parent() -> AbstractContextManager[None]:
    """Processes started in the body that call `end_with_starter` end with this process."""
    return passed_on(PARENT_VARIABLE, str(os.getpid()))


def end_with_parent(parent: int | None = None) -> None:
    """Make this process end when its parent ends, even by SIGKILL, and even while stopped.

    Args:
        parent: the parent's pid, if known; if it has ended already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    if parent is not None and os.getppid() != parent:  # it ended before prctl
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_starter() -> None:
    """`end_with_parent` for processes started by PAnS or torchrun; nothing if started by hand."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        end_with_parent(int(parent))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCHED_SECONDS)
    os._exit(1)
