"""Find, identify and open the user's files, without blocking on pipes."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from utils.errors import PansError

_NOT_DATA = {"__macosx", "desktop.ini", "thumbs.db"}
# (offset, bytes there, what the file is)
_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (8, b"WEBP", "a WEBP picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"GIF8", "a GIF picture"),
    (4, b"ftypheic", "a HEIC picture"),
    (4, b"ftypheix", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIF picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"jP  ", "a JPEG 2000 picture"),
    (4, b"JXL ", "a JPEG XL picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"v/1\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance HDR picture"),
    (0, b"8BPS", "a Photoshop picture"),
    (0, b"\x93NUMPY", "an NPY array"),
    (0, b"PK\x03\x04", "a ZIP or NPZ archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"%PDF", "a PDF document"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, 'git lfs pull' fetches the file"),
    (0, b"\0\x05\x16\x07", "macOS's notes about another file"),
    (0, b"<", "a text such as a web page, perhaps a failed download"),
)


class Unreadable(PansError):
    """A file cannot be used; the message says which one, why, and what to do."""


def is_hidden(path: PurePath) -> bool:
    """Whether a path, relative to a folder of the user's, is some program's file and not data.

    Hidden files and folders (a part that starts with ".", such as macOS's `._1.png`), `__MACOSX`,
    desktop.ini, Thumbs.db.
    """
    return any(part[0] == "." or part.lower() in _NOT_DATA for part in path.parts)


def files_below(folder: Path, suffixes: Sequence[str] = ()) -> list[Path]:
    """All files below a folder except hidden ones, sorted by path; none if it is missing.

    Links to folders are followed, each folder once; its own path is preferred to links.

    Args:
        suffixes: lower-case suffixes of the files to find, in any case; None for all files.
    """
    return sorted(
        path
        for path in _walk(folder)
        if not is_hidden(path.relative_to(folder))
        and (not suffixes or path.suffix.lower() in suffixes)
    )


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    waiting = [str(folder)] if folder.is_dir() else []
    links: list[str] = []
    while waiting or links:
        # Folders that can be reached without a link are found under their own names.
        parent = waiting.pop() if waiting else links.pop(0)
        if (place := os.path.realpath(parent)) in seen:
            continue
        seen.add(place)
        for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
            if entry.is_dir() and not is_hidden(PurePath(entry.name)):
                (links if entry.is_symlink() else waiting).append(entry.path)
            elif not entry.is_dir():
                yield Path(entry.path)


def require_file(path: Path, remedy: str = "check its name") -> None:
    """Raise Unreadable if a path is missing, or a folder, a pipe, a socket or a device."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unreadable(f"{path} is missing; {_found_instead(path)}{remedy}") from error
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read ({error}); expected a file") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise Unreadable(f"{path} cannot be read (it is {kind}); expected a file")


def _found_instead(path: Path) -> str:
    """A hint at a file with a similar name in place of a missing one."""
    if "\\" in str(path):
        return "its name holds backslashes, write / for them; or "
    if path.parent.is_dir():
        for other in sorted(path.parent.iterdir()):
            if other.stem.lower() == path.stem.lower() and not is_hidden(PurePath(other.name)):
                return f"{other.name} lies there, convert it or give it this name; or "
    parts = path.parts
    for start in range(1, len(parts) - 1):
        for end in range(start + 1, len(parts)):
            other = Path(*parts[:start], *parts[end:])
            if other.is_file():
                extra = "/".join(parts[start:end])
                return f"{other} is there, take {extra}/ out of the path; or "
    return ""


def what_is(path: Path) -> str:
    """Identify a file by its first bytes, such as "a HEIC picture"; "" if unknown."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        return ""
    if not start:
        return "empty"
    found = (
        kind for offset, mark, kind in _SIGNATURES if start[offset : offset + len(mark)] == mark
    )
    return next(found, "")


def read_text(path: Path, kind: str = "text") -> str:
    """Read a UTF-8 file without its byte order mark.

    Args:
        kind: expected kind of file, for the error message.

    Raises:
        Unreadable: it is missing, not a regular file, not UTF-8, or may not be read.
    """
    require_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise Unreadable(
            f"{path} cannot be read as {kind} ({error}); expected a text file in UTF-8"
        ) from error
