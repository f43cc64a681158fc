"""The environment of a test, for results.json."""

import platform
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[1]


def environment(device: torch.device, precision: str, processes: int) -> dict[str, Any]:
    """Versions, commit and device, and the date and host of the call."""
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "processes": processes,
        "precision": precision,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
    }


def commit() -> str | None:
    """The repository's commit, with "-dirty" if files differ; None outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    """The CPU's name on Linux, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
