"""Every data set but StreetHazards, read from small trees in its official layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset import bdd_anomaly
from dataset.base import DatasetNotFound
from dataset.readers.folder import MOST_CLASSES, read_class_file
from dataset.registry import DATASETS, TRAINING_SETS, describe, open_dataset
from tests.dataset import trees
from utils.errors import PansError
from utils.reading import Unreadable

NORMAL, ANOMALY, IGNORED = 253, 254, 255
Write = Callable[[Path], None]


def write_anomaly_track(root: Path) -> None:
    trees.write_track(root, "dataset_AnomalyTrack", ".jpg")


def write_obstacle_track(root: Path) -> None:
    trees.write_track(root, "dataset_ObstacleTrack", ".webp")


LOST_AND_FOUND_IMAGES = [
    "leftImg8bit/train/04_Maurener_Weg_8/04_Maurener_Weg_8_000000_000030_leftImg8bit.png",
    "leftImg8bit/test/02_Hanns_Klemm_Str_44/02_Hanns_Klemm_Str_44_000001_000190_leftImg8bit.png",
]
# Writer of the tree, folder of the data set in it, images, and indices of the label's stripes.
EVALUATION_ONLY: dict[str, tuple[Write, str, list[str], list[int]]] = {
    "fishyscapes_lostandfound": (
        trees.write_fishyscapes,
        "",
        LOST_AND_FOUND_IMAGES,
        [NORMAL, ANOMALY, IGNORED],
    ),
    "road_anomaly": (
        trees.write_road_anomaly,
        "RoadAnomaly_jpg",
        ["frames/animals01_cow.jpg", "frames/rock02_road.jpg"],
        [NORMAL, ANOMALY],
    ),
    "road_anomaly_21": (
        write_anomaly_track,
        "dataset_AnomalyTrack",
        ["images/validation0000.jpg", "images/validation0001.jpg"],
        [NORMAL, ANOMALY, IGNORED],
    ),
    "road_obstacle_21": (
        write_obstacle_track,
        "dataset_ObstacleTrack",
        ["images/validation0000.webp", "images/validation0001.webp"],
        [NORMAL, ANOMALY, IGNORED],
    ),
}


def stripes(label: Image.Image) -> list[int]:
    """The values along the first row, without repeats, after a check that all rows are alike."""
    pixels = np.array(label)
    assert (pixels == pixels[0]).all()
    return [int(value) for value in pixels[0, np.flatnonzero(np.diff(pixels[0], prepend=-1))]]


def failure(action: Callable[[], Any]) -> str:
    with pytest.raises(PansError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", EVALUATION_ONLY)
def test_evaluation_only_sets_tell_normal_from_anomalous(tmp_path: Path, name: str) -> None:
    write, folder, images, indices = EVALUATION_ONLY[name]
    write(tmp_path)
    for root in {tmp_path, tmp_path / folder}:
        pictures = open_dataset(name, root, "test")
        assert (pictures.names, pictures.folder) == (images, tmp_path / folder)
        for number, image_name in enumerate(images):
            image, label = pictures[number]
            with Image.open(tmp_path / folder / image_name) as file:
                assert np.array_equal(np.array(image), np.array(file))
            assert stripes(label) == indices
    info = describe(name, tmp_path)
    assert not info.has_class_labels
    assert (info.name, info.num_classes, info.anomaly_index) == (name, 13, ANOMALY)
    assert describe(name, tmp_path, "bdd_anomaly").class_names[-2:] == ("bus", "other")
    assert info.palette[[NORMAL, ANOMALY, IGNORED]].tolist() == [
        [200, 200, 200],
        [60, 250, 240],
        [0, 0, 0],
    ]


@pytest.mark.parametrize("name", EVALUATION_ONLY)
def test_evaluation_only_sets_have_no_training_split(tmp_path: Path, name: str) -> None:
    EVALUATION_ONLY[name][0](tmp_path)
    message = failure(lambda: open_dataset(name, tmp_path, "train"))
    assert message == f"{name} has no train split, only test; choose another --dataset"
    with pytest.raises(PansError, match="has no validation split, only test"):
        open_dataset(name, tmp_path, "validation")


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_data_set_is_reported_with_a_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetNotFound) as caught:
        open_dataset(name, tmp_path, "test")
    assert str(caught.value).startswith(str(tmp_path))
    assert "--data_root" in str(caught.value)


def test_registry_names_are_those_of_the_descriptions(tmp_path: Path) -> None:
    trees.write_folder(tmp_path)
    assert [describe(name, tmp_path).name for name in DATASETS] == list(DATASETS)
    assert [name for name in DATASETS if "train" in describe(name, tmp_path).splits] == [
        *TRAINING_SETS,
        "folder",
    ]


@pytest.mark.parametrize("layout", trees.BDD_LAYOUTS)
def test_bdd_anomaly_is_split_by_its_labels(
    tmp_path: Path, layout: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_bdd100k(tmp_path, layout)
    assert bdd_anomaly.main(["--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.split("\n")
    assert [line.split() for line in printed[:3]] == [
        ["train", "2", "images"],
        ["validation", "2", "images"],
        ["test", "3", "images"],
    ]
    found = {
        split: [
            f"{Path(name).parent.name}/{Path(name).stem}"
            for name in open_dataset("bdd_anomaly", tmp_path, split).names
        ]
        for split in ("train", "validation", "test")
    }
    assert found == {
        "train": ["train/a", "train/c"],
        "validation": ["val/a", "val/b"],
        "test": ["train/b", "train/d", "val/c"],
    }
    folder = tmp_path / "bdd100k"
    assert sorted(path.name for path in folder.glob("*.odgt")) == [
        "anom.odgt",
        "train.odgt",
        "validation.odgt",
    ]
    assert json.loads((folder / "anom.odgt").read_text())[2] == {
        "dbName": "BDD100k",
        "width": 96,
        "height": 64,
        "fpath_img": f"{layout[0]}/val/c.jpg",
        "fpath_segm": f"{layout[1]}/val/c{layout[2]}.png",
    }


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("bdd_anomaly", [15, 16], [[0, 17], [18, 19], [10, 19, 16]]),
        ("bdd_anomaly_16", [15, 255], [[0, 16], [17, 18], [10, 18, 255]]),
    ],
)
def test_other_is_a_class_of_bdd_anomaly_as_it_is_published(
    tmp_path: Path, name: str, train: list[int], test: list[list[int]]
) -> None:
    trees.write_bdd100k(tmp_path)
    bdd_anomaly.write_lists(tmp_path)
    assert stripes(open_dataset(name, tmp_path, "train")[1][1]) == train
    pictures = open_dataset(name, tmp_path / "bdd100k", "test")
    assert [stripes(pictures[index][1]) for index in range(3)] == test
    info = describe(name, tmp_path)
    assert info.anomaly_index == info.num_classes == (17 if name == "bdd_anomaly" else 16)
    assert len({tuple(colour) for colour in info.palette[: info.num_classes + 1]}) == (
        info.num_classes + 1
    )


def test_bdd_anomaly_takes_lists_from_elsewhere(tmp_path: Path) -> None:
    trees.write_bdd100k(tmp_path)
    entry = {
        "fpath_img": "seg/images/val/b.jpg",
        "fpath_segm": "seg/labels/val/b_train_id.png",
    }
    (tmp_path / "bdd100k/train.odgt").write_text(json.dumps(entry))
    assert open_dataset("bdd_anomaly", tmp_path, "train").names == ["seg/images/val/b.jpg"]


def test_bdd_anomaly_without_lists_names_the_command(tmp_path: Path) -> None:
    trees.write_bdd100k(tmp_path)
    message = failure(lambda: open_dataset("bdd_anomaly", tmp_path, "train"))
    assert f"run 'python -m dataset.bdd_anomaly --root {tmp_path}'" in message


@pytest.mark.parametrize(
    ("value", "words"), [(19, "holds the value 19; in the test split labels are 0..18, 255")]
)
def test_bdd_anomaly_refuses_labels_with_another_encoding(
    tmp_path: Path, value: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_bdd100k(tmp_path)
    trees.save(tmp_path / "bdd100k/seg/labels/val/a_train_id.png", trees.label((0, value)))
    assert bdd_anomaly.main(["--root", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "bdd100k/train.odgt").exists()


def test_bdd_anomaly_without_bdd100k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bdd_anomaly.main(["--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/bdd100k holds no images and labels of BDD100K")
    assert error.count("\n") == 1


def test_anomalies_in_a_training_label_are_refused(tmp_path: Path) -> None:
    trees.write_bdd100k(tmp_path)
    bdd_anomaly.write_lists(tmp_path)
    trees.save(tmp_path / "bdd100k/seg/labels/train/a_train_id.png", trees.label((0, 17)))
    message = failure(lambda: open_dataset("bdd_anomaly", tmp_path, "train")[0])
    assert "holds the value 17; outside the test split labels are 0..15, 255" in message


def test_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    trees.write_folder(tmp_path)
    train = open_dataset("folder", tmp_path, "train")
    assert train.names == [f"images/train/town/{name}" for name in ("0.png", "1.jpg", "2.webp")] + [
        "images/train/town/3.png"
    ]
    image, label = train[2]
    assert np.array_equal(np.array(image), trees.noise(2))
    assert stripes(label) == [0, 1, 2, 255]
    assert stripes(open_dataset("folder", tmp_path, "test")[0][1]) == [0, 1, 2, 255, 3]


def test_folder_has_the_classes_of_its_file(tmp_path: Path) -> None:
    trees.write_folder(tmp_path)
    colours = {"road": (128, 64, 128), "traffic sign": (220, 220, 0), "car": (0, 0, 142)}
    info = describe("folder", tmp_path)
    assert (info.class_colours, info.anomaly_index) == (colours, 3)
    assert info.class_indices(["car", "road"]) == (2, 0)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.json").write_text(json.dumps(colours))
    assert describe("folder", tmp_path).class_colours == colours


def test_folder_follows_links_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    trees.write_folder(elsewhere)
    root.mkdir()
    for name in ("images", "labels", "classes.txt"):
        (root / name).symlink_to(elsewhere / name)
    (elsewhere / "images/train/town/again").symlink_to(elsewhere / "images/train")
    train = open_dataset("folder", root, "train")
    assert len(train) == 4
    assert stripes(train[0][1]) == [0, 1, 2, 255]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("classes.txt", b"", "has 0 classes; expected 1 to 254"),
        ("classes.txt", b"road 1 2", "class 1 must be a new name and three "),
        ("classes.txt", b"road 1 2 256", "three integers of 0..255, got 'road', (1, 2, 256)"),
        ("classes.txt", b"a 1 2 3\nroad 1 2 3.5", "class 2 must be a new name"),
        ("classes.txt", b"road 1 2 3\nroad 3 2 1", "class 2 must be a new name"),
        ("classes.txt", b"\xff\xfe", "expected a text file in UTF-8"),
        ("classes.json", b"road", "is not a JSON object"),
        ("classes.json", b'["road"]', "is not a JSON object"),
        ("classes.json", b'{"road": 7}', "is not a JSON object"),
        ("classes.json", b'{"road": [1, 2, true]}', "class 1 must be a new name"),
        ("classes.json", b'{"a": [1, 2, 3], "a": [1, 2, 4]}', "class 2 must be a new name"),
        ("classes.json", b"[" * 100_000, "is not a JSON object"),
    ],
)
def test_bad_class_file_is_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = failure(lambda: read_class_file(tmp_path))
    assert message.startswith(str(tmp_path / name))
    assert words in message


def test_there_is_one_class_file_of_limited_length(tmp_path: Path) -> None:
    lines = [f"class {index} 0 0 {index}" for index in range(MOST_CLASSES + 1)]
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    assert "has 255 classes; expected 1 to 254" in failure(lambda: read_class_file(tmp_path))
    (tmp_path / "classes.txt").write_text("\n".join(lines[:-1]))
    assert len(read_class_file(tmp_path).colours) == MOST_CLASSES
    (tmp_path / "classes.json").write_text("{}")
    assert "are both there; delete one" in failure(lambda: read_class_file(tmp_path))


def remove(name: str) -> Write:
    return lambda root: (root / name).unlink()


def write_text(name: str, text: str) -> Write:
    return lambda root: (root / name).write_text(text) and None


MASKS = "dataset_AnomalyTrack/labels_masks"


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (
            "fishyscapes_lostandfound",
            remove(LOST_AND_FOUND_IMAGES[1]),
            "0001_02_Hanns_Klemm_Str_44_000001_000190_labels.png has no image",
        ),
        ("road_anomaly", write_text("RoadAnomaly_jpg/frame_list.json", "{"), "cannot be read as"),
        (
            "road_anomaly",
            write_text("RoadAnomaly_jpg/frame_list.json", "[]"),
            "is not a JSON array",
        ),
        (
            "road_anomaly",
            write_text("RoadAnomaly_jpg/frame_list.json", '["../x.jpg"]'),
            "entry 1, '../x.jpg', is not a file name within",
        ),
        (
            "road_anomaly",
            write_text("RoadAnomaly_jpg/frame_list.json", "[7]"),
            "entry 1, 7, is not a file name within",
        ),
        (
            "road_anomaly_21",
            remove("dataset_AnomalyTrack/images/validation0001.jpg"),
            "validation0001_labels_semantic.png has no image",
        ),
        (
            "road_anomaly_21",
            remove(f"{MASKS}/validation0000_labels_semantic.png"),
            "validation0000.jpg has no label",
        ),
    ],
)
def test_files_that_do_not_match_are_reported_at_once(
    tmp_path: Path, name: str, damage: Write, words: str
) -> None:
    EVALUATION_ONLY[name][0](tmp_path)
    damage(tmp_path)
    with pytest.raises(Unreadable) as caught:
        open_dataset(name, tmp_path, "test")
    assert str(caught.value).startswith(str(tmp_path))
    assert words in str(caught.value)


def test_labels_with_another_encoding_are_refused(tmp_path: Path) -> None:
    trees.write_road_anomaly(tmp_path)
    path = tmp_path / "RoadAnomaly_jpg/frames/rock02_road.labels/labels_semantic.png"
    trees.save(path, trees.label((0, 1, 2)))
    message = failure(lambda: open_dataset("road_anomaly", tmp_path, "test")[1])
    assert message == (
        f"{path} holds the value 1; in the test split labels are 0, 2, 255 "
        "(0 normal, 2 anomaly, 255 ignored)"
    )
