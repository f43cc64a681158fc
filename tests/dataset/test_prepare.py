import dataclasses
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from dataset.description import Split
from dataset.prepare.archives import ARCHIVES, Archive
from dataset.prepare.check import BadDataSet
from dataset.prepare.command import main, prepare
from dataset.prepare.disk import require_space
from dataset.prepare.download import download
from dataset.prepare.unpack import unpack
from dataset.readers.streethazards import StreetHazards
from tests.dataset.network import Server
from utils.errors import PansError

MakeTree = Callable[..., Path]
SIZE = (96, 64)


def tar_of(tree: Path, folder: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(tree / "StreetHazards" / folder, folder)
    return buffer.getvalue()


@pytest.fixture
def archives(make_tree: MakeTree, server: Server) -> list[Archive]:
    """Both archives with 3, 2 and 2 small pictures in the published layout, on the server."""
    tree = make_tree(train=3, validation=2, test=2, size=SIZE)
    server.files = {"train.tar": tar_of(tree, "train"), "test.tar": tar_of(tree, "test")}
    counts: dict[str, dict[Split, int]] = {
        "train.tar": {"train": 3, "validation": 2},
        "test.tar": {"test": 2},
    }
    return [
        Archive(f"{server.url}/{name}", hashlib.md5(server.files[name]).hexdigest(), images, SIZE)
        for name, images in counts.items()
    ]


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_archives_are_the_published_ones() -> None:
    train, test = ARCHIVES
    base = "https://people.eecs.berkeley.edu/~hendrycks/"
    assert (train.url, train.md5) == (
        f"{base}streethazards_train.tar",
        "cd2d1a8649848afb85b5059d227d2090",
    )
    assert (test.url, test.md5) == (
        f"{base}streethazards_test.tar",
        "8c547c1346b00c21b2483887110bfea7",
    )
    assert train.images | test.images == {"train": 5125, "validation": 1031, "test": 1500}
    assert (train.size, train.name) == ((1280, 720), "streethazards_train.tar")


def test_one_command_fetches_unpacks_and_verifies(
    archives: list[Archive],
    server: Server,
    root: Path,
    make_tree: MakeTree,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--root", str(root)], archives) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-4:]] == [
        ["split", "images", "size", "mode", "classes", "damaged"],
        ["train", "3", "96x64", "RGBA", "0..12", "0"],
        ["validation", "2", "96x64", "RGBA", "0..12", "0"],
        ["test", "2", "96x64", "RGBA", "0..13", "0"],
    ]
    assert files_under(root) == files_under(make_tree())
    assert len(StreetHazards(root, "validation")) == 2
    assert main(["--root", str(root)], archives) == 0
    assert server.requests == [("train.tar", 0), ("test.tar", 0)]


def test_a_connection_cut_again_and_again_is_resumed(server: Server, root: Path) -> None:
    server.files["x.tar"] = os.urandom(2500)
    server.longest_answer = 1000
    root.mkdir()
    download(f"{server.url}/x.tar", root / "x.tar", attempts=1, wait_seconds=0)
    assert server.requests == [("x.tar", 0), ("x.tar", 1000), ("x.tar", 2000)]
    assert files_under(root) == {"x.tar": server.files["x.tar"]}


def test_second_run_resumes_where_the_first_stopped(server: Server, root: Path) -> None:
    server.files["x.tar"] = os.urandom(2500)
    root.mkdir()
    (root / "x.tar.part").write_bytes(server.files["x.tar"][:1234])
    server.longest_answer = 0
    message = (
        f"{server.url}/x.tar broke off at byte 1234 (the server closed the connection before "
        "byte 2500); check the network and run the same command again"
    )
    with pytest.raises(PansError, match=f"^{re.escape(message)}"):
        download(f"{server.url}/x.tar", root / "x.tar", attempts=2, wait_seconds=0)
    assert server.requests == [("x.tar", 1234)] * 2
    server.longest_answer = None
    download(f"{server.url}/x.tar", root / "x.tar")
    assert server.requests[-1] == ("x.tar", 1234)
    assert files_under(root) == {"x.tar": server.files["x.tar"]}


def test_a_server_without_ranges_sends_it_all_again(server: Server, root: Path) -> None:
    server.files["x.tar"] = os.urandom(2500)
    server.knows_ranges = False
    root.mkdir()
    (root / "x.tar.part").write_bytes(b"?" * 2400)
    download(f"{server.url}/x.tar", root / "x.tar")
    assert files_under(root) == {"x.tar": server.files["x.tar"]}


def test_without_a_content_length_the_download_ends_with_the_connection(
    server: Server, root: Path
) -> None:
    server.files["x.tar"] = os.urandom(2500)
    server.tells_length = False
    root.mkdir()
    download(f"{server.url}/x.tar", root / "x.tar", attempts=1)
    assert server.requests == [("x.tar", 0)]
    assert files_under(root) == {"x.tar": server.files["x.tar"]}


def test_a_complete_partial_download_is_used(server: Server, root: Path) -> None:
    server.files["x.tar"] = b"whole"
    root.mkdir()
    (root / "x.tar.part").write_bytes(b"whole")
    download(f"{server.url}/x.tar", root / "x.tar")
    assert files_under(root) == {"x.tar": b"whole"}


@pytest.mark.parametrize(
    ("status", "requests", "words"),
    [(404, 1, "(HTTP 404 Not Found); fetch x.tar by other means"), (503, 3, "HTTP Error 503")],
)
def test_a_refusal_is_final_and_a_failing_server_is_retried(
    server: Server, root: Path, status: int, requests: int, words: str
) -> None:
    server.files["x.tar"] = b""
    server.refusal = status
    root.mkdir()
    with pytest.raises(PansError, match=re.escape(words)):
        download(f"{server.url}/x.tar", root / "x.tar", attempts=3, wait_seconds=0)
    assert len(server.requests) == requests


def test_no_server_is_a_clear_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x.tar"
        root.mkdir()
        with pytest.raises(PansError, match=r"broke off at byte 0 .*refused"):
            download(url, root / "x.tar", attempts=2, wait_seconds=0)


def test_corrupt_bytes_are_fetched_again(
    archives: list[Archive],
    server: Server,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = server.files["train.tar"]
    server.files["train.tar"] = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    found = hashlib.md5(server.files["train.tar"]).hexdigest()
    assert main(["--root", str(root)], archives) == 2
    assert (
        f"error: {root}/StreetHazards/train.tar has md5 {found} instead of {archives[0].md5}; "
        "it was deleted" in capsys.readouterr().err
    )
    assert files_under(root) == {}
    server.requests.clear()
    assert main(["--root", str(root)], archives) == 2
    assert server.requests == [("train.tar", 0)]
    assert "if that does not help, fetch it from elsewhere" in capsys.readouterr().err
    server.files["train.tar"] = good
    assert main(["--root", str(root)], archives) == 0


def test_existing_archives_are_used_and_kept(
    archives: list[Archive], server: Server, root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "downloads"
    source.mkdir()
    for name, content in server.files.items():
        (source / name).write_bytes(content)
    assert main(["--root", str(root), "--from", str(source)], archives) == 0
    assert files_under(source) == server.files
    assert server.requests == []


def test_a_wrong_archive_of_the_users_is_not_deleted(
    archives: list[Archive], root: Path, tmp_path: Path
) -> None:
    with pytest.raises(PansError, match=r"train\.tar is missing; put it there"):
        prepare(root, tmp_path, archives)
    (tmp_path / "train.tar").write_bytes(b"precious")
    with pytest.raises(PansError, match=f"fetch it again from {archives[0].url}"):
        prepare(root, tmp_path, archives)
    assert (tmp_path / "train.tar").read_bytes() == b"precious"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("/tmp/out.png"),
        member("../out.png"),
        member("train/../../out.png"),
        member("train/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("train/link", tarfile.LNKTYPE, "train/first.png"),
        member("train/device", tarfile.CHRTYPE),
        member("train/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda bad: f"{bad.name}-{bad.type.decode()}",
)
def test_nothing_is_unpacked_from_an_unsafe_archive(
    tmp_path: Path, root: Path, bad: tarfile.TarInfo
) -> None:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(member("train/first.png"))
        tar.addfile(bad)
    root.mkdir()
    with pytest.raises(PansError, match=f"^{re.escape(f'{path} holds {bad.name!r}')}"):
        unpack(path, root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"<html>" * 200])
def test_an_invalid_tar_file_is_a_clear_line(tmp_path: Path, root: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    root.mkdir()
    with pytest.raises(PansError, match=r"x\.tar is not a valid tar file"):
        unpack(tmp_path / "x.tar", root)


def test_nothing_is_unpacked_from_a_truncated_archive(
    archives: list[Archive], server: Server, tmp_path: Path, root: Path
) -> None:
    (tmp_path / "train.tar").write_bytes(server.files["train.tar"][:-20_000])
    root.mkdir()
    with pytest.raises(PansError, match="is not a valid tar file"):
        unpack(tmp_path / "train.tar", root)
    assert list(root.iterdir()) == []


def test_an_archive_that_ends_early_is_kept_and_named(
    archives: list[Archive], server: Server, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(fileobj=io.BytesIO(server.files["train.tar"])) as tar:
        first_label = min(m.offset for m in tar.getmembers() if m.isfile() and "annot" in m.name)
    short = server.files["train.tar"][:first_label]
    server.files["train.tar"] = short
    archives[0] = dataclasses.replace(archives[0], md5=hashlib.md5(short).hexdigest())
    path = root / "StreetHazards/train.tar"
    for _ in range(2):
        assert main(["--root", str(root)], archives) == 2
        assert f"error: {path} lacks files that its lists name" in capsys.readouterr().err
    assert server.requests == [("train.tar", 0)]


def test_nothing_is_written_through_a_link_out_of_the_root(
    archives: list[Archive], root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "StreetHazards").mkdir(parents=True)
    (root / "StreetHazards/train").symlink_to(outside)
    with pytest.raises(PansError, match=r"outside the destination; choose a --root"):
        prepare(root, None, archives)
    assert list(outside.iterdir()) == []


def test_a_failing_disk_leaves_no_partial_file_under_its_name(
    archives: list[Archive],
    make_tree: MakeTree,
    server: Server,
    tmp_path: Path,
    root: Path,
    files_of_at_most: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in server.files.items():
        (tmp_path / name).write_bytes(content)
    expected = files_under(make_tree())
    with files_of_at_most(10_000):
        assert main(["--root", str(root), "--from", str(tmp_path)], archives) == 2
    first_image = f"{root}/StreetHazards/train/images/training/t1/0.png"
    assert f"error: {first_image} cannot be written (File too large)" in capsys.readouterr().err
    whole = {name: data for name, data in files_under(root).items() if not name.endswith(".part")}
    assert whole
    assert whole.items() < expected.items()


def test_unpacking_again_writes_only_what_is_missing(
    archives: list[Archive], server: Server, root: Path
) -> None:
    prepare(root, None, archives)
    expected = files_under(root)
    folder = root / "StreetHazards/train"
    (folder / "images/training/t1/0.png").unlink()
    (folder / "images/training/t1/1.png").write_bytes(b"cut")
    kept = folder / "images/training/t1/2.png"
    os.utime(kept, (1, 1))
    prepare(root, None, archives)
    assert server.requests == [("train.tar", 0), ("test.tar", 0), ("train.tar", 0)]
    assert files_under(root) == expected
    assert kept.stat().st_mtime == 1


def test_an_archive_that_a_killed_run_left_is_deleted(
    archives: list[Archive], server: Server, root: Path
) -> None:
    prepare(root, None, archives)
    expected = files_under(root)
    (root / "StreetHazards/train.tar").write_bytes(server.files["train.tar"])
    prepare(root, None, archives)
    assert files_under(root) == expected


def test_another_data_set_is_not_overwritten(
    archives: list[Archive], make_tree: MakeTree, server: Server
) -> None:
    root = make_tree(train=7)
    before = files_under(root)
    with pytest.raises(
        BadDataSet, match=r"train\.odgt lists 7 images where StreetHazards has 3; choose"
    ):
        prepare(root, None, archives)
    assert files_under(root) == before
    assert server.requests == []


def test_a_disk_that_will_be_full_is_reported_before_the_run(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(PansError, match=r"GB free and needs 1000000000\.0 GB more; make room"):
        require_space(tmp_path, 10**18)


def test_check_names_every_damaged_file(
    archives: list[Archive], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(root, None, archives)
    train = root / "StreetHazards/train"
    test = root / "StreetHazards/test"
    (train / "images/training/t1/1.png").write_bytes(b"")
    Image.new("L", SIZE, 14).save(train / "annotations/validation/t1/0.png")
    Image.new("L", SIZE, 15).save(test / "annotations/test/t1/0.png")
    Image.new("RGB", (10, 9)).save(test / "images/test/t1/1.png")
    Image.new("L", (10, 9)).save(test / "annotations/test/t1/1.png")
    capsys.readouterr()
    assert main(["--root", str(root), "--check"], archives) == 2
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].startswith(f"{train}/images/training/t1/1.png cannot be decoded")
    assert lines[1].startswith(f"{train}/annotations/validation/t1/0.png holds the value 14")
    assert lines[2] == f"the label of {test}/images/test/t1/0.png holds class 14; the last is 13"
    assert lines[3] == f"{test}/images/test/t1/1.png is 10x9, not 96x64"
    assert [line.split()[-1] for line in lines[4:]] == ["damaged", "1", "1", "2"]
    assert f"error: 4 samples under {root} are damaged, the first: {train}" in output.err


def test_check_names_an_image_of_another_mode(
    archives: list[Archive], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(root, None, archives)
    images = root / "StreetHazards/test/images/test/t1"
    Image.new("L", SIZE).save(images / "0.png")
    Image.new("RGB", SIZE).save(images / "1.png")
    capsys.readouterr()
    assert main(["--root", str(root), "--check"], archives) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{images}/0.png has mode L, not RGBA or RGB"
    assert lines[-1].split() == ["test", "2", "96x64", "RGB", "0..13", "1"]


def test_a_damaged_list_is_named_with_the_remedy(
    archives: list[Archive], server: Server, root: Path
) -> None:
    prepare(root, None, archives)
    expected = files_under(root)
    path = root / "StreetHazards/test/test.odgt"
    path.write_text("[{")
    with pytest.raises(BadDataSet, match=rf"^{re.escape(str(path))} .*; or move it away and run"):
        prepare(root, None, archives)
    path.unlink()
    prepare(root, None, archives)
    assert server.requests[2:] == [("test.tar", 0)]
    assert files_under(root) == expected


def test_check_never_fetches(archives: list[Archive], server: Server, root: Path) -> None:
    assert main(["--root", str(root), "--check"], archives) == 2
    assert server.requests == []


def test_command_line_of_the_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dataset.prepare", "--root", str(tmp_path), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/StreetHazards/train/train.odgt is missing")
    assert done.stderr.count("\n") == 1


def test_a_download_that_cannot_be_written_is_not_retried(
    server: Server,
    root: Path,
    files_of_at_most: Callable[[int], AbstractContextManager[None]],
) -> None:
    server.files["x.tar"] = os.urandom(12_345)
    root.mkdir()
    message = f"{root}/x.tar.part cannot be written (File too large); make room"
    refused = pytest.raises(PansError, match=f"^{re.escape(message)}")
    with files_of_at_most(10_000), refused:
        download(f"{server.url}/x.tar", root / "x.tar")
    assert server.requests == [("x.tar", 0)]


def test_a_file_in_place_of_the_root_is_one_line(
    archives: list[Archive], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    assert main(["--root", str(blocked)], archives) == 2
    assert capsys.readouterr().err.startswith(
        f"error: {blocked}/StreetHazards cannot be written (Not a directory); make room or choose"
    )
