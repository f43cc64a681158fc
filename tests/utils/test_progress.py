import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from utils import progress
from utils.distributed import run_reporting
from utils.progress import Countdown, ProgressBar, end_line_of_bars

LOOP = """
from utils.progress import ProgressBar
bar = ProgressBar(range(4), "epoch 1/2", reports=True)
for step in bar:
    if step % 2:
        bar.report(f"loss {step}")
print("done")
for image in ProgressBar(range(3), "test"):
    pass
"""


def fail_in_a_loop(shown: bool) -> None:
    for item in ProgressBar(range(3), "epoch", shown=shown):
        if item == 1:
            raise MemoryError


@pytest.mark.parametrize("shown", [True, False])
def test_a_report_starts_on_a_new_line(
    shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run_reporting(lambda: fail_in_a_loop(shown)) == 1
    before, line, end = capsys.readouterr().err.rsplit("\n", 2)
    assert line.startswith("error: this machine has too little memory")
    assert end == ""
    assert before.startswith("\repoch" if shown else "")
    end_line_of_bars()
    assert capsys.readouterr().err == ""


def test_a_finished_bar_is_left_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(ProgressBar(range(3), "epoch")) == [0, 1, 2]
    assert capsys.readouterr().err.endswith("\n")
    end_line_of_bars()
    assert capsys.readouterr().err == ""


def lines_of_a_pipe(program: str) -> list[str]:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, check=True, cwd=root
    )
    assert b"\r" not in done.stderr
    return done.stderr.decode().splitlines()


def test_without_a_terminal_there_is_one_line_per_report_and_one_at_the_end() -> None:
    *reports, start, end = lines_of_a_pipe(LOOP)
    assert reports == ["epoch 1/2  2/4  loss 1", "epoch 1/2  4/4  loss 3"]
    assert start.startswith("test:   0%")
    assert end.startswith("test: 100%")
    assert "3/3" in end


def test_without_a_terminal_a_long_loop_prints_occasionally(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1e-9)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(ProgressBar(range(3), "test")) == [0, 1, 2]
    counts = re.findall(r"\b\d/3", stream.getvalue())
    assert counts == ["0/3", "1/3", "2/3", "3/3", "3/3"]


def test_on_a_terminal_a_bar_in_one_line() -> None:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", LOOP], stderr=writer, check=True, cwd=root)
    os.close(writer)
    shown = b""
    while True:
        try:
            shown += os.read(reader, 4096)
        except OSError:  # how Linux tells that nothing more comes
            break
    os.close(reader)
    assert b"\repoch 1/2: " in shown
    assert b"loss 3" in shown
    assert shown.count(b"\n") == 2


def test_countdown_is_the_mean_step_times_the_steps_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([100.0, 130.0, 160.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    countdown = Countdown(done=10, total=1000)
    assert countdown.left(10) == "?"
    assert countdown.left(20) == "49:00"  # 3 s a step, 980 steps
    assert countdown.left(1000) == "00:00"
