"""Files that are whole at any time: written beside their place, synced, and renamed into it."""

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
    """A file to write to, which takes the place of `path` once the body is through.

    If the body raises, `path` stays as it was. Folders that are missing are made.

    Args:
        follow_link: of a link, what it leads to is replaced, and else the link itself.
        synced: wait until the disk has it, so that it outlasts the machine's crash.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path)) if follow_link else path
    # No two writers share it, nor does one meet what another has left there.
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
    """Replace `path` by UTF-8 text, as `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def same_file(source: Path, path: Path) -> None:
    """Have `path` hold what `source` holds, as a second name of it or else as a copy.

    Either may be overwritten by `replacing` afterwards without the other changing.

    Raises:
        OSError: as `replacing`.
    """
    source, target = Path(os.path.realpath(source)), Path(os.path.realpath(path))
    link = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        os.link(source, link)
    except OSError:  # another disk, or one that knows no second names
        with replacing(target) as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
        return
    try:
        link.replace(target)  # does nothing where both are one file already
        _sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            link.unlink()


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(path: Path) -> None:
    """Delete what writers of `path` that were killed have left beside it.

    Only for who knows that nobody else writes `path` now.
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
