"""Text files of a data set, such as lists and classes: in UTF-8, with or without its mark."""

import json
from pathlib import Path
from typing import Any

from dataset.pictures import BadSample
from utils import reading
from utils.reading import Unreadable


def read_text(path: Path, kind: str = "text") -> str:
    """The text of a file, without the byte order mark that some editors put in front.

    Args:
        kind: what it is read as, for the error.

    Raises:
        BadSample: it is missing, unreadable or not in UTF-8.
    """
    try:
        return reading.read_text(path, kind)
    except Unreadable as error:
        raise BadSample(str(error)) from error


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        BadSample: as `read_text`, or it is not JSON.
    """
    try:
        return json.loads(read_text(path, "JSON"))
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{path} cannot be read as JSON ({error}); restore it") from error
