"""Check the shell's limits before the work starts."""

import resource
import threading

from utils.errors import PansError

_LEAST_FILES = 128
"""Open files of a process with a few loader processes."""


def require_limits() -> None:
    """Raise the limit of open files as far as the shell allows.

    Raises:
        PansError: the limit is too low, or no thread can be started.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        # torch passes every tensor of a loader process by a file descriptor.
        soft = max(soft, 65536) if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < _LEAST_FILES:
        raise PansError(
            f"this shell allows {soft} open files, and a run needs {_LEAST_FILES} or more; raise "
            "the limit (ulimit -n 4096)"
        )
    try:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    except RuntimeError as error:
        raise PansError(
            "this shell allows no more processes and threads; end some, or raise the limit "
            "(ulimit -u)"
        ) from error
