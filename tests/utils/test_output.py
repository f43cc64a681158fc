"""Readers that leave, full disks, and letters that an output does not know."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TALK = """
import sys
from utils.output import lasting_output
with lasting_output():
    for number in range(3):
        print("ü", number, flush=True)
        print("e", number, file=sys.stderr, flush=True)
sys.exit(7)
"""


def talk(**streams: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", TALK]
    return subprocess.run(command, env=environment, **streams)  # type: ignore[call-overload]


def test_characters_outside_the_encoding_are_escaped() -> None:
    done = talk(capture_output=True)
    assert done.stdout == b"\\xfc 0\n\\xfc 1\n\\xfc 2\n"
    assert done.stderr == b"e 0\ne 1\ne 2\n"
    assert done.returncode == 7


def test_a_reader_that_exits_does_not_end_the_program() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = talk(stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr.decode().splitlines() == [
        "",
        "WARNING: the output cannot be written to (Broken pipe): no further output there, the run "
        "continues",
        *("e 0", "e 1", "e 2"),
    ]
    assert done.returncode == 7


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_does_not_end_the_program(stream: str) -> None:
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    with Path("/dev/full").open("wb") as full:
        done = talk(**{stream: full, other: subprocess.PIPE})
    lines = getattr(done, other).decode().splitlines()
    (warning,) = [line for line in lines if line.startswith("WARNING")]
    assert "cannot be written to (No space left on device)" in warning
    assert lines[-1][-1] == "2"
    assert done.returncode == 7


def test_a_run_continues_without_any_output() -> None:
    with Path("/dev/full").open("wb") as full:
        assert talk(stdout=full, stderr=full).returncode == 7
    assert subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, TALK],
                          cwd=REPOSITORY, check=False).returncode == 7  # fmt: skip
