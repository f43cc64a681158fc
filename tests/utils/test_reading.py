"""Files of other people's: what is there, and what is opened."""

import os
from pathlib import PurePath

import pytest

from utils.reading import Unreadable, files_below, is_hidden, read_text


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("town/0.png", False),
        ("town.x/a.b.png", False),
        ("._0.png", True),
        ("__MACOSX/town/0.png", True),
        ("town/.ipynb_checkpoints/0.png", True),
        ("Thumbs.db", True),
        ("town/desktop.ini", True),
    ],
)
def test_what_is_hidden(path, hidden):
    assert is_hidden(PurePath(path)) is hidden


def test_each_folder_is_searched_once_under_its_own_name(tmp_path):
    for name in ("in/b/1.png", "in/b/2.TXT", "in/.x/3.png", "elsewhere/4.PNG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (("a", "b"), ("loop", "."), ("out", "../elsewhere"), ("gone", "nowhere")):
        (tmp_path / "in" / link).symlink_to(target)
    found = [path.relative_to(tmp_path / "in").as_posix() for path in files_below(tmp_path / "in")]
    assert found == ["b/1.png", "b/2.TXT", "gone", "out/4.PNG"]
    pictures = files_below(tmp_path / "in", (".png",))
    assert [path.name for path in pictures] == ["1.png", "4.PNG"]


def test_a_hidden_root_is_searched(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/1.png").touch()
    assert files_below(tmp_path / ".cache") == [tmp_path / ".cache/1.png"]
    assert files_below(tmp_path / "missing") == []


def test_text_is_read_without_byte_order_mark_and_never_from_a_pipe(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbfroad 1 2 3")
    assert read_text(path) == "road 1 2 3"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Unreadable, match="expected a text file in UTF-8"):
        read_text(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Unreadable, match="it is a pipe, a socket or a device"):
        read_text(path)
