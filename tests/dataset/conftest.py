"""Small StreetHazards trees with known pixels."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dataset.network import Server

LISTS = {
    "train": "train/train.odgt",
    "validation": "train/validation.odgt",
    "test": "test/test.odgt",
}
FOLDERS = {"train": "training", "validation": "validation", "test": "test"}
MakeTree = Callable[..., Path]


def write_split(base: Path, split: str, count: int, size: tuple[int, int]) -> None:
    list_path = base / LISTS[split]
    entries = []
    for number in range(count):
        rng = np.random.default_rng((*split.encode(), number))
        name = f"{FOLDERS[split]}/t1/{number}.png"
        width, height = size
        image = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        label = rng.integers(0, 14, (height // 4 + 1, width // 4 + 1), dtype=np.uint8)
        label = label.repeat(4, 0).repeat(4, 1)[:height, :width]
        if split == "test":
            label[height // 2 :, : width // 4] = 14
        for folder, pixels in (("images", image), ("annotations", label)):
            path = list_path.parent / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        entries.append(
            {
                "dbName": "StreetHazards",
                "width": width,
                "height": height,
                "fpath_img": f"images/{name}",
                "fpath_segm": f"annotations/{name}",
            }
        )
    list_path.parent.mkdir(parents=True, exist_ok=True)
    list_path.write_text(json.dumps(entries))


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Call it with counts, as in make_tree(train=3, test=2, size=(96, 64)); returns the root."""

    def make(
        train: int = 0, validation: int = 0, test: int = 0, size: tuple[int, int] = (96, 64)
    ) -> Path:
        root = tmp_path / "data"
        for split, count in (("train", train), ("validation", validation), ("test", test)):
            if count:
                write_split(root / "StreetHazards", split, count, size)
        return root

    return make


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has loaders start up to two workers, whatever the machine and the launcher."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "prepared"
