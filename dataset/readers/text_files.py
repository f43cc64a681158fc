"""Text files of a data set, such as lists and classes: UTF-8, with or without byte order mark."""

import json
from pathlib import Path
from typing import Any

from dataset.pictures import BadSample
from utils import reading
from utils.reading import Unreadable


def read_text(path: Path, kind: str = "text") -> str:
    """Read a file's text without a byte order mark.

    Args:
        kind: expected kind of file, for the error message.

    Raises:
        BadSample: the file is missing, unreadable or not UTF-8.
    """
    try:
        return reading.read_text(path, kind)
    except Unreadable as error:
        raise BadSample(str(error)) from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BadSample: see `read_text`; or the file is not JSON.
    """
    try:
        return json.loads(read_text(path, "JSON"))
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{path} cannot be read as JSON ({error}); restore it") from error
