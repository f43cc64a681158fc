"""Lists of a split's files as StreetHazards publishes them (odgt): JSON, paths in each entry."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from dataset.pictures import BadSample


def read_list(path: Path) -> list[tuple[str, str]]:
    """Read an odgt file: a JSON array of entries, or JSON lines.

    Returns:
        One (image, label) pair of paths an entry, relative to the folder of the odgt file.

    Raises:
        BadSample: the file is not JSON or is empty, or an entry lacks a path or leaves the folder.
    """
    entries = _parse_list(path)
    if not entries:
        raise BadSample(f"{path} lists no image; restore it from the archive")
    return [
        (
            _checked_name(path, number, entry, "fpath_img"),
            _checked_name(path, number, entry, "fpath_segm"),
        )
        for number, entry in enumerate(entries, start=1)
    ]


def _parse_list(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        try:
            documents = [json.loads(text)]
        except json.JSONDecodeError:
            documents = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise BadSample(f"{path} cannot be read as JSON ({error}); restore it") from error
    entries: list[Any] = []
    for document in documents:
        entries.extend(document if isinstance(document, list) else [document])
    return entries


def _checked_name(path: Path, number: int, entry: Any, key: str) -> str:
    name = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise BadSample(f"{path}: entry {number} has no {key}; restore the file")
    if leaves_folder(name):
        raise BadSample(f"{path}: entry {number}'s {key} {name!r} leaves the folder; mend it")
    return name


def leaves_folder(name: str) -> bool:
    """Whether a path from a list points out of the list's folder; links are the user's own."""
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
