"""Decoded copies: the same pixels as the pictures beside them, or not read at all."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.base import images_in
from dataset.decoded import copy_of, read_copy, write_copy
from dataset.own_pictures import Source, find_sources
from dataset.pictures import IMAGE_FORMATS, read_image
from dataset.prepare.command import main
from dataset.prepare.copies import write_copies
from dataset.readers.folder import Folder
from dataset.readers.streethazards import STREETHAZARDS, StreetHazards
from tests.dataset.conftest import MakeTree
from tests.dataset.trees import noise, save, write_folder
from utils.errors import PansError


def read(path: Path) -> bytes:
    return read_image(path, STREETHAZARDS).tobytes()


def own_pictures(folder: Path) -> list[Source]:
    sources, refused = find_sources([str(folder)], folder / "out")
    assert not refused
    return sources


def test_pixels_are_those_of_the_picture_without_alpha_and_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    rgba = np.dstack([noise(1), noise(2)[..., :1]])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(noise(3)).save(tmp_path / "b.jpg", exif=turned)
    Image.fromarray(noise(4)[..., 0]).save(tmp_path / "c.webp", lossless=True)
    Image.fromarray(noise(5)).quantize(17).save(tmp_path / "d.png")
    for path in sorted(tmp_path.iterdir()):
        before = read_image(path, STREETHAZARDS)
        write_copy(path, IMAGE_FORMATS)
        copy = read_copy(path)
        assert copy is not None
        assert (copy.mode, copy.size) == ("RGB", before.size)
        assert copy.tobytes() == read(path) == before.tobytes()
    assert (read_image(tmp_path / "b.jpg", STREETHAZARDS)).size == (64, 96)
    assert read(tmp_path / "a.png") == noise(1).tobytes()


def test_the_copy_is_what_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(1))
    write_copy(tmp_path / "a.png", IMAGE_FORMATS)
    status = (tmp_path / "a.png").stat()
    (tmp_path / "a.png").write_bytes(b"x" * status.st_size)
    os.utime(tmp_path / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read(tmp_path / "a.png") == noise(1).tobytes()


def test_a_changed_picture_is_read_itself(tmp_path: Path) -> None:
    """The same size a moment later; another picture of the same moment; two that change names."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for number, path in enumerate(paths):
        Image.fromarray(noise(number)).save(path, compress_level=0)
        os.utime(path, ns=(10**18, 10**18 + number))
        write_copy(path, IMAGE_FORMATS)
    assert paths[0].stat().st_size == paths[1].stat().st_size
    paths[0].rename(tmp_path / "c")
    paths[1].rename(paths[0])
    (tmp_path / "c").rename(paths[1])
    assert [read(path) for path in paths] == [noise(1).tobytes(), noise(0).tobytes()]
    Image.fromarray(noise(2) // 2).save(paths[0])
    os.utime(paths[0], ns=(10**18, 10**18))
    assert read(paths[0]) == (noise(2) // 2).tobytes()
    write_copy(paths[0], IMAGE_FORMATS)
    assert read_copy(paths[0]) is not None


def test_a_damaged_copy_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(path, noise(1))
    write_copy(path, IMAGE_FORMATS)
    whole = copy_of(path).read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", whole[:-1], whole + b"x", whole[: len(whole) // 2], whole[-20:]]
    for place in rng.integers(len(whole), size=100):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for data in damaged:
        copy_of(path).write_bytes(data)
        assert read_copy(path) is None
        assert read(path) == noise(1).tobytes()


def test_the_command_writes_them_once_and_no_reader_sees_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path, train=3, validation=1, test=1)
    words = ["folder", "--root", str(tmp_path), "--check"]
    assert main(words) == 0
    table = capsys.readouterr().out
    pictures, frames = Folder(tmp_path, "train"), own_pictures(tmp_path)
    for _ in range(2):
        assert main([*words, "--decoded"]) == 0
        assert capsys.readouterr().out == f"{table}3 decoded copies, 0.00 GB\n"
        copies = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(".*.tif")}
        assert sorted(copies) == sorted(copy_of(pictures.folder / name) for name in pictures.names)
        assert Folder(tmp_path, "train").names == pictures.names
        assert own_pictures(tmp_path) == frames
    town = pictures.folder / Path(pictures.names[0]).parent
    assert list(images_in(town).values()) == ["0.png", "1.jpg", "2.webp"]


def test_a_full_disk_is_one_line_and_the_command_goes_on_afterwards(
    make_tree: MakeTree,
    files_of_at_most: Callable[[int], AbstractContextManager[None]],
) -> None:
    root = make_tree(train=3)
    pictures = StreetHazards(root, "train")
    with files_of_at_most(5000), pytest.raises(PansError) as error:
        write_copies(pictures)
    copy = copy_of(pictures.folder / pictures.names[0])
    assert str(error.value) == (
        f"{copy} cannot be written (File too large); make room or choose another --root, and run "
        "the same command again to resume"
    )
    assert not list(root.rglob(".*"))
    assert write_copies(pictures) == "3 decoded copies, 0.00 GB"
