"""Lists of a split's files in StreetHazards' format (odgt): JSON with two paths per entry."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from utils.reading import Unreadable, read_text


def read_list(path: Path) -> list[tuple[str, str]]:
    """Read an odgt file: a JSON array of entries, or JSON lines.

    Returns:
        One (image, label) pair of paths per entry, relative to the folder of the odgt file.

    Raises:
        Unreadable: the file is not JSON or is empty, or an entry lacks a path or leaves the folder.
    """
    entries = _parse_list(path)
    if not entries:
        raise Unreadable(f"{path} lists no image; restore it from the archive")
    return [
        (
            _checked_name(path, number, entry, "fpath_img"),
            _checked_name(path, number, entry, "fpath_segm"),
        )
        for number, entry in enumerate(entries, start=1)
    ]


def _parse_list(path: Path) -> list[Any]:
    text = read_text(path, "JSON")
    try:
        try:
            documents = [json.loads(text)]
        except json.JSONDecodeError:
            documents = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} cannot be read as JSON ({error}); restore it") from error
    entries: list[Any] = []
    for document in documents:
        entries.extend(document if isinstance(document, list) else [document])
    return entries


def _checked_name(path: Path, number: int, entry: Any, key: str) -> str:
    name = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise Unreadable(f"{path}: entry {number} has no {key}; restore the file")
    if "\\" in name:
        raise Unreadable(
            f"{path}: entry {number}'s {key} {name!r} has backslashes; replace them by / in the "
            "whole list"
        )
    if leaves_folder(name):
        raise Unreadable(
            f"{path}: entry {number}'s {key} {name!r} leaves the folder; write it relative to "
            f"{path.parent}"
        )
    return name


def leaves_folder(name: str) -> bool:
    """Whether a path from a list points out of the list's folder; links are allowed."""
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def is_in_place(path: Path, names: list[tuple[str, str]]) -> bool:
    """Whether at least one image and one label exist where the list says."""
    return any(_exists(path.parent, image) for image, _ in names) and any(
        _exists(path.parent, label) for _, label in names
    )


def refuse_misplaced(path: Path, names: list[tuple[str, str]]) -> None:
    """Raise if the files of a list are not beside it but in a folder nearby.

    Files that are nowhere are accepted: they may not be downloaded yet.
    """
    for name in names[0]:
        if not _exists(path.parent, name):
            for home in _folders_near(path.parent):
                if _exists(home, name):
                    raise Unreadable(
                        f"{path} names {name}, which is in {home} and not beside the list; move "
                        f"the list to {home / path.name}"
                    )
            for prefix, rest in _cut(name):
                if _exists(path.parent, rest):
                    raise Unreadable(
                        f"{path} names {name}, but {path.parent} has {rest}; remove {prefix!r} "
                        "from the paths of the whole list"
                    )


def _exists(folder: Path, name: str) -> bool:
    try:
        return (folder / name).exists()
    except OSError:  # an invalid file name
        return False


def _folders_near(folder: Path) -> Iterator[Path]:
    """The parent folder, its other subfolders, and the folder's own subfolders."""
    yield folder.parent
    for parent in (folder.parent, folder):
        yield from sorted(path for path in parent.glob("*") if path.is_dir())


def _cut(name: str) -> Iterator[tuple[str, str]]:
    """Split a/b/c into (a/, b/c) and (a/b/, c)."""
    parts = PurePosixPath(name).parts
    for number in range(1, len(parts)):
        yield "/".join(parts[:number]) + "/", "/".join(parts[number:])
