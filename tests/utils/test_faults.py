"""Words of gloo and of torch's store that `utils.faults` knows, said by the real fault."""

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.utils.test_distributed import free_port
from utils.faults import known_fault

REPOSITORY = Path(__file__).parents[2]
# The second process closes its connections, resets them, or lets the first one wait.
PROGRAM = """
import ctypes, datetime, os, sys, time
import torch, torch.distributed as dist
from utils.faults import known_fault
rank, fault = int(os.environ["RANK"]), sys.argv[1]
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=3))
dist.all_reduce(torch.ones(1))
if rank == 1:
    if fault == "hang":
        sys.stdin.read()
    os._exit(0)
try:
    for _ in range(10):
        dist.all_reduce(torch.ones(1 << 22))
except RuntimeError as error:
    print(str(error).replace(chr(10), " "))
    print(known_fault(error), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("fault", "gloo", "line"),
    [
        ("end", r"closed|reset", "a process has lost its connection to another one"),
        ("hang", r"[Tt]imed out", "a process has waited in vain for another one"),
    ],
)
def test_words_of_gloo(tmp_path: Path, fault: str, gloo: str, line: str) -> None:
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, fault],
            env=os.environ | place | {"RANK": str(rank), "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said, _ = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    words, found = said.splitlines()
    assert "gloo" in words
    assert re.search(gloo, words)
    assert found.startswith(line)


def test_words_of_a_store_that_nobody_serves() -> None:
    with pytest.raises(RuntimeError) as caught:
        dist.TCPStore("localhost", free_port(), 2, False, timedelta(seconds=1))
    assert (known_fault(caught.value) or "").startswith("a process has waited in vain")
