"""Free disk space, and errors of writing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import PansError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a PansError that names `path`."""
    try:
        yield
    except OSError as error:
        raise PansError(
            f"{path} cannot be written ({error.strerror}); make room or choose another --root, "
            "and run the same command again to resume"
        ) from error


def free_space(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def require_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes fit on the disk of `folder`.

    Raises:
        PansError: they do not.
    """
    free = free_space(folder)
    if needed > free:
        raise PansError(
            f"{folder} has {free / 1e9:.1f} GB free and needs {needed / 1e9:.1f} GB more; make "
            "room or choose another --root"
        )
