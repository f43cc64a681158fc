"""What the shell allows this process, looked at before the work and not in the middle of it."""

import resource
import threading

from utils.errors import PansError

_LEAST_FILES = 128
"""A process with a few loader processes has so many files open."""


def require_limits() -> None:
    """Allow as many open files as the shell lets this process have.

    Raises:
        PansError: that is too few, or no thread can be started.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        # torch hands over every tensor of a loader process by an open file.
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
