"""The base class of user errors, and how a command ends on one."""

import sys
from collections.abc import Callable

USER_ERROR = 2
"""Exit code of a process that ends with a `PansError`."""


class PansError(Exception):
    """A user error of one line: what is wrong, where, and what to do. `run.py` exits with 2.

    It stays one line even if it quotes a file name with a newline.
    """

    def __str__(self) -> str:
        return one_line(self._as_raised(super().__str__()))

    def _as_raised(self, message: str) -> str:
        """Extract the message from the traceback of a loader process."""
        own = f"{type(self).__module__}.{type(self).__qualname__}: "
        return message.rstrip("\n").rpartition(f"\n{own}")[2]


def one_line(text: str) -> str:
    """Escape all characters of `text` that a terminal may not print as they are.

    So no file name breaks the line, moves the cursor, or cannot be encoded.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def exit_code(command: Callable[[], None]) -> int:
    """Run a command.

    Returns:
        0, or `USER_ERROR` after printing a `PansError` or a disk error as one line.
    """
    try:
        command()
    except (PansError, OSError) as error:
        remedy = "" if isinstance(error, PansError) else "; fix it and run the same command again"
        print(f"error: {one_line(str(error))}{remedy}", file=sys.stderr)
        return USER_ERROR
    return 0
