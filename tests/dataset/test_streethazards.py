import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.base import DatasetNotFound
from dataset.description import IGNORE_INDEX
from dataset.pictures import read_image, read_label
from dataset.readers.streethazards import STREETHAZARDS, StreetHazards
from dataset.registry import describe
from utils.reading import Unreadable

CLASSES = """
0 unlabeled 0,0,0 | 1 building 70,70,70 | 2 fence 190,153,153 | 3 other 250,170,160 |
4 pedestrian 220,20,60 | 5 pole 153,153,153 | 6 road line 157,234,50 | 7 road 128,64,128 |
8 sidewalk 244,35,232 | 9 vegetation 107,142,35 | 10 car 0,0,142 | 11 wall 102,102,156 |
12 traffic sign 220,220,0
"""


def split_folder(root: Path, split: str = "train") -> Path:
    return root / "StreetHazards" / split


def first_image(root: Path) -> Path:
    return split_folder(root) / "images/training/t1/0.png"


def first_label(root: Path) -> Path:
    return split_folder(root) / "annotations/training/t1/0.png"


def test_classes_and_palette_are_the_published_ones() -> None:
    for line in CLASSES.split("|"):
        number, *name, colour = line.split()
        assert STREETHAZARDS.class_names[int(number)] == " ".join(name)
        assert STREETHAZARDS.palette[int(number)].tolist() == [
            int(value) for value in colour.split(",")
        ]
    info = STREETHAZARDS
    assert (info.num_classes, info.anomaly_index, IGNORE_INDEX) == (13, 13, 255)
    assert (info.palette[13:255] == (60, 250, 240)).all()
    assert info.palette[255].tolist() == [0, 0, 0]
    assert (info.palette.shape, info.palette.dtype) == ((256, 3), np.uint8)


def test_label_is_raw_value_less_one_and_nothing_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(path)
    label = np.array(read_label(path, STREETHAZARDS, with_anomalies=True))
    assert label[0, [0, 1, 2, 13, 14, 15, 255]].tolist() == [255, 0, 1, 12, 13, 14, 254]
    assert label[0, 1:].tolist() == list(range(255))


@pytest.mark.parametrize("highest", [0, 13])
def test_training_labels_run_to_13(tmp_path: Path, highest: int) -> None:
    path = tmp_path / "label.png"
    Image.new("L", (2, 2), highest).save(path)
    assert (
        read_label(path, STREETHAZARDS, with_anomalies=False).getpixel((0, 0))
        == (highest - 1) % 256
    )


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(path)
    image = read_image(path, STREETHAZARDS)
    assert (image.mode, image.getpixel((1, 1))) == ("RGB", (10, 20, 30))


def test_grey_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    grey, palette = tmp_path / "grey.png", tmp_path / "palette.png"
    Image.new("L", (1, 1), 77).save(grey)
    indexed = Image.new("P", (1, 1), 1)
    indexed.putpalette([0, 0, 0, 9, 8, 7])
    indexed.save(palette)
    assert read_image(grey, STREETHAZARDS).getpixel((0, 0)) == (77, 77, 77)
    assert read_image(palette, STREETHAZARDS).getpixel((0, 0)) == (9, 8, 7)


def test_sample_is_the_files_pixels(make_tree: Callable[..., Path]) -> None:
    root = make_tree(test=2)
    pictures = StreetHazards(root, "test")
    assert len(pictures) == 2
    assert pictures.names == ["images/test/t1/0.png", "images/test/t1/1.png"]
    image, label = pictures[1]
    raw = np.array(Image.open(split_folder(root, "test") / "annotations/test/t1/1.png"))
    with Image.open(split_folder(root, "test") / pictures.names[1]) as file:
        assert np.array_equal(np.array(image), np.array(file)[:, :, :3])
    assert np.array_equal(np.array(label), np.where(raw == 0, 255, raw.astype(int) - 1))
    assert (np.array(label) == 13).any()


def test_transforms_make_the_sample(make_tree: Callable[..., Path]) -> None:
    sizes = StreetHazards(
        make_tree(train=1), "train", lambda image, label: (image.size, label.size)
    )
    assert sizes[0] == ((96, 64), (96, 64))


def test_root_may_be_the_folder_itself(make_tree: Callable[..., Path]) -> None:
    root = make_tree(train=2)
    assert (
        StreetHazards(root / "StreetHazards", "train").names == StreetHazards(root, "train").names
    )


def test_validation_is_found_in_both_layouts(make_tree: Callable[..., Path]) -> None:
    root = make_tree(validation=2)
    assert len(StreetHazards(root, "validation")) == 2
    split_folder(root, "train").rename(split_folder(root, "validation"))
    pictures = StreetHazards(root, "validation")
    assert pictures.source == split_folder(root, "validation") / "validation.odgt"
    assert pictures[0][0].size == (96, 64)


def one_array(entries: list[Any]) -> str:
    return json.dumps(entries)


def pretty_array(entries: list[Any]) -> str:
    return json.dumps(entries, indent=2)


def lines_of_entries(entries: list[Any]) -> str:
    return "\n".join(json.dumps(entry) for entry in entries) + "\n\n"


def lines_of_arrays(entries: list[Any]) -> str:
    return "\n".join(json.dumps([entry]) for entry in entries)


@pytest.mark.parametrize("form", [one_array, pretty_array, lines_of_entries, lines_of_arrays])
def test_every_form_of_list_is_read_completely(
    make_tree: Callable[..., Path], form: Callable[[list[Any]], str]
) -> None:
    root = make_tree(train=3)
    path = split_folder(root) / "train.odgt"
    path.write_text(form(json.loads(path.read_text())))
    assert StreetHazards(root, "train").names == [f"images/training/t1/{n}.png" for n in range(3)]


def test_missing_list_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound) as caught:
        StreetHazards(tmp_path, "validation")
    message = str(caught.value)
    for layout in ("validation/validation.odgt", "train/validation.odgt"):
        assert f"{tmp_path}/StreetHazards/{layout}" in message
        assert f"{tmp_path}/{layout}" in message
    assert f"python -m dataset.prepare --root {tmp_path}" in message
    assert "\n" not in message


ENTRY = {"fpath_img": "images/training/t1/0.png", "fpath_segm": "annotations/training/t1/0.png"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not json", "cannot be read as JSON"),
        (b'[{"fpath_img": "a.png"', "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"", "lists no image"),
        (b"[]", "lists no image"),
        (b"7", "entry 1 has no fpath_img"),
        (b'["a.png"]', "entry 1 has no fpath_img"),
        (json.dumps([ENTRY, {"fpath_img": "a.png"}]).encode(), "entry 2 has no fpath_segm"),
        (json.dumps([ENTRY | {"fpath_img": ""}]).encode(), "entry 1 has no fpath_img"),
        (json.dumps([ENTRY | {"fpath_img": 3}]).encode(), "entry 1 has no fpath_img"),
        (json.dumps([ENTRY | {"fpath_img": "/etc/a.png"}]).encode(), "'/etc/a.png' leaves"),
        (json.dumps([ENTRY | {"fpath_segm": "a/../../b"}]).encode(), "'a/../../b' leaves"),
    ],
)
def test_bad_list_is_one_clear_line(
    make_tree: Callable[..., Path], content: bytes, words: str
) -> None:
    root = make_tree(train=1)
    path = split_folder(root) / "train.odgt"
    path.write_bytes(content)
    with pytest.raises(Unreadable) as caught:
        StreetHazards(root, "train")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert "\n" not in message


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def save(mode: str, size: tuple[int, int] = (96, 64), colour: int = 0) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size, colour).save(path)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (first_image, delete, "is missing; run 'python -m dataset.prepare'"),
        (first_image, truncate, "cannot be decoded"),
        (first_image, overwrite, "cannot be decoded"),
        (first_image, empty, "cannot be decoded"),
        (first_image, save("I;16"), "has mode I;16; expected an 8-bit picture"),
        (first_label, delete, "is missing; run 'python -m dataset.prepare'"),
        (first_label, truncate, "cannot be decoded"),
        (first_label, save("RGB"), "has mode RGB; expected an 8-bit grey label map"),
        (first_label, save("P"), "has mode P; expected an 8-bit grey label map"),
        (first_label, save("I;16"), "has mode I;16; expected an 8-bit grey label map"),
        (first_label, save("L", size=(95, 64)), "is 95x64 but its image"),
        (first_label, save("L", colour=14), "holds the value 14; outside the test split"),
    ],
)
def test_bad_file_is_one_clear_line(
    make_tree: Callable[..., Path],
    file: Callable[[Path], Path],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    root = make_tree(train=1)
    damage(file(root))
    with pytest.raises(Unreadable) as caught:
        StreetHazards(root, "train")[0]
    message = str(caught.value)
    assert message.startswith(str(file(root)))
    assert words in message
    assert "\n" not in message


def test_only_png_and_jpeg_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path, format="JPEG")
    assert read_image(path, STREETHAZARDS).size == (8, 8)
    Image.new("RGB", (8, 8)).save(path, format="BMP")
    with pytest.raises(Unreadable, match="cannot be decoded"):
        read_image(path, STREETHAZARDS)


def test_data_set_can_be_sent_to_a_spawned_worker(make_tree: Callable[..., Path]) -> None:
    pictures = StreetHazards(make_tree(train=2), "train")
    assert pickle.loads(pickle.dumps(pictures)).names == pictures.names


@pytest.mark.parametrize("inside", ["train", "train/images"])
def test_a_root_that_is_too_deep_is_told_where_the_data_is(
    make_tree: Callable[..., Path], inside: str
) -> None:
    root = make_tree(train=1)
    home = StreetHazards(root, "train").source.parents[1]
    with pytest.raises(DatasetNotFound, match=f"it is in {home}, type --data_root {home}$"):
        StreetHazards(home / inside, "train")


def test_a_folder_that_is_a_known_data_set_is_called_by_its_name(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_tree(test=1)
    with pytest.raises(DatasetNotFound, match=f"^{root} holds streethazards: type --dataset"):
        describe("folder", root)
    with pytest.raises(DatasetNotFound, match=r"classes\.txt is missing"):
        describe("folder", tmp_path / "empty")
