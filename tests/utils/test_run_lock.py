"""One run a name: the lock of the kernel's, that of disks without it, and what ends either."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from utils.errors import PansError
from utils.run_lock import HELD_VARIABLE, holding, lock_file

REPOSITORY = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from utils.run_lock import holding
with holding([Path(sys.argv[1])], "run x"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process that holds the place."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_held_once_and_its_holder_is_named(tmp_path: Path, other: Any) -> None:
    message = f"run x is running already: process {other.pid} on .* since 20.*--name"
    with pytest.raises(PansError, match=message), holding([tmp_path / "lock"], "run x"):
        pass
    for number in (signal.SIGSTOP, signal.SIGKILL):  # who is stopped still holds it
        refused = pytest.raises(PansError, match="run x is running already")
        with refused, holding([tmp_path / "lock"], "run x"):
            pass
        other.send_signal(number)
    other.wait()
    with holding([tmp_path / "lock"], "run x"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_started_processes_share_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with holding([lock, lock], "run x"):
        assert os.environ[HELD_VARIABLE] == str(lock)
        with holding([lock], "run x"):
            pass
        assert lock.exists()
    assert HELD_VARIABLE not in os.environ


def wait_for(event: Any) -> None:
    event.wait()


def test_a_fork_does_not_hold_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    event = context.Event()
    with holding([tmp_path / "lock"], "run x"):
        child = context.Process(target=wait_for, args=(event,))
        child.start()
    with holding([tmp_path / "lock"], "run x"):
        pass
    event.set()
    child.join()


def leave(path: Path, age: float, **owner: Any) -> None:
    """A lock file of a process elsewhere that was last heard of `age` seconds ago."""
    path.write_text(json.dumps({"host": "node7", "pid": 12, "since": "then", **owner}))
    os.utime(path, times=(time.time() - age, time.time() - age))


def no_locks(*words: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("kernel_locks", [True, False])
def test_a_lock_of_another_machine_holds_while_it_shows_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_locks: bool
) -> None:
    """Its kernel's locks may not reach this one."""
    if not kernel_locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    lock = tmp_path / "lock"
    leave(lock, 20, machine="another")
    message = r"process 12 on node7 since then, last heard of 2\d s ago; it counts as ended"
    with pytest.raises(PansError, match=message), holding([lock], "run x"):
        pass
    leave(lock, 100, machine="another")
    with holding([lock], "run x"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("variables", "taken"),
    [
        ({"TORCHELASTIC_RUN_ID": "run1"}, True),
        ({"TORCHELASTIC_RUN_ID": "none"}, False),
        ({"SLURM_JOB_ID": "run1", "SLURM_RESTART_COUNT": "1"}, True),
        ({"SLURM_JOB_ID": "run1"}, False),
    ],
)
def test_a_launcher_may_start_its_run_again_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], taken: bool
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    leave(tmp_path / "lock", 1, machine="another", job="run1")
    if taken:
        with holding([tmp_path / "lock"], "run x"):
            pass
    else:
        refused = pytest.raises(PansError, match="run x is running already")
        with refused, holding([tmp_path / "lock"], "run x"):
            pass


@pytest.mark.parametrize("content", ["", "[]", "{", "7"])
def test_a_lock_file_with_other_content_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    with holding([tmp_path / "lock"], "run x"):
        pass


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lock = lock_file(tmp_path / "file/streethazards/x")
    assert lock == tmp_path / "file/streethazards/.x.lock"
    message = r"file/streethazards cannot be written to \(Not a directory\); name a folder"
    with pytest.raises(PansError, match=message), holding([lock], "run x"):
        pass
