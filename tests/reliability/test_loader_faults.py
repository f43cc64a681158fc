"""Loader processes that hang, die or run out of something: one line, and soon."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.test_processes import LONG, children, end, is_loader, wait_for

REPOSITORY = Path(__file__).parents[2]
SMALL_MEMORY = [
    "unshare",
    "-m",
    "sh",
    "-c",
    'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"',
]

# Each fault really happens, and torch puts it into its own words.
FAULTS = """
import json, os, resource, signal, sys, threading, time
import torch
from torch import multiprocessing
from torch.utils.data import DataLoader
from dataset.loaders import worker_options
from dataset.shared_memory import in_shared_memory
from utils.faults import known_fault

class Samples(torch.utils.data.Dataset):
    def __init__(self, act, numbers=2**20):
        self.act, self.numbers = act, numbers
    def __len__(self):
        return 40
    def __getitem__(self, index):
        self.act()
        return (torch.zeros(self.numbers),)

def told(what, call):
    try:
        call()
    except RuntimeError as error:
        resource.setrlimit(resource.RLIMIT_NOFILE, FILES)
        words = f"{error} {error.__cause__}"
        print(json.dumps([what, words, known_fault(error)]), flush=True)

def allow_files(more):
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, FILES[1]))

def load(act=int, numbers=2**20, seconds=20.0, more_files=None):
    samples = Samples(act, numbers)
    options = worker_options(1, seconds, 1, 0)
    loader = DataLoader(samples, None, collate_fn=in_shared_memory, **options)
    batches, held = iter(loader), []
    if more_files:
        allow_files(more_files)
    held.extend(batches)

def receive():
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    def send():
        queue.put([torch.zeros(9) for _ in range(99)])
        time.sleep(30)
    sender = fork.Process(target=send, daemon=True)
    sender.start()
    allow_files(20)
    try:
        queue.get(timeout=20)
    finally:
        sender.kill()

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
told("memory", load)
told("bus", lambda: load(lambda: os.kill(os.getpid(), signal.SIGBUS), 9))
told("hang", lambda: load(lambda: time.sleep(9), 9, 1.0))
told("files", lambda: load(numbers=9, more_files=20))
told("ancdata", receive)
os._exit(0)
"""


@pytest.fixture(scope="module")
def faults() -> dict[str, tuple[str, str | None]]:
    """{what: torch's words, our line}."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", FAULTS]
    if not subprocess.run(
        [*SMALL_MEMORY, "sh", "true"], capture_output=True, check=False
    ).returncode:
        command = [*SMALL_MEMORY, "sh", *command]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = map(json.loads, ended.stdout.splitlines())
    return {what: (words, line) for what, words, line in lines}


@pytest.mark.parametrize(
    ("what", "words", "line"),
    [
        ("memory", "unable to allocate shared memory", "/dev/shm is full, .* --shm-size=1g"),
        (
            "bus",
            r"killed by signal: Bus error\.",
            r"a loader process was ended by a signal \(Bus error\), most likely .* /dev/shm",
        ),
        (
            "hang",
            "timed out after 1.0 seconds",
            "the loader has delivered no batch for 1.0 seconds",
        ),
        ("files", "Too many open files", "this process may not open more files, .*ulimit -n"),
        (
            "ancdata",
            "received 0 items of ancdata",
            "this process may not open more files, .*ulimit",
        ),
    ],
)
def test_torchs_own_messages_are_recognised(
    faults: dict[str, tuple[str, str | None]], what: str, words: str, line: str
) -> None:
    if what == "memory" and what not in faults:
        pytest.skip("mounting a small /dev/shm needs a mount namespace")
    said, told = faults[what]
    assert re.search(words, said)
    assert told is not None
    assert re.match(line, told)


def end_without_reports(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    code, lines = end(process)
    return code, [line for line in lines if not line.startswith("epoch ")]


def stopped_loaders(runs: Any, *flags: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A training whose loader processes have all been stopped."""
    process = runs.start(*LONG, "--num_workers", "2", *flags)
    wait_for((runs.checkpoints / "x.pth").exists, process)
    loaders = [pid for pid in children(process.pid) if is_loader(pid)]
    assert loaders
    for pid in loaders:
        os.kill(pid, signal.SIGSTOP)
    return process, loaders


def test_stopped_loader_processes_end_the_run_with_a_line(runs: Any) -> None:
    process, loaders = stopped_loaders(runs, "--timeout", "1")
    code, lines = end_without_reports(process)
    assert code == 1
    assert lines == [
        "error: the loader has delivered no batch for 1.0 seconds: its disk or network hangs; "
        "check --data_root, or raise --timeout"
    ]
    assert not any(Path(f"/proc/{pid}").exists() for pid in loaders)


def test_a_signal_is_answered_while_the_loader_hangs(runs: Any) -> None:
    process, loaders = stopped_loaders(runs)
    process.terminate()
    code, lines = end_without_reports(process)
    assert code == 128 + signal.SIGTERM
    assert lines[0] == "SIGTERM: saving after this step"
    step = runs.state()["iteration"]
    assert lines[1].startswith(f"error: stopped by SIGTERM: step {step} is saved in ")
    assert len(lines) == 2
    deadline = time.monotonic() + 20  # init reaps them when it gets to it
    while any(Path(f"/proc/{pid}").exists() for pid in loaders) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in loaders)
