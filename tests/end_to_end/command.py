"""run.py as a user starts it from the shell."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def start(*flags, launcher=(), **environment):
    """Run run.py in the repository, with one thread per process."""
    return subprocess.run(
        [sys.executable, *launcher, "run.py", *map(str, flags)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
