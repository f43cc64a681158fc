"""`make gpu-check`: its table on a pretend GPU, and its one line without any."""

import types

import pytest
import torch

from benchmarks import gpu_check
from tests.gpu.pretend_gpu import CUDA, PretendGpu


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "usable_gpus", lambda: 0)
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    assert gpu_check.main() == 2
    out, error = capsys.readouterr()
    assert (out, error) == ("", "error: make gpu-check: no NVIDIA GPU can be seen here\n")


@pytest.mark.usefixtures("small")
def test_every_check_runs_and_a_failed_one_fails(monkeypatch):
    memory = types.SimpleNamespace(total_memory=80 * 2**30)
    for name, value in {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 10**9,
        "get_device_properties": memory,
        "set_sync_debug_mode": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(gpu_check, "SIDE", 64)
    monkeypatch.setattr(gpu_check, "TEST_SIZES", ((64, 96),))
    monkeypatch.setattr(gpu_check, "LABEL_SIZE", (64, 96))
    steps = {"bf16": gpu_check.STEPS["bf16"], "wrong": "--batch_size 9"}
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    monkeypatch.setattr(gpu_check, "package_function", None)
    with PretendGpu():
        rows = gpu_check.report(CUDA, crop=48, times=3)
    results = {what: (found, verdict) for what, found, verdict in rows}
    assert results["GPU"][0] == "1 x a GPU that is not there, sm_90, 80 GiB"
    assert [
        results[f"norm in {dtype} to the CPU's in float64"][1]
        for dtype in ("float64", "float32", "bfloat16")
    ] == ["ok"] * 3
    assert results["norm over two processes (NCCL)"] == ("not run: one GPU", "")
    found, verdict = results["training step, bf16"]
    assert verdict == "ok"
    assert "images/s" in found
    assert "1.00 GB" in found
    assert found.endswith("0 waits")
    assert results["training step, wrong"][1] == "FAILED"
    assert "fewer than one batch of 9" in results["training step, wrong"][0]
    assert "images/s" in results["test image, bf16"][0]
