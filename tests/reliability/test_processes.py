"""Signals, kills and hangs of whole processes, as a user meets them."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LONG = ("--epochs", "60", "--val_interval", "60", "--ckpt_interval", "5")


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return found


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and the lines of stderr that are no progress bars."""
    _, errors = process.communicate(timeout=120)
    errors = re.sub(r"[^\r\n]*\|[^\r\n]*it/s[^]]*\]", "", errors)
    return process.returncode, [line for line in re.split(r"[\r\n]", errors) if line.strip()]


def weights(runs: Any) -> dict[str, torch.Tensor]:
    return runs.state()["model_state"]


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_sigint_saves_and_tells_how_to_go_on(runs: Any) -> None:
    process = runs.start(*LONG)
    wait_for((runs.checkpoints / "x.pth").exists, process)
    process.send_signal(signal.SIGINT)
    code, lines = end(process)
    assert code == 128 + signal.SIGINT
    assert lines[0] == "SIGINT: saving after this step"
    assert re.match(
        r"error: stopped by SIGINT: step \d+ is saved in .*/x\.pth; go on with: python ", lines[1]
    )
    assert lines[1].endswith(" ".join(LONG))
    assert len(lines) == 2
    step = runs.state()["iteration"]
    assert f"step {step} is saved" in lines[1]
    assert 20 <= step < 240


def test_two_processes_stop_together_and_continue_bit_for_bit(runs: Any) -> None:
    flags = (*LONG, "--nproc", "2", "--batch_size", "1")
    whole = runs.start(*flags, "--name", "whole")
    assert end(whole)[0] == 0
    process = runs.start(*flags)
    wait_for((runs.checkpoints / "x.pth").exists, process)
    process.terminate()  # torch's launcher passes it on to both
    code, lines = end(process)
    assert code == 128 + signal.SIGTERM
    (report,) = [line for line in lines if line.startswith("error: ")]
    assert re.match(r"error: stopped by SIGTERM: step \d+ is saved in .*--nproc 2", report)
    assert 20 <= runs.state()["iteration"] < 240
    assert end(runs.start(*flags))[0] == 0
    assert_same_weights(weights(runs), runs.state("whole")["model_state"])


def test_torchrun_restarts_a_killed_process_and_it_continues(runs: Any) -> None:
    flags = (*LONG, "--batch_size", "1")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=1")
    launcher += ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    process = runs.start(*flags, launcher=launcher)
    wait_for((runs.checkpoints / "x.pth").exists, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert re.search(r"continues \S+x\.pth: epoch \d+ of 60, ", output)
    assert runs.state()["iteration"] == 240
    steps = [step for step, _ in runs.points("train/loss")]
    assert steps == list(range(1, 241))


def test_a_killed_loader_process_is_named(runs: Any) -> None:
    process = runs.start(*LONG, "--num_workers", "1")
    wait_for((runs.checkpoints / "x.pth").exists, process)
    (worker,) = [pid for pid in children(process.pid) if is_loader(pid)]
    os.kill(worker, signal.SIGTERM)  # from a stranger: it goes on
    os.kill(worker, signal.SIGINT)
    step = runs.state()["iteration"]
    wait_for(lambda: runs.state()["iteration"] > step, process)
    os.kill(worker, signal.SIGKILL)
    code, lines = end(process)
    assert code == 1
    assert re.match(r"error: a? ?loader process .* for want of memory", lines[0])
    assert len(lines) == 1


def is_loader(pid: int) -> bool:
    return b"tiny.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
