"""Kills at random moments, a full disk and a process that hangs: `make torture`."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

TINY = Path(__file__).parents[1] / "reliability/tiny.py"
RUN = TINY.parents[2] / "run.py"
KILLS = int(os.environ.get("TORTURE_KILLS", "3"))
FLAGS = [
    *("--default", "--no_pretrained", "--crop_size", "48", "--epochs", "60"),
    *("--val_interval", "60", "--num_workers", "0", "--sample_num", "0", "--ckpt_minutes", "1e-9"),
]


def start(folder: Path, name: str, *flags: str, program: Path = TINY) -> subprocess.Popen[bytes]:
    paths = ["--data_root", str(folder), "--logdir", f"{folder}/logs"]
    paths += ["--checkpoints", f"{folder}/checkpoints", "--name", name]
    return subprocess.Popen(
        [sys.executable, str(program), *FLAGS, *paths, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / f"checkpoints/streethazards/{name}.pth")["model_state"]


def test_kills_at_random_moments_lose_nothing(folder: Path) -> None:
    assert start(folder, "whole").wait() == 0
    moments, killed = random.Random(0), 0
    path = folder / "checkpoints/streethazards/killed.pth"
    for _ in range(KILLS):
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = start(folder, "killed")
        while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        load_checkpoint(path)
    print(f"{killed} of {KILLS} runs were killed before their end")
    assert killed
    assert start(folder, "killed").wait() == 0
    found, expected = weights(folder, "killed"), weights(folder, "whole")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        path = tmp_path / "a.pth"
        save_checkpoint(path, {"w": torch.ones(100_000)}, keep_previous=True)
        for _ in range(20):
            with pytest.raises(CheckpointError, match="No space left on device"):
                save_checkpoint(path, {"w": torch.zeros(200_000)}, keep_previous=True)
            assert torch.equal(load_checkpoint(path)["w"], torch.ones(100_000))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_process_that_hangs_ends_the_run(folder: Path) -> None:
    process = start(folder, "hangs", "--nproc", "2", "--batch_size", "1", "--timeout", "5")
    path = folder / "checkpoints/streethazards/hangs.pth"
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGSTOP)
    # --timeout, and the half minute that torch's launcher leaves a process to end.
    assert process.wait(timeout=90) == 1


def test_the_real_network_is_killed_and_loses_nothing(folder: Path) -> None:
    """PAnS on its ResNet-50, killed in the second of its two epochs of four steps."""
    flags = ("--epochs", "2", "--val_interval", "2", "--batch_size", "2")
    assert start(folder, "whole50", *flags, program=RUN).wait() == 0
    path = folder / "checkpoints/streethazards/killed50.pth"
    process = start(folder, "killed50", *flags, program=RUN)
    while not path.exists() or load_checkpoint(path)["iteration"] < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 5 <= load_checkpoint(path)["iteration"] < 8
    assert start(folder, "killed50", *flags, program=RUN).wait() == 0
    found, expected = weights(folder, "killed50"), weights(folder, "whole50")
    assert "body.mod4.block6.convs.conv1.weight" in expected
    assert load_checkpoint(path)["iteration"] == 8
    assert all(torch.equal(found[name], value) for name, value in expected.items())
