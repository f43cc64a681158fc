"""Maps of a data set in a temporary file, for a second look."""

import tempfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np


class Spool:
    """Keeps groups of arrays in one nameless file, which goes when the process does.

    An image of 720x1280 takes 3.7 MB: its float32 scores as they are (they barely compress) and a
    few KB for labels and predictions (uint8), compressed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._groups: list[list[tuple[int, int, np.dtype, tuple[int, ...]]]] = []

    @cached_property
    def _file(self) -> IO[bytes]:
        """Made for the first group, and open for as long as this object lives."""
        return tempfile.TemporaryFile(dir=self._folder)

    def append(self, *arrays: np.ndarray) -> None:
        """Adds a group. Raises OSError where the file can't be made or the disk is full."""
        group = []
        for array in arrays:
            content = array.tobytes()
            content = zlib.compress(content, 1) if array.dtype == np.uint8 else content
            group.append((self._file.tell(), len(content), array.dtype, array.shape))
            self._file.write(content)
        self._file.flush()
        self._groups.append(group)

    def __getitem__(self, number: int) -> list[np.ndarray]:
        """The arrays of the group that was added as this number, from 0."""
        arrays = []
        for start, length, dtype, shape in self._groups[number]:
            self._file.seek(start)
            content = self._file.read(length)
            content = zlib.decompress(content) if dtype == np.uint8 else content
            arrays.append(np.frombuffer(bytearray(content), dtype).reshape(shape))
        return arrays
