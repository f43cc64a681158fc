"""Files and lists that are not as they should be: one line each, or skipped and listed."""

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset import loaders
from dataset.pictures import read_image, read_label
from dataset.readers.odgt import read_list
from dataset.readers.streethazards import STREETHAZARDS, StreetHazards
from dataset.skipping import SampleReader
from tests.dataset.trees import png
from utils.reading import Unreadable

MakeTree = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("two_cpus")
Damage = Callable[[Path], Any]
SIZE = (96, 64)
IMAGE, LABEL = "images/training/t1/1.png", "annotations/training/t1/1.png"


def content(data: bytes) -> Damage:
    return lambda path: path.write_bytes(data)


def picture(mode: str, form: str = "PNG", colour: int = 0) -> Damage:
    return lambda path: Image.new(mode, SIZE, colour).save(path, format=form)


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def cut_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    cut(0.6)(path)


def flip_a_byte_of_the_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[18] ^= 1
    path.write_bytes(data)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def rename(name: str) -> Damage:
    return lambda path: path.rename(path.with_name(name))


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


NO_PICTURE = "cannot be decoded"
NO_LABEL = "expected an 8-bit grey label map (mode L)"
DAMAGED_FILES: list[tuple[str, Damage, str]] = [
    (IMAGE, Path.unlink, "is missing; run 'python -m dataset.prepare'"),
    (IMAGE, content(b""), NO_PICTURE),
    (IMAGE, content(b"<html>404</html>"), NO_PICTURE),
    (IMAGE, cut(0.5), NO_PICTURE),
    (IMAGE, cut(0.001), NO_PICTURE),
    (IMAGE, cut_jpeg, NO_PICTURE),
    (IMAGE, flip_a_byte_of_the_header, NO_PICTURE),
    (IMAGE, content(png(8, 2, body=b"no zlib stream")), NO_PICTURE),
    (IMAGE, content(png(8, 2, (1_000_000, 1_000_000))), NO_PICTURE),
    (IMAGE, make_folder, "cannot be read (it is a folder)"),
    (IMAGE, link_to_nothing, "is missing"),
    (IMAGE, link_to_itself, "cannot be read ("),
    (IMAGE, make_pipe, "cannot be read (it is a pipe, a socket or a device)"),
    (LABEL, make_pipe, "cannot be read (it is a pipe, a socket or a device)"),
    (IMAGE, rename("1.PNG"), "is missing; 1.PNG lies there, convert it or give it this name; or"),
    (IMAGE, content(png(8, 2, (96, 7))), "is 96x7; expected at least 8 pixels per side"),
    (IMAGE, content(b"\0\0\0\x18ftypheic" + bytes(40)), "it is a HEIC picture"),
    (IMAGE, picture("RGB", "BMP"), f"{NO_PICTURE} (it is a BMP picture); expected a PNG"),
    (IMAGE, picture("P", "GIF"), "expected a PNG or JPEG or WEBP file"),
    (IMAGE, picture("I;16"), "has mode I;16; expected an 8-bit picture such as RGB(A)"),
    (IMAGE, content(png(16, 2)), "has mode RGB;16B; expected an 8-bit picture such as RGB(A)"),
    (IMAGE, content(png(16, 6)), "has mode RGBA;16B; expected an 8-bit picture"),
    (IMAGE, content(png(16, 4)), "has mode LA;16B; expected an 8-bit picture"),
    (IMAGE, picture("CMYK", "JPEG"), "has mode CMYK; expected an 8-bit picture"),
    (IMAGE, content(png(8, 2, (95, 64))), "is 95x64; restore both from the archive"),
    (LABEL, Path.unlink, "is missing; run 'python -m dataset.prepare'"),
    (LABEL, content(b""), NO_PICTURE),
    (LABEL, cut(0.5), NO_PICTURE),
    (LABEL, picture("L", "JPEG"), "expected a PNG file"),
    (LABEL, picture("I;16"), f"has mode I;16; {NO_LABEL}"),
    (LABEL, picture("RGB"), f"has mode RGB; {NO_LABEL}"),
    (LABEL, picture("RGBA"), f"has mode RGBA; {NO_LABEL}"),
    (LABEL, picture("LA"), f"has mode LA; {NO_LABEL}"),
    (LABEL, picture("P"), f"has mode P; {NO_LABEL}, if the indices of its palette are the values"),
    (LABEL, picture("1"), f"has mode 1; {NO_LABEL}"),
    (LABEL, content(png(4, 0)), f"has mode L;4; {NO_LABEL}"),
    (LABEL, content(png(2, 0)), f"has mode L;2; {NO_LABEL}"),
    (LABEL, picture("L", colour=14), "holds the value 14; outside the test split labels are 0..13"),
    (LABEL, picture("L", colour=255), "holds the value 255; outside the test split"),
    (LABEL, content(png(8, 0, (96, 63))), "is 96x63 but its image"),
]


def damaged_tree(make_tree: MakeTree, name: str, damage: Damage, **counts: int) -> Path:
    root = make_tree(**(counts or {"train": 3}), size=SIZE)
    damage(root / "StreetHazards/train" / name)
    return root


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGED_FILES)
def test_a_damaged_file_is_one_line(
    make_tree: MakeTree, name: str, damage: Damage, words: str
) -> None:
    pictures = StreetHazards(damaged_tree(make_tree, name, damage), "train")
    with pytest.raises(Unreadable) as caught:
        pictures[1]
    message = str(caught.value)
    assert str(pictures.folder / name) in message
    assert words in message
    assert "\n" not in message
    assert len(pictures[0]) == len(pictures[2]) == 2


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGED_FILES)
def test_a_damaged_file_is_skipped_and_remembered(
    make_tree: MakeTree, name: str, damage: Damage, words: str
) -> None:
    pictures = StreetHazards(damaged_tree(make_tree, name, damage), "train")
    reader = SampleReader(pictures, skip_bad_files=True)
    assert reader.skipped() == []
    assert [reader.read(index) is None for index in range(3)] == [False, True, False]
    (line,) = reader.skipped()
    assert words in line
    with pytest.raises(Unreadable):
        SampleReader(pictures, skip_bad_files=False).read(1)


def test_a_file_that_is_repaired_meanwhile_stays_listed(make_tree: MakeTree) -> None:
    root = make_tree(train=2)
    path = root / "StreetHazards/train" / IMAGE
    good = path.read_bytes()
    path.write_bytes(b"")
    reader = SampleReader(StreetHazards(root, "train"), skip_bad_files=True)
    assert reader.read(1) is None
    path.write_bytes(good)
    assert reader.skipped() == [f"{path} was unreadable for a while"]


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_images_and_labels_are_turned_alike(make_tree: MakeTree, orientation: int) -> None:
    turn = {3: "ROTATE_180", 6: "ROTATE_90", 8: "ROTATE_270"}[orientation]
    root = make_tree(train=1, size=SIZE)
    pictures = StreetHazards(root, "train")
    image, label = pictures[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for names in (pictures.names, pictures.label_names):
        path = pictures.folder / names[0]
        Image.open(path).transpose(Image.Transpose[turn]).save(path, exif=exif)
    for before, after in zip((image, label), pictures[0], strict=True):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def test_links_are_followed(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree(train=2)
    path = root / "StreetHazards/train" / IMAGE
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    assert StreetHazards(root, "train")[1][0].size == SIZE


@pytest.mark.parametrize("name", ["a\nb.png", "a\0b.png", "\ud800.png", "x" * 300, "\x1b[2J.png"])
def test_strange_names_in_a_list_end_in_one_printable_line(make_tree: MakeTree, name: str) -> None:
    root = make_tree(train=1)
    path = root / "StreetHazards/train/train.odgt"
    path.write_text(json.dumps([{"fpath_img": name, "fpath_segm": "b.png"}]))
    pictures = StreetHazards(root, "train")
    with pytest.raises(Unreadable) as caught:
        pictures[0]
    assert str(caught.value).isprintable()


# With --skip_bad_files


def training(root: Path, num_workers: int, **changes: Any) -> Any:
    shared = {"batch_size": 2, "crop_size": 48, "seed": 42, "rank": 0, "world_size": 1}
    return loaders.training_loader(
        root, num_workers=num_workers, skip_bad_files=True, **(shared | changes)
    )


def test_batches_with_replacements_do_not_depend_on_workers(make_tree: MakeTree) -> None:
    root = damaged_tree(make_tree, IMAGE, content(b""), train=6)
    (root / "StreetHazards/train/annotations/training/t1/4.png").unlink()
    alone, helped = training(root, 0), training(root, 2)
    for epoch in (0, 1):
        batches = []
        for loader in (alone, helped):
            loader.sampler.set_epoch(epoch)
            batches.append(list(loader))
        assert len(batches[0]) == len(batches[1]) == 3
        for first, second in zip(*batches, strict=True):
            assert torch.equal(first.image, second.image)
            assert torch.equal(first.label, second.label)
    skipped = helped.dataset.reader.skipped()
    assert [line.split()[0].rsplit("/", 1)[1] for line in skipped] == ["1.png", "4.png"]
    assert skipped == alone.dataset.reader.skipped()


def test_a_good_sample_is_the_same_with_and_without_skipping(make_tree: MakeTree) -> None:
    root = make_tree(train=4)
    before = training(root, 0).dataset[0, 2]
    (root / "StreetHazards/train" / IMAGE).unlink()
    after = training(root, 0).dataset[0, 2]
    assert torch.equal(before.image, after.image)


def test_replacements_are_spread_over_the_split(make_tree: MakeTree) -> None:
    root = damaged_tree(make_tree, IMAGE, content(b""), train=8)
    for number in range(8):
        label = Image.new("L", SIZE, number + 1)
        label.save(root / f"StreetHazards/train/annotations/training/t1/{number}.png")
    samples = training(root, 0).dataset
    drawn = [
        int(label[label != 255][0]) for label in (samples[epoch, 1].label for epoch in range(40))
    ]
    assert len(set(drawn)) == 7
    assert 1 not in drawn


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_readable_ends_with_one_line(make_tree: MakeTree, num_workers: int) -> None:
    root = make_tree(train=2)
    for path in root.glob("**/images/**/*.png"):
        path.write_bytes(b"")
    expected = "train.odgt: none of its 2 samples can be read, the first: "
    with pytest.raises(Unreadable) as caught:
        list(training(root, num_workers))
    assert expected in str(caught.value)
    traceback.clear_frames(caught.tb)
    loader = evaluation(root, "train", num_workers=num_workers)
    assert list(loader) == []
    assert expected in str(loader.dataset.reader.nothing_readable())


def evaluation(root: Path, split: Any, **changes: Any) -> Any:
    shared: dict[str, Any] = {"multi_scale": None, "num_workers": 0, "rank": 0, "world_size": 1}
    return loaders.evaluation_loader(root, split, skip_bad_files=True, **(shared | changes))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_test_leaves_out_what_cannot_be_read(
    make_tree: MakeTree, world_size: int, num_workers: int
) -> None:
    root = make_tree(test=5, size=(24, 16))
    bad = root / "StreetHazards/test/annotations/test/t1/2.png"
    bad.write_bytes(b"")
    found, skipped = [], []
    for rank in range(world_size):
        loader = evaluation(root, "test", num_workers=num_workers, rank=rank, world_size=world_size)
        found += [sample.index for sample in loader]
        skipped += loader.dataset.reader.skipped()
    assert sorted(found) == [0, 1, 3, 4]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{bad} cannot be decoded")


# Whatever the bytes, nothing but the documented error

RUNS = int(os.environ.get("FUZZ_RUNS", "200"))
ANYTHING = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
ENTRY = st.dictionaries(st.sampled_from(["fpath_img", "fpath_segm", "width"]), JSON)


def outcome(action: Callable[[], Any]) -> Any:
    """What the action returns, or the documented error."""
    try:
        return action()
    except Unreadable as error:
        return error


@settings(max_examples=RUNS, **ANYTHING)
@given(st.binary() | (st.lists(ENTRY) | JSON).map(lambda value: json.dumps(value).encode()))
def test_any_list_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "train.odgt"
    path.write_bytes(data)
    names = outcome(lambda: read_list(path))
    if isinstance(names, Unreadable):
        assert str(names).startswith(str(path))
        assert str(names).isprintable()
        return
    for name in (name for pair in names for name in pair):
        assert not name.startswith("/")
        assert ".." not in name.split("/")


@settings(max_examples=RUNS, **ANYTHING)
@given(
    where=st.integers(0, 2000),
    new=st.binary(max_size=6),
    length=st.integers(0, 2000),
    form=st.sampled_from(["PNG", "JPEG", "WEBP"]),
)
def test_any_damage_to_a_picture_is_read_or_refused(
    tmp_path: Path, where: int, new: bytes, length: int, form: str
) -> None:
    path = tmp_path / "picture"
    Image.linear_gradient("L").resize((24, 16)).save(path, format=form)
    data = path.read_bytes()
    start = where % len(data)
    path.write_bytes((data[:start] + new + data[start + len(new) :])[: length or None])
    for found, mode in (
        (outcome(lambda: read_image(path, STREETHAZARDS)), "RGB"),
        (outcome(lambda: read_label(path, STREETHAZARDS, with_anomalies=True)), "L"),
    ):
        if isinstance(found, Unreadable):
            assert str(found).startswith(str(path))
            assert str(found).isprintable()
        else:
            assert found.mode == mode
