"""Maps of a data set in a temporary file, for a second pass."""

import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

_STEPS = np.float32(2**24)


class Spool:
    """Stores groups of arrays losslessly in an unnamed file that is deleted with the process.

    uint8 (labels, predictions) is compressed, to a few KB per image of 1280x720. float32 in [0, 1)
    with multiples of 2^-24, such as 1 - probability, takes 3 bytes. Anything else hardly
    compresses and is stored as it is.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._groups: list[dict[str, list[_Place]]] = []

    @cached_property
    def _file(self) -> IO[bytes]:
        """Created for the first group, and open as long as this object exists."""
        return tempfile.TemporaryFile(dir=self._folder)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._file.tell()

    def append(self, group: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Append a group of named arrays.

        Raises:
            OSError: the file cannot be created or the disk is full.
        """
        places = {name: [self._write(array) for array in group[name]] for name in group}
        self._file.flush()
        self._groups.append(places)

    def read(self, number: int, name: str) -> list[np.ndarray]:
        """Read the array of this name in the group of this number, from 0."""
        arrays = []
        for place in self._groups[number].get(name, ()):
            self._file.seek(place.start)
            arrays.append(place.decoded(self._file.read(place.length)))
        return arrays

    def _write(self, array: np.ndarray) -> "_Place":
        start = self._file.seek(0, 2)
        packing, content = "", array.tobytes()
        if array.dtype == np.uint8:
            packing, content = "zlib", zlib.compress(content, 1)
        elif array.dtype == np.float32 and (steps := _steps(array)) is not None:
            packing, content = "steps", steps
        self._file.write(content)
        return _Place(start, len(content), array.dtype, array.shape, packing)


@dataclass(frozen=True)
class _Place:
    """Where an array is in the file, and how to read it."""

    start: int
    length: int
    dtype: np.dtype
    shape: tuple[int, ...]
    packing: str

    def decoded(self, content: bytes) -> np.ndarray:
        if self.packing == "steps":
            return _from_steps(content).reshape(self.shape)
        content = zlib.decompress(content) if self.packing == "zlib" else content
        return np.frombuffer(bytearray(content), self.dtype).reshape(self.shape)


def _steps(array: np.ndarray) -> bytes | None:
    """Encode in three bytes per value if all are multiples of 2^-24 in [0, 1), else None."""
    if not array.size or not (array.min() >= 0 and array.max() < 1):
        return None
    steps = array * _STEPS  # exact, like the next steps: a power of two
    whole = steps.astype(np.int32)
    if not np.array_equal(whole, steps):
        return None
    return np.ascontiguousarray(whole.reshape(-1, 1).view(np.uint8)[:, :3]).tobytes()


def _from_steps(content: bytes) -> np.ndarray:
    whole = np.zeros((len(content) // 3, 4), np.uint8)
    whole[:, :3] = np.frombuffer(content, np.uint8).reshape(-1, 3)
    return whole.view(np.int32)[:, 0].astype(np.float32) / _STEPS
