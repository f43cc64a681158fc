"""What a machine whose GPUs torch cannot use is told, in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.distributed import start_process
from utils.errors import PansError
from utils.gpu import tf32_in, usable_gpus

REPOSITORY = Path(__file__).parents[2]
# As much of NVIDIA's libraries as CUDA's runtime asks for its version: it then refuses by itself.
DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
int cuDeviceGetCount(int *count) { *count = 8; return 0; }
"""
MANAGEMENT = """
#include <string.h>
int nvmlInit(void) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(int *count) { *count = 8; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    strncpy(text, "470.57.02", size);
    return 0;
}
"""
with_cuda = pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")


@pytest.fixture
def old_driver(tmp_path):
    for name, source in (("libcuda.so.1", DRIVER), ("libnvidia-ml.so.1", MANAGEMENT)):
        command = ["gcc", "-shared", "-fPIC", "-o", tmp_path / name, "-x", "c", "-"]
        subprocess.run(command, input=source, text=True, check=True)
    environment = {name: v for name, v in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return environment | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}


@with_cuda
def test_an_old_driver_does_not_train_on_cpus(old_driver, tmp_path):
    command = ["run.py", "--default", "--data_root", tmp_path, "--name", "x"]
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env=old_driver,
        capture_output=True,
        text=True,
        check=False,
    )
    built = f"PyTorch {torch.__version__} needs CUDA {torch.version.cuda}"
    *warnings, line = ended.stderr.splitlines()
    assert line == (
        "error: 8 GPUs are here with driver 470.57.02, but it is too old: it knows CUDA 11.4; "
        f"{built}: update the driver, install a PyTorch built for the driver's CUDA "
        "(https://pytorch.org/get-started), or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on "
        "CPUs"
    )
    assert not warnings
    assert ended.returncode == 2
    assert not ended.stdout


def test_other_cuda_errors_are_passed_on(monkeypatch):
    def refuse():
        raise RuntimeError("system not yet initialized\nmore")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    with pytest.raises(PansError, match=r"4 GPUs .* CUDA does not start: system not yet initiali"):
        usable_gpus()


@pytest.mark.parametrize(("capability", "refused"), [((7, 0), True), ((7, 5), False)])
def test_a_gpu_older_than_the_kernels_is_refused(monkeypatch, capability, refused):
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "set_device": None,
        "get_device_capability": capability,
        "get_device_name": "Tesla V100-SXM2-32GB",
        "get_arch_list": ["sm_75", "sm_80", "sm_90a", "compute_120"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if not refused:
        assert start_process().device == torch.device("cuda", 0)
        return
    with pytest.raises(PansError) as error:
        start_process()
    assert str(error.value).startswith(
        "Tesla V100-SXM2-32GB has compute capability 7.0, and PyTorch "
    )
    assert "was built for 7.5 and newer: install an older PyTorch" in str(error.value)


def test_start_up_says_where_tf32_is_used(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert tf32_in("fp32", cuda) == " (TF32 in convolutions)"  # torch's default
    assert tf32_in("bf16", cuda) == tf32_in("fp32", cpu) == ""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert tf32_in("fp32", cuda) == " (no TF32)"


def test_make_iabn_builds_the_package_for_the_installed_torch():
    """A wheel from pip's cache, or one that is installed, may be of another torch."""
    command = ["make", "-n", "-W", "pyproject.toml", "iabn"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    (install,) = (part for part in ended.stdout.split("pip ") if "inplace-abn==" in part)
    assert {"--no-cache-dir", "--force-reinstall", "--no-build-isolation"} <= set(install.split())
