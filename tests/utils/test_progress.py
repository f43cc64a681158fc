import io
import sys

import pytest

from utils.distributed import run_reporting
from utils.progress import ProgressBar, end_line_of_bars


def fail_in_a_loop(disable: bool) -> None:
    for item in ProgressBar(range(3), "epoch", disable=disable, file=sys.stderr):
        if item == 1:
            raise MemoryError


@pytest.mark.parametrize("disable", [False, True])
def test_a_report_begins_a_line(
    disable: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert run_reporting(lambda: fail_in_a_loop(disable)) == 1
    before, line, end = capsys.readouterr().err.rsplit("\n", 2)
    assert line.startswith("error: this machine has too little memory")
    assert end == ""
    assert before.startswith("" if disable else "\repoch")
    end_line_of_bars()
    assert capsys.readouterr().err == ""


def test_a_finished_bar_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    assert list(ProgressBar(range(3), "epoch", file=stream)) == [0, 1, 2]
    written = stream.getvalue()
    end_line_of_bars()
    assert stream.getvalue() == written
    assert written.endswith("\n")
    assert capsys.readouterr().err == ""
