"""How OpenMP's threads wait for each other, as its library reports it."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("own", "policy", "spins"),
    [
        ({}, "PASSIVE", "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", None),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(
    own: dict[str, str], policy: str, spins: str | None
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    ended = subprocess.run(
        [sys.executable, "-c", "import argparser, torch"],
        env=environment | own | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"OMP_WAIT_POLICY = '{policy}'" in ended.stderr
    assert (f"GOMP_SPINCOUNT = '{spins or 10000}'" in ended.stderr) == (spins is not None)
