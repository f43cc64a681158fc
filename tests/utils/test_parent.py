"""Children end with their parent, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PARENT = """
import os, signal, subprocess, sys, time
from utils.parent import as_parent, children
CHILD = "from utils.parent import end_with_starter as e; e(); print(1, flush=True); input()"
with as_parent():
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
child.stdout.readline()
if sys.argv[1] == "stopped":
    os.kill(child.pid, signal.SIGSTOP)
assert children() == [child.pid]
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # which nobody has collected yet


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_ends_with_a_killed_parent(state: str) -> None:
    command = [sys.executable, "-c", PARENT, state]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(child)


def test_a_child_whose_parent_has_ended_already_ends_at_once() -> None:
    text = "from utils.parent import end_with_starter as e; e(); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=REPOSITORY,
        env={**os.environ, "PANS_PARENT": "1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
