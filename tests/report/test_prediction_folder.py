"""What --predict leaves when it is stopped: whole files, and a list of exactly what is done."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.own_pictures import Source
from dataset.readers.streethazards import STREETHAZARDS
from report.predictions import PredictionFolder
from report.visualize import HeatScale
from utils.errors import PansError

HEADING = {"checkpoint": "a.pth", "score": "msp", "threshold": 0.5}
SOURCES = [Source(Path(f"/in/{name}.png"), name) for name in "abc"]


def predict(folder: PredictionFolder, name: str, *, masked: bool = True) -> dict[str, Any]:
    """Write the results of a picture, and tell of it."""
    score = np.linspace(0, 1, 80, dtype=np.float32).reshape(8, 10)
    picture = np.zeros((8, 10, 3), np.uint8)
    mask = score > 0.5 if masked else None
    limits = folder.write(
        name, picture, np.zeros((8, 10), np.uint8), score, mask, HeatScale((0, 1))
    )
    entry = {"name": name, "heat_limits": list(limits)}
    folder.tell(entry)
    return entry


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "predictions.json").read_text())
    return found


def finished(folder: Path, *names: str) -> PredictionFolder:
    predictions = PredictionFolder(folder, STREETHAZARDS)
    predictions.begin()
    with predictions.predicting(SOURCES, HEADING):
        predictions.finish(HEADING, [predict(predictions, name) for name in names], ["b is bad"])
    return predictions


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def test_a_whole_run_tells_of_all_pictures(tmp_path: Path) -> None:
    finished(tmp_path, "c", "a")
    summary = told(tmp_path)
    assert [one["name"] for one in summary["pictures"]] == ["a", "c"]
    assert (summary["complete"], summary["unreadable"]) == (True, ["b is bad"])
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_who_is_stopped_tells_of_the_done(tmp_path: Path, error: type[BaseException]) -> None:
    """Of two processes, of which either may end first."""
    first, second = (PredictionFolder(tmp_path, STREETHAZARDS, rank) for rank in (0, 1))
    first.begin()

    def stop_the_second() -> None:
        with second.predicting(SOURCES, HEADING):
            predict(first, "a")
            second.tell("b is bad")
            predict(second, "c")
            raise error

    def stop_the_first() -> None:
        with first.predicting(SOURCES, HEADING):
            with pytest.raises(error):
                stop_the_second()
            assert [one["name"] for one in told(tmp_path)["pictures"]] == ["a", "c"]
            predict(first, "d")
            raise error

    with pytest.raises(error):
        stop_the_first()
    summary = told(tmp_path)
    assert [one["name"] for one in summary["pictures"]] == ["a", "c", "d"]
    assert summary["unreadable"] == ["b is bad"]
    assert {**summary, **HEADING, "complete": False} == summary
    first.check(SOURCES, overwrite=False)  # a folder of ours still


def test_who_is_killed_leaves_no_list(tmp_path: Path) -> None:
    finished(tmp_path, *"abc")
    killed = PredictionFolder(tmp_path, STREETHAZARDS)
    killed.begin()
    running = killed.predicting(SOURCES, HEADING)
    running.__enter__()
    assert [one["name"] for one in told(tmp_path)["pictures"]] == ["a", "b", "c"]
    predict(killed, "a")
    assert not (tmp_path / "predictions.json").exists()
    assert not list(tmp_path.glob("contact_sheet*"))
    del running
    PredictionFolder(tmp_path, STREETHAZARDS).check(SOURCES, overwrite=False)
    finished(tmp_path, "b")
    assert [one["name"] for one in told(tmp_path)["pictures"]] == ["b"]


def test_who_changes_nothing_leaves_the_earlier_list(tmp_path: Path) -> None:
    folder = finished(tmp_path, "a")
    before = (tmp_path / "predictions.json").read_bytes()
    folder.begin()
    with pytest.raises(KeyboardInterrupt), folder.predicting(SOURCES, HEADING):
        raise KeyboardInterrupt
    assert (tmp_path / "predictions.json").read_bytes() == before
    assert (tmp_path / "contact_sheet_001.png").exists()


def test_a_full_disk_leaves_whole_files_and_a_true_list(
    tmp_path: Path, files_of_at_most: Callable[[int], AbstractContextManager[None]]
) -> None:
    folder = PredictionFolder(tmp_path, STREETHAZARDS)
    folder.begin()

    def fill_the_disk() -> None:
        with folder.predicting(SOURCES, HEADING):
            predict(folder, "a")
            with files_of_at_most(400):
                predict(folder, "b")

    with pytest.raises(PansError, match="File too large"):
        fill_the_disk()
    assert [one["name"] for one in told(tmp_path)["pictures"]] == ["a"]
    for path in tmp_path.rglob("*.png"):
        Image.open(path).load()
    assert list(tmp_path.rglob("*.tmp")) == []


def test_links_among_the_results_are_replaced(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("mine")
    out = tmp_path / "out"
    finished(out, "a")
    links = ["predictions.json", "contact_sheet_001.png", "score/a.npy", "mask/a.png"]
    for name in links:
        (out / name).unlink()
        (out / name).symlink_to(own)
    finished(out, "a")
    assert own.read_text() == "mine"
    assert not any((out / name).is_symlink() for name in links)


def test_a_mask_of_another_threshold_goes_where_there_is_none(tmp_path: Path) -> None:
    folder = finished(tmp_path, "a", "b")
    folder.begin()
    with folder.predicting(SOURCES, HEADING):
        predict(folder, "a", masked=False)
    assert [path.name for path in (tmp_path / "mask").iterdir()] == ["b.png"]
