"""Robust output: a closed pipe or a full disk does not end a training."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _LastingStream:
    """A text stream that reports its first failure on another one and is silent from then on."""

    def __init__(self, name: str, stream: TextIO, other: TextIO | None) -> None:
        self._name, self._stream, self._other = name, stream, other

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._end(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        with contextlib.suppress(OSError):
            # The buffer would fail again, at the latest when Python exits.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()
        other, self._other = self._other, None
        if other is not None:
            with contextlib.suppress(OSError):
                other.write(
                    f"\nWARNING: {self._name} cannot be written to ({error.strerror}): no further "
                    "output there, the run continues\n"
                )
                other.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Make stdout and stderr survive closed pipes, full disks and characters they cannot encode."""
    before = sys.stdout, sys.stderr
    streams = [("the output", sys.stdout, sys.stderr), ("stderr", sys.stderr, sys.stdout)]
    # A stream that was closed before the start is None, and print does nothing.
    out, err = (stream and _LastingStream(name, stream, other) for name, stream, other in streams)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        for stream in (out, err):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
