"""Progress bars that messages of other processes do not run into."""

import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """A bar that one process shows; those where it is disabled know that it is open there.

    A bar that is shown ends its line by itself when an error leaves its loop.
    """

    def __iter__(self) -> Iterator[Any]:
        if self.disable:
            _shown_elsewhere.add(id(self))
        yield from super().__iter__()
        _shown_elsewhere.discard(id(self))


_shown_elsewhere: set[int] = set()


def end_line_of_bars() -> None:
    """Have what is printed to stderr next begin a line, where another process shows a bar."""
    if _shown_elsewhere:
        print(file=sys.stderr)
    _shown_elsewhere.clear()
