"""The base of every error that a user can cause and mend."""


class PansError(Exception):
    """One line: what was looked for, where, and what to do. `run.py` prints it and exits with 2."""
