"""The base of every error that a user can cause and mend, and how a command ends on one."""

import sys
from collections.abc import Callable

USER_ERROR = 2
"""Exit code of a process that ends with a `PansError`."""


class PansError(Exception):
    """One line: what was looked for, where, and what to do. `run.py` prints it and exits with 2."""


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
        print(f"error: {error}; mend it and run the same command again", file=sys.stderr)
        return USER_ERROR
    return 0
