"""Progress: a bar on a terminal, plain lines elsewhere, and the time left."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
"""Seconds between lines without a terminal, for a loop that does not call `report`."""


class ProgressBar(tqdm):
    """A loop's progress on stderr: a bar on a terminal, else a line every half minute.

    One process shows it; the others know that it is open there. If an error leaves the loop, the
    bar ends its line.

    Args:
        reports: whether the loop calls `report`; without a terminal these are the only lines.
    """

    def __init__(
        self, items: Iterable[Any], name: str, *, shown: bool = True, reports: bool = False
    ) -> None:
        self.name, self.shown, self.on_terminal = name, shown, sys.stderr.isatty()
        super().__init__(
            items,
            name,
            disable=not shown or (reports and not self.on_terminal),
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.1 if self.on_terminal else SECONDS_BETWEEN_LINES,
        )

    def __iter__(self) -> Iterator[Any]:
        if self.disable:
            _shown_elsewhere.add(id(self))
        for self.step, item in enumerate(super().__iter__(), start=1):
            yield item
        _shown_elsewhere.discard(id(self))

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Without a terminal, print every status on its own line."""
        if file.isatty():
            return tqdm.status_printer(file)
        written = False

        def print_line(status: str) -> None:
            nonlocal written
            file.write(f"\n{status}" if written else status)
            file.flush()
            written = bool(status)

        return print_line

    def report(self, text: str) -> None:
        """Show a text after the bar; without a terminal, print it as a line."""
        if self.on_terminal:
            self.set_postfix_str(text)
        elif self.shown:
            steps = f"{self.step}/{len(self.iterable)}"
            print(f"{self.name}  {steps}  {text}", file=sys.stderr, flush=True)


_shown_elsewhere: set[int] = set()


def end_line_of_bars() -> None:
    """Make the next output to stderr start on a new line if another process shows a bar."""
    if _shown_elsewhere and sys.stderr.isatty():
        print(file=sys.stderr)
    _shown_elsewhere.clear()


class Countdown:
    """The time left for a number of steps, from the mean time of the steps so far.

    Args:
        done, total: steps at the start and at the end.
    """

    def __init__(self, done: int, total: int) -> None:
        self._first, self._total = done, total
        self._start = time.perf_counter()

    def left(self, done: int) -> str:
        """The time left after `done` steps, such as "1:02:03" or "02:03"; "?" before the first."""
        if done <= self._first:
            return "?"
        seconds = (time.perf_counter() - self._start) / (done - self._first)
        return tqdm.format_interval(seconds * (self._total - done))
