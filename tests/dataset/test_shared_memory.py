"""Samples in /dev/shm: how many loader processes fit, and a test in the 64 MB that Docker gives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import shared_memory
from dataset.loaders import sample_bytes
from dataset.transforms import TEST_SCALES

MB = 10**6
TINY = Path(__file__).parents[1] / "reliability/tiny.py"
# A mount namespace of its own, whose /dev/shm is small.
NAMESPACE = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=$0 tmpfs /dev/shm && exec "$@"']


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (None, (4, 2)),
        (100 * MB, (4, 2)),  # 4 x 2 + 2 samples
        (99 * MB, (4, 1)),
        (60 * MB, (4, 1)),
        (59 * MB, (3, 1)),
        (30 * MB, (1, 1)),
        (29 * MB, (0, 1)),
        (0, (0, 1)),
    ],
)
def test_workers_are_limited_by_shared_memory(
    monkeypatch: pytest.MonkeyPatch, free: int | None, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: free)
    assert shared_memory.fitting_workers(4, 10 * MB, tells=False) == expected
    assert shared_memory.fitting_workers(0, 10 * MB, tells=True).processes == 0


def test_fewer_workers_are_noted_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 2**25)
    for _ in range(2):
        shared_memory.fitting_workers(2, 2**23, tells=True)
    shared_memory.fitting_workers(2, 2**23 + 1, tells=False)
    assert capsys.readouterr().err == (
        "note: /dev/shm has 32 MiB left for each process, and a sample takes 8.0 MiB: 2 of 2 "
        "loader processes, one sample ahead each; for all, give it more room "
        "(docker run --shm-size=1g)\n"
    )


def test_the_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "statvfs", lambda path: os.statvfs_result((0, 4096, 0, 0, 1000, *[0] * 5))
    )
    assert shared_memory.free_bytes() == 4096 * 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert shared_memory.free_bytes() == 1024 * 1000


def test_a_five_scale_sample_takes_a_third_of_the_memory_of_floats(tmp_path: Path) -> None:
    Image.new("RGB", (1280, 720)).save(tmp_path / "a.png")
    images = 304 * 536 + 376 * 672 + 456 * 800 + 528 * 936 + 568 * 1000
    expected = 3 * images + 4 * 720 * 1280  # and the label and the picture itself
    assert sample_bytes([tmp_path / "a.png"], TEST_SCALES) == expected
    assert expected < (12 * images + 4 * 720 * 1280) / 2.7


def test_the_largest_picture_is_found_among_other_files(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    Image.new("RGB", (40, 20)).save(tmp_path / "large.png")
    (tmp_path / "corrupt.png").write_bytes(b"corrupt")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    files = sorted(tmp_path.iterdir())
    assert shared_memory.largest_size([*files, tmp_path / "missing.png"]) == (20, 40)
    assert shared_memory.largest_size([]) == (0, 0)


@pytest.fixture
def published_size(make_tree: Callable[..., Path]) -> Path:
    root = make_tree(test=6, size=(1280, 720))
    for label in (root / "StreetHazards/test/annotations").rglob("*.png"):
        values = np.full((720, 1280), 1, np.uint8)
        values[:40] = 14  # anomalies
        Image.fromarray(values).save(label)
    return root


def test_a_five_scale_test_runs_in_64_megabytes(published_size: Path, tmp_path: Path) -> None:
    from tests.reliability.tiny import tiny_network

    torch.save({"model_state": tiny_network().state_dict()}, tmp_path / "a.pth")
    places = [
        "--data_root",
        published_size,
        "--logdir",
        tmp_path,
        "--ckpt_test",
        tmp_path / "a.pth",
    ]
    flags = ["--default", "--test", "--multi_scala", "--num_workers", "2", "--sample_num", "1"]
    command = [*NAMESPACE, "64m", sys.executable, TINY, *flags, "--timeout", "60", *places]
    if subprocess.run([*NAMESPACE, "64m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small /dev/shm needs a mount namespace")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    assert "note: /dev/shm" not in ended.stderr
    (results,) = tmp_path.rglob("results.json")
    assert json.loads(results.read_text())["images_scored"] == 6
