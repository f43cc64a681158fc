"""Files that are whole at any time, whatever happens to who writes them."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from utils.files import remove_leftovers, replacing, same_file, sha256_of, write_text


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_keeps_the_old_content_until_the_new_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new/a.json"
    write_text(path, "ü")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == "ü".encode()
    assert path.read_bytes() == b"new"
    assert names_in(path.parent) == ["a.json"]


def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, files_of_at_most: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        write_text(path, "x" * 2000)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.json"]


def test_two_writers_do_not_interfere(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as one, replacing(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"  # the last to be through
    assert names_in(tmp_path) == ["a"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    link = tmp_path / "a"
    link.symlink_to(disk / "file")
    write_text(link, "1")
    write_text(link, "2")
    assert link.is_symlink()
    assert (disk / "file").read_text() == "2"
    assert names_in(disk) == ["file"]


def refuse(*paths: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("knows_links", [True, False])
def test_the_same_file_under_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows_links: bool
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_text(first, "1")
    write_text(second, "0")
    if not knows_links:
        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        same_file(first, second)
        assert second.read_text() == "1"
        assert (first.stat().st_ino == second.stat().st_ino) == knows_links
        assert names_in(tmp_path) == ["first", "second"]
    write_text(first, "2")
    assert second.read_text() == "1"


def test_only_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    for name in (".a[1].pth.0123abcd.tmp", ".a1.pth.0123abcd.tmp", "a[1].pth", ".a[1].pth.lock"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a[1].pth")
    assert names_in(tmp_path) == [".a1.pth.0123abcd.tmp", ".a[1].pth.lock", "a[1].pth"]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_of(tmp_path / "file") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
