"""The base of every error that a user can cause and mend, and how a command ends on one."""

import sys
from collections.abc import Callable

USER_ERROR = 2
"""Exit code of a process that ends with a `PansError`."""


class PansError(Exception):
    """One line: what was looked for, where, and what to do. `run.py` prints it and exits with 2.

    It stays one line whatever it quotes, such as a file's name with a newline in it.
    """

    def __str__(self) -> str:
        return one_line(self._as_raised(super().__str__()))

    def _as_raised(self, message: str) -> str:
        """The message itself, where a loader process has sent it inside its traceback."""
        own = f"{type(self).__module__}.{type(self).__qualname__}: "
        return message.rstrip("\n").rpartition(f"\n{own}")[2]


def one_line(text: str) -> str:
    """`text` with everything that a terminal would not print as it is written as an escape.

    So no name of a file breaks the line, moves the cursor, or cannot be encoded.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def exit_code(command: Callable[[], None]) -> int:
    """Run a command.

    Returns:
        0, or `USER_ERROR` after printing a `PansError`, or what the disk refused, as one line.
    """
    try:
        command()
    except PansError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        print(
            f"error: {one_line(str(error))}; mend it and run the same command again",
            file=sys.stderr,
        )
        return USER_ERROR
    return 0
