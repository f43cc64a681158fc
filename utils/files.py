"""Atomic writes: files are written to a temporary name, synced, and renamed."""

import contextlib
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

_TEMPORARY = ".tmp"


@contextmanager
def replacing(
    path: Path | str, *, follow_link: bool = True, synced: bool = True
) -> Iterator[BufferedRandom]:
    """A temporary file to write to, which replaces `path` at the end of the body.

    If the body raises, `path` is unchanged. Missing folders are created.

    Args:
        follow_link: replace the target of a link instead of the link itself.
        synced: wait until the file is on the disk, so that it survives a crash of the machine.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path)) if follow_link else path
    # Unique, so that concurrent or killed writers do not interfere.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        with temporary.open("x+b") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(target)
        if synced:
            _sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Replace `path` by UTF-8 text, atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def same_file(source: Path, path: Path) -> None:
    """Make `path` a hard link to `source`, or a copy if the disk does not support links.

    `replacing` one of them later does not change the other.

    Raises:
        OSError: see `replacing`.
    """
    source, target = Path(os.path.realpath(source)), Path(os.path.realpath(path))
    link = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        os.link(source, link)
    except OSError:  # another disk, or one without hard links
        with replacing(target) as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
        return
    try:
        link.replace(target)  # does nothing if both are one file already
        _sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            link.unlink()


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(path: Path) -> None:
    """Delete temporary files of killed writers of `path`.

    Only if no other process is writing `path`.
    """
    target = Path(os.path.realpath(path))
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*{_TEMPORARY}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
