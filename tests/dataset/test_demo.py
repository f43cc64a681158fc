import hashlib
import json
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.demo.scene import draw_scene
from dataset.demo.writer import main, scenes_of, write_demo
from utils.errors import PansError

ROOT = Path(__file__).parents[2]
write_small = partial(write_demo, train=3, validation=1, test=2, size=(96, 64))
LISTS = {"train/train.odgt": 3, "train/validation.odgt": 1, "test/test.odgt": 2}
ANOMALY = 14


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def areas(labels: list[np.ndarray]) -> np.ndarray:
    """Share of each raw value 0..14 in each label, (labels, 15)."""
    return np.array([np.bincount(label.ravel(), minlength=15) / label.size for label in labels])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def train_labels() -> list[np.ndarray]:
    return [draw_scene(np.random.default_rng((7, 0, i)), 192, 108, False)[1] for i in range(24)]


@pytest.fixture(scope="module")
def test_labels() -> list[np.ndarray]:
    return [draw_scene(np.random.default_rng((7, 2, i)), 192, 108, True)[1] for i in range(24)]


def test_every_class_has_area_in_nearly_every_scene(train_labels: list[np.ndarray]) -> None:
    shares = areas(train_labels)
    assert shares.shape == (24, 15)
    assert (shares[:, 1:14].mean(0) > 0.015).all()
    assert ((shares[:, 1:14] > 0.002).mean(0) >= 0.9).all()
    assert 0 < shares[:, 0].mean() < 0.05


def test_only_scenes_with_anomalies_have_them(
    train_labels: list[np.ndarray], test_labels: list[np.ndarray]
) -> None:
    assert not areas(train_labels)[:, ANOMALY].any()
    covered = areas(test_labels)[:, ANOMALY]
    assert covered.min() > 0.005
    assert covered.max() < 0.05
    assert 0.015 < covered.mean() < 0.035


def test_sky_is_above_the_road(train_labels: list[np.ndarray]) -> None:
    for label in train_labels:
        sky, road = (np.nonzero(label == raw)[0] for raw in (1, 8))
        assert sky.max() <= road.min() + 1


@pytest.mark.parametrize(("width", "height"), [(96, 64), (131, 77), (1280, 720)])
def test_sizes(width: int, height: int) -> None:
    image, label = draw_scene(np.random.default_rng(0), width, height, True)
    assert image.shape == (height, width, 4)
    assert label.shape == (height, width)
    assert image.dtype == label.dtype == np.uint8
    assert (image[..., 3] == 255).all()
    assert set(np.unique(label)) <= set(range(15))


def test_scenes_differ() -> None:
    images = [draw_scene(np.random.default_rng((0, 0, i)), 96, 64, False)[0] for i in range(6)]
    for first, second in pairwise(images):
        assert np.abs(first.astype(int) - second).mean() > 15


def test_same_seed_same_bytes(demo: Path, tmp_path: Path) -> None:
    again = write_small(tmp_path / "again")
    assert digests(again) == digests(demo)
    other = write_small(tmp_path / "other", seed=1)
    image = "train/images/training/t1/00000.png"
    assert digests(other)[image] != digests(demo)[image]


def test_a_scene_does_not_depend_on_the_number_of_scenes(tmp_path: Path, demo: Path) -> None:
    fewer = digests(write_small(tmp_path, train=2, test=1))
    pictures = {name for name in fewer if name.endswith(".png")}
    assert len(pictures) == 8
    assert {name: fewer[name] for name in pictures}.items() <= digests(demo).items()


@pytest.mark.parametrize(("name", "count"), LISTS.items())
def test_odgt_lists_files_that_are_there(demo: Path, name: str, count: int) -> None:
    lines = (demo / name).read_text().splitlines()
    assert len(lines) == 1
    records = json.loads(lines[0])
    assert len(records) == count
    for record in records:
        assert set(record) == {"dbName", "width", "height", "fpath_img", "fpath_segm"}
        image = Image.open((demo / name).parent / record["fpath_img"])
        label = Image.open((demo / name).parent / record["fpath_segm"])
        assert (image.format, image.mode, label.format, label.mode) == ("PNG", "RGBA", "PNG", "L")
        assert image.size == label.size == (record["width"], record["height"]) == (96, 64)
        assert (np.asarray(label).max() == ANOMALY) == name.startswith("test/")


def test_layout_is_that_of_the_archives(demo: Path) -> None:
    assert demo.name == "StreetHazards"
    first = {name: json.loads((demo / name).read_text())[0] for name in LISTS}
    assert first["train/train.odgt"]["fpath_img"] == "images/training/t1/00000.png"
    assert first["train/train.odgt"]["fpath_segm"] == "annotations/training/t1/00000.png"
    assert first["train/validation.odgt"]["fpath_img"] == "images/validation/t4/00000.png"
    assert first["test/test.odgt"]["fpath_segm"] == "annotations/test/t5/00000.png"


def test_keys_are_unique(tmp_path: Path) -> None:
    scenes = [
        s
        for split in ("train", "validation", "test")
        for s in scenes_of(tmp_path, split, 9, (96, 64), 3)
    ]
    assert len({scene.key for scene in scenes}) == 27
    assert [scene.with_anomaly for scene in scenes] == [False] * 18 + [True] * 9


def test_existing_data_is_kept(tmp_path: Path) -> None:
    folder = write_small(tmp_path)
    picture = folder / "train/images/training/t1/00000.png"
    picture.write_bytes(b"mark")
    write_small(tmp_path)
    assert picture.read_bytes() == b"mark"


def test_other_parameters_replace_the_data(tmp_path: Path) -> None:
    folder = write_small(tmp_path)
    write_small(tmp_path, train=1)
    assert len(list((folder / "train/images/training").rglob("*.png"))) == 1


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    precious = tmp_path / "StreetHazards" / "train" / "train.odgt"
    precious.parent.mkdir(parents=True)
    precious.write_text("[]")
    with pytest.raises(PansError, match=r"demo\.json") as caught:
        write_small(tmp_path)
    assert "\n" not in str(caught.value)
    assert precious.read_text() == "[]"


@pytest.mark.parametrize("content", ["unfinished", "{}", ""])
def test_unfinished_data_is_redrawn(tmp_path: Path, content: str) -> None:
    folder = write_demo(tmp_path, train=1, validation=0, test=0, size=(96, 64))
    (folder / "demo.json").write_text(content)
    picture = folder / "train/images/training/t1/00000.png"
    picture.write_bytes(b"cut")
    write_demo(tmp_path, train=1, validation=0, test=0, size=(96, 64))
    assert Image.open(picture).size == (96, 64)


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dataset.demo", "--root", str(tmp_path), "--size", "96x64"]
    counts = ["--train", "1", "--validation", "0", "--test", "1"]
    done = subprocess.run([*command, *counts], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"demo data: {tmp_path / 'StreetHazards'}\n"
    assert Image.open(tmp_path / "StreetHazards/test/images/test/t5/00000.png").size == (96, 64)
    assert json.loads((tmp_path / "StreetHazards/train/validation.odgt").read_text()) == []


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "StreetHazards").write_text("a file")
    assert main(["--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'StreetHazards'} has no demo.json")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value", "line"),
    [
        ("--size", "384", "'384' is not a size"),
        ("--size", "384x16", "'384x16' is not a size"),
        ("--train", "-1", "'-1' is not an integer"),
    ],
)
def test_bad_values_are_refused(
    flag: str, value: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"{flag}={value}"])
    assert caught.value.code == 2
    assert line in capsys.readouterr().err
