import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, torch
from utils.torch_settings import make_deterministic
make_deterministic()
print(torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic,
      torch.backends.cudnn.benchmark, os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""


def test_every_switch_is_set() -> None:
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "True True False :4096:8\n"
