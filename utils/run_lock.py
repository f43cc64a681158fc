"""One run per name: a run locks the folders it writes to, on shared disks too.

The lock is a kernel lock on a file, which ends with the process, however that ends. On disks where
machines do not see each other's locks, the holder renews the file's modification time instead.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from utils.errors import PansError
from utils.parent import passed_on

HELD_VARIABLE = "PANS_HELD"
"""The environment variable in which a process passes its locks to its children."""

_RENEWED_SECONDS = 10.0
_STALE_SECONDS = 60.0
_SETTLED_SECONDS = 0.3
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

_descriptors: set[int] = set()
"""The lock files of this process; a fork, such as a loader process, has none."""


def lock_file(place: Path) -> Path:
    """Path of the lock of a file or folder: a hidden file beside it."""
    return place.with_name(f".{place.name}.lock")


@contextmanager
def holding(lock_files: Iterable[Path], what: str) -> Iterator[None]:
    """Lock places while the body runs; locks that a parent process holds are not taken again.

    Args:
        lock_files: one per place, always in the same order: two runs never block each other.
        what: what is held, for the message, such as "run x".

    Raises:
        PansError: another process holds one of them, or a place cannot be written to.
    """
    paths = list(dict.fromkeys(Path(os.path.realpath(path)) for path in lock_files))
    given = os.environ.get(HELD_VARIABLE, "").split(os.pathsep)
    with ExitStack() as held:
        for path in paths:
            if str(path) not in given:
                held.enter_context(_held(path, what))
        names = os.pathsep.join([*filter(None, given), *map(str, paths)])
        held.enter_context(passed_on(HELD_VARIABLE, names))
        yield


@contextmanager
def _held(path: Path, what: str) -> Iterator[None]:
    missing = [folder for folder in path.parents if not folder.exists()]
    descriptor = _taken(path, what)
    _descriptors.add(descriptor)
    done = threading.Event()
    renewer = threading.Thread(target=_renew, args=(descriptor, done), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        if _is_at(descriptor, path):
            with contextlib.suppress(OSError):
                path.unlink()
                for folder in missing:  # a start that failed leaves nothing
                    folder.rmdir()
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _let_go_in_a_fork() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go_in_a_fork)


def _taken(path: Path, what: str) -> int:
    """Open and lock the file, and record the holder."""
    try:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # its last holder has removed the folder, now empty
                continue
            try:
                kernel_locks = _lock(descriptor)
                _refuse_living(descriptor, path, kernel_locks)
                # Whoever held it may have removed the file between opening and locking.
                if _is_at(descriptor, path):
                    _sign(descriptor, kernel_locks)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    except _Held as held:
        raise PansError(
            f"{what} is running already: {held} ({path}); wait for its end, stop it, or give this "
            "one another --name (--out for --predict)"
        ) from None
    except OSError as error:
        raise PansError(
            f"{path.parent} cannot be written to ({error.strerror}); name a folder with space and "
            "rights by --checkpoints, --logdir or --out"
        ) from error


class _Held(Exception):
    """The holder of a lock."""


def _lock(descriptor: int) -> bool:
    """Whether the kernel granted the lock; False if the disk does not support locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _Held(_described(_read(descriptor))) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _sign(descriptor: int, kernel_locks: bool) -> None:
    """Record the holder in the file."""
    text = json.dumps(_owner()).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    if not kernel_locks:  # of two that start at once, the one that wrote last keeps it
        time.sleep(_SETTLED_SECONDS)
        if os.pread(descriptor, 4096, 0) != text:
            raise _Held(_described(_read(descriptor)))


def _refuse_living(descriptor: int, path: Path, kernel_locks: bool) -> None:
    """Raise if a holder on another machine, or any without kernel locks, shows signs of life."""
    owner = _read(descriptor)
    own = _owner()
    if not owner or (kernel_locks and owner.get("machine") == own["machine"]):
        return
    if own["job"] is not None and owner.get("job") == own["job"] and _is_started_again():
        return  # the launcher has started its run again on this machine
    age = _now_on_the_disk_of(path) - os.fstat(descriptor).st_mtime
    if age < _STALE_SECONDS:
        raise _Held(
            f"{_described(owner)}, last heard of {max(age, 0):.0f} s ago; it counts as ended after "
            f"{_STALE_SECONDS:.0f} s"
        )


def _now_on_the_disk_of(path: Path) -> float:
    """The current time by the clock of the folder's disk."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with probe.open("x"):
            return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _renew(descriptor: int, done: threading.Event) -> None:
    while not done.wait(_RENEWED_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _owner() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
        "job": _job(),
    }


def _job() -> str | None:
    """An identifier shared by torchrun's restarts of a run, or a requeued SLURM job's starts."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # "none" is torchrun's for any run
    if run != "none":
        return run
    return os.environ.get("SLURM_JOB_ID")


def _is_started_again() -> bool:
    slurm_restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return "TORCHELASTIC_RUN_ID" in os.environ or slurm_restarts != "0"


def _machine() -> str:
    """An identifier of the kernel, whose locks all its containers share."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _read(descriptor: int) -> Mapping[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _described(owner: Mapping[str, Any]) -> str:
    host, pid, since = (owner.get(name, "unknown") for name in ("host", "pid", "since"))
    return f"process {pid} on {host} since {since}"
