"""Known faults of the machine and of processes, each with a message of one line and a remedy.

The shell's limits are checked before the work starts.
"""

import errno
import os
import re
import resource
import signal
import threading

import torch
import torch.distributed as dist

from utils.errors import PansError, one_line

_SMALLER = "lower --batch_size or --crop_size"
# The message of torch's CPU allocator, in a RuntimeError.
_CPU_WITHOUT_MEMORY = "DefaultCPUAllocator: can't allocate memory"
_MEMORY = (
    "most likely out of memory, /dev/shm or open files (ulimit -n); lower "
    "--num_workers or --batch_size"
)
_LOADER_FAULTS = {
    r"DataLoader worker \(pid \d+\) is killed by signal: ([^.]+)\.": (
        "a loader process was ended by a signal ({0}), " + _MEMORY
    ),
    r"DataLoader worker \(pid\(s\) ([\d, ]+)\) exited unexpectedly": (
        "loader process {0} has ended, " + _MEMORY
    ),
    r"DataLoader timed out after ([\d.]+) seconds": (
        "the loader has delivered no batch for {0} seconds: its disk or network hangs; check "
        "--data_root, or raise --timeout"
    ),
    r"unable to allocate shared memory": (
        "/dev/shm is full, in which loader processes pass their samples; lower "
        "--num_workers, or give it more room (docker run --shm-size=1g)"
    ),
    r"Too many open files|received \d+ items of ancdata": (
        "this process may not open more files, of which every sample of a loader process takes "
        "some; raise the limit (ulimit -n 4096), or lower --num_workers"
    ),
}
_WAITED = (
    "a process has waited in vain for another one, which hangs or is far slower; check the "
    "machines and their network, or raise --timeout"
)
_PROCESS_FAULTS = {
    r"(?i)timed ?out|timeout": _WAITED,
    r"(?i)closed|reset|refused|broken pipe|unreachable|aborted": (
        "a process has lost its connection to another one, whose end is the cause"
    ),
}

_FILES_TRIED = 4
"""A library that needs several files at once may fail where one could still be opened."""

_LEAST_FILES = 128
"""Open files of a process with a few loader processes."""

_AGAIN = "fix it and run the same command again, without --restart"
_SHORTAGES = {
    errno.EMFILE: "this process may not open more files; raise the limit (ulimit -n 4096)",
    errno.ENFILE: "this machine may not open more files; end some programs",
    errno.EAGAIN: "no more processes or threads may be started; raise the limit (ulimit -u)",
}


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
        _start_a_thread()
    except RuntimeError as error:
        raise PansError(
            "this shell allows no more processes and threads; end some, or raise the limit "
            "(ulimit -u)"
        ) from error


def known_fault(error: BaseException) -> str | None:
    """One line with the remedy for a known fault of the machine; None for anything else."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU has too little memory; {_SMALLER}, or choose --precision bf16"
    if isinstance(error, MemoryError) or _CPU_WITHOUT_MEMORY in str(error):
        return f"this machine has too little memory; {_SMALLER} or --num_workers"
    shortage = _shortage(error)
    if shortage is not None:
        return f"{shortage}; or lower --num_workers"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return f"{one_line(str(error))}; {_AGAIN}"
    if not isinstance(error, RuntimeError):
        return None
    among_processes = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
    faults = _LOADER_FAULTS | (_PROCESS_FAULTS if among_processes else {})
    words = f"{error} {error.__cause__}"  # the signal that ended a loader process may stand there
    for pattern, line in faults.items():
        found = re.search(pattern, words)
        if found:
            return line.format(*found.groups())
    return None


def _shortage(error: BaseException) -> str | None:
    """The exhausted resource, if that is the cause of `error`.

    Library messages vary or say nothing, so the system is asked directly.
    """
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        return _SHORTAGES[error.errno]
    if not isinstance(error, OSError | RuntimeError):
        return None
    opened = []
    try:
        for _ in range(_FILES_TRIED):
            opened.append(os.open(os.devnull, os.O_RDONLY))
        _start_a_thread()
    except OSError as refusal:
        return _SHORTAGES.get(refusal.errno or 0)
    except RuntimeError:  # can't start new thread
        return _SHORTAGES[errno.EAGAIN]
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return None


def _start_a_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def signal_and_cause(number: int) -> str:
    """A signal's name with its most likely cause."""
    name = signal.Signals(number).name
    if number == signal.SIGKILL:  # the kernel's out-of-memory killer
        return f"{name}, most likely out of memory"
    if number == signal.SIGABRT:  # NCCL's watchdog after --timeout
        return f"{name}; on GPUs that most likely means: {_WAITED}"
    return name
