"""Data sets in every layout in which they are spread, and what is said of the layouts of others."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import bdd_anomaly
from dataset.registry import describe, open_dataset
from tests.dataset import trees
from tests.dataset.test_datasets import failure, stripes

MakeTree = Callable[..., Path]
NORMAL, ANOMALY, IGNORED = 253, 254, 255


def move(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


# StreetHazards


def test_both_layouts_of_streethazards_are_read(make_tree: MakeTree) -> None:
    root = make_tree(train=1, validation=2, test=1)
    names = open_dataset("streethazards", root, "validation").names
    folder = root / "StreetHazards"
    for part in ("validation.odgt", "images/validation", "annotations/validation"):
        move(folder, f"train/{part}", f"validation/{part}")
    pictures = open_dataset("streethazards", root, "validation")
    assert (pictures.names, pictures.folder) == (names, folder / "validation")
    assert pictures[1][0].size == (96, 64)


def test_a_list_that_was_moved_without_its_files_is_refused_with_the_fix(
    make_tree: MakeTree,
) -> None:
    root = make_tree(train=1, validation=2, test=1)
    folder = root / "StreetHazards"
    move(folder, "train/validation.odgt", "validation/validation.odgt")
    assert failure(lambda: open_dataset("streethazards", root, "validation")) == (
        f"{folder}/validation/validation.odgt names images/validation/t1/0.png, which is in "
        f"{folder}/train and not beside the list; move the list to {folder}/train/validation.odgt"
    )
    move(folder, "test/images", "images")
    message = failure(lambda: open_dataset("streethazards", root, "test"))
    assert f"which is in {folder} and not beside the list" in message
    move(folder, "images", "test/images")
    move(folder, "test/annotations", "test/labels/annotations")
    message = failure(lambda: open_dataset("streethazards", root, "test"))
    assert f"test.odgt names annotations/test/t1/0.png, which is in {folder}/test/labels" in (
        message
    )


def test_of_two_lists_the_one_beside_its_files_is_read(make_tree: MakeTree) -> None:
    root = make_tree(validation=1)
    train = root / "StreetHazards/train"
    copy = root / "StreetHazards/validation/validation.odgt"
    copy.parent.mkdir()
    shutil.copy(train / "validation.odgt", copy)
    assert open_dataset("streethazards", root, "validation").folder == train


def test_a_list_whose_files_are_not_downloaded_yet_is_opened(make_tree: MakeTree) -> None:
    root = make_tree(test=1)
    shutil.rmtree(root / "StreetHazards/test/images")
    pictures = open_dataset("streethazards", root, "test")
    assert "0.png is missing; run 'python -m dataset.prepare'" in failure(lambda: pictures[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "StreetHazards/test/images/test/t1/0.png",
            "has images/test/t1/0.png; remove 'StreetHazards/test/' from the paths",
        ),
        ("images\\test\\t1\\0.png", "has backslashes; replace them by / in the whole list"),
        ("/data/images/test/t1/0.png", "leaves the folder; write it relative to "),
    ],
)
def test_paths_of_another_machine_in_a_list_are_refused(
    make_tree: MakeTree, name: str, words: str
) -> None:
    root = make_tree(test=1)
    path = root / "StreetHazards/test/test.odgt"
    entry = {"fpath_img": name, "fpath_segm": "annotations/test/t1/0.png"}
    path.write_text(json.dumps([entry]))
    message = failure(lambda: open_dataset("streethazards", root, "test"))
    assert message.startswith(str(path))
    assert words in message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_are_read_with_a_byte_order_mark(make_tree: MakeTree, encoding: str) -> None:
    root = make_tree(test=1)
    path = root / "StreetHazards/test/test.odgt"
    path.write_text(path.read_text(), encoding=encoding)
    trees.write_road_anomaly(root)
    frames = root / "RoadAnomaly_jpg/frame_list.json"
    frames.write_text(frames.read_text(), encoding=encoding)
    assert open_dataset("streethazards", root, "test").names == ["images/test/t1/0.png"]
    assert len(open_dataset("road_anomaly", root, "test")) == 2


# BDD-Anomaly


def test_the_publishers_name_of_the_test_list_comes_first(tmp_path: Path) -> None:
    trees.write_bdd100k(tmp_path)
    bdd_anomaly.write_lists(tmp_path)
    folder = tmp_path / "bdd100k"
    (folder / "test.odgt").write_text((folder / "train.odgt").read_text())
    assert open_dataset("bdd_anomaly", tmp_path, "test").source == folder / "anom.odgt"
    (folder / "anom.odgt").unlink()
    assert open_dataset("bdd_anomaly", tmp_path, "test").source == folder / "test.odgt"


def test_labels_that_the_publishers_shifted_are_never_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_bdd100k(tmp_path, trees.BDD_SHIFTED)
    assert bdd_anomaly.main(["--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/bdd100k: seg/train_labels and others hold train")
    assert error.count("\n") == 1
    assert list(tmp_path.glob("bdd100k/*.odgt")) == []
    trees.write_bdd100k(tmp_path)  # BDD100K's own beside them
    assert bdd_anomaly.main(["--root", str(tmp_path)]) == 0
    assert open_dataset("bdd_anomaly", tmp_path, "train").label_names == [
        "seg/labels/train/a_train_id.png",
        "seg/labels/train/c_train_id.png",
    ]


def test_labels_shifted_in_place_are_recognised_by_their_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_bdd100k(tmp_path, trees.BDD_SHIFTED)
    move(tmp_path, "bdd100k/seg/train_labels", "bdd100k/seg/labels")
    assert bdd_anomaly.main(["--root", str(tmp_path)]) == 2
    assert "a_train_id.png and others hold train id + 2" in capsys.readouterr().err


def write_list(folder: Path, split: str, labels: list[str]) -> None:
    entries = [{"fpath_img": "seg/images/val/a.jpg", "fpath_segm": label} for label in labels]
    (folder / f"{split}.odgt").write_text(json.dumps(entries))


def test_lists_of_shifted_labels_are_refused_before_a_training(tmp_path: Path) -> None:
    trees.write_bdd100k(tmp_path, trees.BDD_SHIFTED)
    folder = tmp_path / "bdd100k"
    write_list(folder, "train", ["seg/train_labels/train/a_train_id.png"])
    message = failure(lambda: open_dataset("bdd_anomaly", tmp_path, "train"))
    assert message.startswith(f"{folder}/train.odgt: seg/train_labels/train/a_train_id.png and ")
    assert f"put BDD100K's own label maps into {folder}/seg/labels and run" in message


@pytest.mark.parametrize(
    ("values", "count", "shifted"),
    [
        ((2, 3, 17), 8, True),  # road, sidewalk and bus of enough maps
        ((2, 3, 17), 7, False),
        ((2, 20), 1, True),  # a bicycle
        ((2, 19), 1, True),
        ((2, 1, 18), 8, True),
        ((0, 18), 8, False),
        ((3, 255), 8, False),
        ((3, 21), 8, False),  # of some other coding, which reading it tells
    ],
)
def test_values_of_shifted_labels(
    tmp_path: Path, values: tuple[int, ...], count: int, shifted: bool
) -> None:
    trees.save(tmp_path / "seg/images/val/a.jpg", trees.noise(0))
    labels = [f"labels/{number}.png" for number in range(count)]
    for label in labels:
        trees.save(tmp_path / label, trees.label(values))
    write_list(tmp_path, "train", labels)
    if shifted:
        message = failure(lambda: open_dataset("bdd_anomaly", tmp_path, "train"))
        assert "labels/0.png and others hold train id + 2" in message
    else:
        assert len(open_dataset("bdd_anomaly", tmp_path, "train")) == count


def test_the_program_that_writes_lists_prints_nothing_else(tmp_path: Path) -> None:
    trees.write_bdd100k(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "dataset.bdd_anomaly", "--root", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.split() == [
        "train",
        "2",
        "images",
        "validation",
        "2",
        "images",
        "test",
        "3",
        "images",
    ]


# Fishyscapes


def test_lost_and_founds_images_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    trees.write_fishyscapes(tmp_path, images="lostandfound/leftImg8bit")
    pictures = open_dataset("fishyscapes_lostandfound", tmp_path, "test")
    assert pictures.names[1] == (
        "lostandfound/leftImg8bit/test/02_Hanns_Klemm_Str_44/"
        "02_Hanns_Klemm_Str_44_000001_000190_leftImg8bit.png"
    )
    assert stripes(pictures[1][1]) == [NORMAL, ANOMALY, IGNORED]


FRAME = "04_Maurener_Weg_8_000000_000030"


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (f"labels/val/{FRAME}_fishy-labels.png", "fishyscapes_lostandfound under its published"),
        (f"labels/{FRAME}_fishy-labels.png", f"as NNNN_{FRAME}_labels.png with a number"),
        (
            f"ood/test/{FRAME}_ood_segmentation.png",
            "fishyscapes_lostandfound with 255 in place of 2, which is void there under",
        ),
    ],
)
@pytest.mark.parametrize("folder", [".", "Fishyscapes"])
def test_other_projects_copies_of_fishyscapes_are_refused_with_the_conversion(
    tmp_path: Path, folder: str, label: str, words: str
) -> None:
    trees.save(tmp_path / folder / label, trees.label((0, 1, 2)))
    message = failure(lambda: open_dataset("fishyscapes_lostandfound", tmp_path, "test"))
    assert message.startswith(f"{tmp_path / folder / label} and others")
    assert words in message
    assert f"run 'python -m dataset.prepare fishyscapes_lostandfound --root {tmp_path}'" in message


def test_flat_images_of_lost_and_found_are_refused_with_the_fix(tmp_path: Path) -> None:
    trees.write_fishyscapes(tmp_path)
    shutil.rmtree(tmp_path / "leftImg8bit")
    trees.save(tmp_path / f"laf_images/{FRAME}_leftImg8bit.png", trees.noise(0))
    message = failure(lambda: open_dataset("fishyscapes_lostandfound", tmp_path, "test"))
    assert f"move every {tmp_path}/laf_images/CITY_SEQUENCE_FRAME_leftImg8bit.png into" in message


# RoadAnomaly


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [
        ("RoadAnomaly_jpg", ".jpg"),
        ("RoadAnomaly", ".webp"),
        ("RoadAnomaly/RoadAnomaly_jpg", ".jpg"),
    ],
)
def test_road_anomaly_is_found_in_its_three_layouts(
    tmp_path: Path, folder: str, suffix: str
) -> None:
    trees.write_road_anomaly(tmp_path, folder, suffix)
    for root in (tmp_path, tmp_path / folder):
        pictures = open_dataset("road_anomaly", root, "test")
        assert pictures.names == [f"frames/animals01_cow{suffix}", f"frames/rock02_road{suffix}"]
        assert stripes(pictures[0][1]) == [NORMAL, ANOMALY]
    assert pictures[0][0].size == (96, 64)


@pytest.mark.parametrize(
    "listed",
    [["animals01_cow.webp", "rock02_road.webp"], ["animals01_cow", "rock02_road"]],
)
def test_frames_may_be_listed_with_another_suffix(tmp_path: Path, listed: list[str]) -> None:
    trees.write_road_anomaly(tmp_path)
    (tmp_path / "RoadAnomaly_jpg/frame_list.json").write_text(json.dumps(listed))
    pictures = open_dataset("road_anomaly", tmp_path, "test")
    assert pictures.names == ["frames/animals01_cow.jpg", "frames/rock02_road.jpg"]
    assert stripes(pictures[1][1]) == [NORMAL, ANOMALY]


# SegmentMeIfYouCan


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("road_anomaly_21", "RoadAnomaly21"),
        ("road_obstacle_21", "RoadObstacle21"),
        ("road_obstacle_21", "RoadObsticle21"),
    ],
)
def test_tracks_are_found_under_the_names_of_a_mirror(
    tmp_path: Path, name: str, folder: str
) -> None:
    trees.write_track(tmp_path, folder, ".webp")
    pictures = open_dataset(name, tmp_path, "test")
    assert pictures.names == ["images/validation0000.webp", "images/validation0001.webp"]
    for number in range(2):
        masks = f"{folder}/labels_masks/"
        (tmp_path / f"{masks}validation000{number}_labels_semantic_color.png").unlink()
        move(
            tmp_path,
            f"{masks}validation000{number}_labels_semantic.png",
            f"{masks}validation000{number}.png",
        )
    pictures = open_dataset(name, tmp_path, "test")
    assert pictures.label_names[1] == "labels_masks/validation0001.png"
    assert stripes(pictures[1][1]) == [NORMAL, ANOMALY, IGNORED]


def test_images_that_the_benchmark_leaves_out_of_the_obstacle_track_are_left_out(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "dataset_ObstacleTrack"
    for number in range(1, 41):
        trees.save(folder / f"images/validation_{number}.webp", trees.noise(number, (24, 16)))
        if number not in (21, 25):
            path = folder / f"labels_masks/validation_{number}_labels_semantic.png"
            trees.save(path, trees.label((0, 1), (24, 16)))
    names = open_dataset("road_obstacle_21", tmp_path, "test").names
    left_out = {19, *range(21, 30)}
    kept = [number for number in range(1, 41) if number not in left_out]
    assert sorted(names) == sorted(f"images/validation_{number}.webp" for number in kept)
    assert len(names) == 30
    (folder / "labels_masks/validation_30_labels_semantic.png").unlink()
    message = failure(lambda: open_dataset("road_obstacle_21", tmp_path, "test"))
    assert "validation_30.webp has no label" in message


# All of them


def test_hidden_files_are_skipped(tmp_path: Path) -> None:
    trees.write_bdd100k(tmp_path)
    trees.write_fishyscapes(tmp_path)
    trees.write_track(tmp_path, "dataset_AnomalyTrack", ".jpg")
    trees.write_folder(tmp_path)
    for path in list(tmp_path.rglob("*.*")):
        if path.is_file() and path.name != "classes.txt":
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    for folder in (".ipynb_checkpoints", "__MACOSX"):
        trees.save(tmp_path / f"images/train/{folder}/x.png", trees.noise(0))
    counts = bdd_anomaly.write_lists(tmp_path)
    assert counts == {"train": 2, "validation": 2, "test": 3}
    assert len(open_dataset("fishyscapes_lostandfound", tmp_path, "test")) == 2
    assert len(open_dataset("road_anomaly_21", tmp_path, "test")) == 2
    assert len(open_dataset("folder", tmp_path, "train")) == 4


def test_a_hidden_folder_may_hold_the_data(tmp_path: Path) -> None:
    trees.write_folder(tmp_path / ".cache/mine")
    assert len(open_dataset("folder", tmp_path / ".cache/mine", "train")) == 4


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("folder", "images/test/town/0.jpg", "images/test/town/0.png"),
        ("folder", "images/test/town/1.WEBP", "images/test/town/1.jpg"),
        (
            "road_anomaly_21",
            "dataset_AnomalyTrack/images/validation0000.jpg",
            "dataset_AnomalyTrack/images/validation0000.png",
        ),
    ],
)
def test_two_images_of_one_label_are_refused(
    tmp_path: Path, name: str, first: str, second: str
) -> None:
    trees.write_folder(tmp_path)
    trees.write_track(tmp_path, "dataset_AnomalyTrack", ".jpg")
    for path in (first, second):
        trees.save(tmp_path / path, trees.noise(0))
    message = failure(lambda: open_dataset(name, tmp_path, "test"))
    assert message.startswith(f"{tmp_path / first} and {tmp_path / second} would share one label")


# The user's own


def write_classes(root: Path, text: str, encoding: str = "utf-8") -> None:
    (root / "classes.txt").write_text(f"road 128 64 128\nsky 70 130 180\n{text}", encoding=encoding)


def test_a_classes_file_names_ignored_and_anomalous_values(tmp_path: Path) -> None:
    for split in ("train", "test"):
        trees.save(tmp_path / f"images/{split}/0.png", trees.noise(0))
        values = (0, 1, 2, 11, 255) if split == "train" else (0, 1, 2, 11, 12, 200, 255)
        trees.save(tmp_path / f"labels/{split}/0.png", trees.label(values, (70, 20)))
        trees.save(tmp_path / f"images/{split}/0.png", trees.noise(0, (70, 20)))
    write_classes(tmp_path, "ignore 11\nignore 2\nanomaly 12 200\n")
    assert stripes(open_dataset("folder", tmp_path, "train")[0][1]) == [0, 1, 255]
    assert stripes(open_dataset("folder", tmp_path, "test")[0][1]) == [0, 1, 255, 12, 200, 255]
    colours = {"road": [128, 64, 128], "sky": [70, 130, 180]}
    (tmp_path / "classes.txt").unlink()
    words = {"ignore": [11, 2], "anomaly": 12}
    (tmp_path / "classes.json").write_text(json.dumps(colours | words))
    info = describe("folder", tmp_path)
    assert info.class_names == ("road", "sky")
    assert (info.training_values, info.test_values) == ((0, 1, 2, 11, 255), (0, 1, 2, 11, 12, 255))


def test_a_mask_of_0_and_255_may_call_255_the_anomaly(tmp_path: Path) -> None:
    trees.save(tmp_path / "images/test/0.png", trees.noise(0))
    trees.save(tmp_path / "labels/test/0.png", trees.label((0, 255)))
    write_classes(tmp_path, "anomaly 255")
    assert stripes(open_dataset("folder", tmp_path, "test")[0][1]) == [0, 2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_value_above_the_classes_must_be_declared(tmp_path: Path, split: str) -> None:
    """Raw CamVid: 11 classes, and void is 11."""
    trees.save(tmp_path / f"images/{split}/0.png", trees.noise(0))
    trees.save(tmp_path / f"labels/{split}/0.png", trees.label((0, 1, 2)))
    write_classes(tmp_path, "")
    where = "in the test split" if split == "test" else "outside the test split"
    assert failure(lambda: open_dataset("folder", tmp_path, split)[0]) == (
        f"{tmp_path}/labels/{split}/0.png holds the value 2; {where} labels are 0..1, 255 (class "
        "index, 255 = ignored; classes.txt may declare further values, one line 'ignore N' or "
        "'anomaly N' each)"
    )


def test_the_first_value_above_the_classes_is_the_anomaly_of_the_test_split(
    tmp_path: Path,
) -> None:
    trees.write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text(trees.CLASSES.replace("anomaly 3\n", ""))
    info = describe("folder", tmp_path)
    assert info.note.startswith("labels of the test split contain 3")
    assert stripes(open_dataset("folder", tmp_path, "test")[0][1]) == [0, 1, 2, 255, 3]
    # A void label is in the labels of training too.
    trees.save(tmp_path / "labels/train/town/0.png", trees.label((0, 1, 2, 3)))
    assert describe("folder", tmp_path).note == ""
    assert "holds the value 3" in failure(lambda: open_dataset("folder", tmp_path, "test")[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ignore", "'ignore' declares a label value"),
        ("anomaly 60 250 240", "takes one new integer of 0..255, as in 'anomaly 12', got"),
        ("ignore 256", "one new integer of 0..255"),
        ("ignore 11\nanomaly 11", "one new integer of 0..255"),
        ("anomaly 1", "'anomaly 1' is also the index of the class 'sky'; choose a value >= 2"),
    ],
)
def test_bad_declarations_in_a_classes_file_are_one_line(
    tmp_path: Path, text: str, words: str
) -> None:
    write_classes(tmp_path, text)
    message = failure(lambda: describe("folder", tmp_path))
    assert message.startswith(f"{tmp_path}/classes.txt: ")
    assert words in message


def test_a_class_may_begin_with_a_word(tmp_path: Path) -> None:
    write_classes(tmp_path, "anomaly region 1 2 3")
    assert describe("folder", tmp_path).class_names == ("road", "sky", "anomaly region")


def test_a_byte_order_mark_is_no_part_of_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, "", encoding="utf-8-sig")
    assert describe("folder", tmp_path).class_names == ("road", "sky")
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.json").write_text('{"road": [1, 2, 3]}', encoding="utf-8-sig")
    assert describe("folder", tmp_path).class_names == ("road",)


def paint(path: Path, mode: str) -> None:
    with Image.open(path) as label:
        pixels = np.array(label)
    painted = Image.fromarray(pixels).convert("P") if mode == "P" else Image.new(mode, (96, 64))
    painted.save(path)


@pytest.mark.parametrize(
    ("mode", "fix"), [("P", "PIL.Image.fromarray(numpy.asarray("), ("RGB", "replace each colour")]
)
def test_colour_labels_are_refused_before_a_run(tmp_path: Path, mode: str, fix: str) -> None:
    trees.write_folder(tmp_path)
    for path in sorted(tmp_path.glob("labels/test/town/*.png")):
        paint(path, mode)
    message = failure(lambda: open_dataset("folder", tmp_path, "test"))
    assert message.startswith(
        f"{tmp_path}/labels/test/town/0.png and others are colour pictures (mode {mode}); labels "
        "must be 8-bit grey (mode L) with the class index, 0, 1, ... for road, traffic sign, car; "
    )
    assert fix in message


def test_a_single_colour_label_is_a_bad_file_like_others(tmp_path: Path) -> None:
    trees.write_folder(tmp_path)
    paint(tmp_path / "labels/test/town/0.png", "P")
    pictures = open_dataset("folder", tmp_path, "test")
    assert "has mode P" in failure(lambda: pictures[0])
    assert pictures[1][1].mode == "L"


def test_a_suffix_in_capitals_is_found(tmp_path: Path) -> None:
    trees.write_folder(tmp_path)
    move(tmp_path, "labels/train/town/0.png", "labels/train/town/0.PNG")
    move(tmp_path, "images/train/town/1.jpg", "images/train/town/1.JPG")
    pictures = open_dataset("folder", tmp_path, "train")
    assert pictures.label_names[0] == "labels/train/town/0.PNG"
    assert stripes(pictures[0][1]) == stripes(pictures[1][1]) == [0, 1, 2, 255]
