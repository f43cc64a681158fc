"""dataset.prepare of the data sets other than StreetHazards, and of folders of one's own."""

import hashlib
import io
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dataset import bdd_anomaly, loaders
from dataset.prepare import check, command
from dataset.prepare.archives import BDD_ANOMALY, PUBLISHED, Archive, Published
from dataset.prepare.command import main
from dataset.prepare.unpack import unpack
from dataset.registry import open_dataset
from tests.dataset import trees
from tests.dataset.network import Server
from utils.errors import PansError

MakeTree = Callable[..., Path]
SIZE = (96, 64)


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting them takes longer than all that they would read."""
    monkeypatch.setattr(loaders, "WORKERS", 0)


def zip_of(folder: Path, top: str = "") -> bytes:
    """All files below a folder, under `top` in the archive, with what macOS adds to them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{top}{path.relative_to(folder)}")
        archive.writestr(f"__MACOSX/{top}._x.png", b"\0\5\x16\7")
        archive.writestr(f"{top}.DS_Store", b"\0")
    return buffer.getvalue()


@pytest.fixture
def archives(tmp_path: Path, server: Server) -> list[Archive]:
    """Every archive but StreetHazards', of small trees in their published layouts."""
    tree = tmp_path / "published"
    trees.write_fishyscapes(tree)
    trees.write_road_anomaly(tree)
    for track, suffix in (("dataset_AnomalyTrack", ".jpg"), ("dataset_ObstacleTrack", ".webp")):
        trees.write_track(tree, track, suffix)
    server.files = {
        "fishyscapes_lostandfound.zip": zip_of(tree / "fishyscapes_lostandfound"),
        "leftImg8bit.zip": zip_of(tree / "leftImg8bit", "leftImg8bit/"),
        "RoadAnomaly_jpg.zip": zip_of(tree / "RoadAnomaly_jpg", "RoadAnomaly_jpg/"),
        "dataset_AnomalyTrack.zip": zip_of(tree / "dataset_AnomalyTrack", "dataset_AnomalyTrack/"),
        "dataset_ObstacleTrack.zip": zip_of(
            tree / "dataset_ObstacleTrack", "dataset_ObstacleTrack/"
        ),
    }
    return [
        replace(
            archive,
            url=f"{server.url}/{archive.name}",
            md5=hashlib.md5(server.files[archive.name]).hexdigest(),
            images=dict.fromkeys(archive.images, 2),
            size=SIZE,
            holds=archive.holds and (archive.holds[0], 2),
        )
        for archive in PUBLISHED
        if archive.dataset != "streethazards"
    ]


NAMES = ["fishyscapes_lostandfound", "road_anomaly", "road_anomaly_21", "road_obstacle_21"]


def test_archives_are_those_of_pytorch_ood() -> None:
    md5_of = {archive.name: archive.md5 for archive in PUBLISHED}
    assert md5_of == {
        "streethazards_train.tar": "cd2d1a8649848afb85b5059d227d2090",
        "streethazards_test.tar": "8c547c1346b00c21b2483887110bfea7",
        "fishyscapes_lostandfound.zip": "0d3bf7c0ec38bd50b84f3d8aaa4b2e26",
        "leftImg8bit.zip": "08eaa79ce05126f6bd22a3ca563746d0",
        "RoadAnomaly_jpg.zip": "87a0908e5c72827824693913cf2e4fb0",
        "dataset_AnomalyTrack.zip": "231bf79ed58924bcd33d9cbe22e61076",
        "dataset_ObstacleTrack.zip": "895fb36d18765482cc291f69e63d6da6",
    }


def test_addresses_and_sums_are_those_of_pytorch_ood() -> None:
    """Another loader of the same sets, written apart from this one."""
    from pytorch_ood.dataset import img

    smiyc = img.SegmentMeIfYouCan
    theirs = {
        (img.RoadAnomaly.url, img.RoadAnomaly.filename[1]),
        (img.LostAndFound.annotation_url[0], img.LostAndFound.annotation_url[2]),
        (img.LostAndFound.data_url[0], img.LostAndFound.data_url[2]),
        *((smiyc.url_list[name], smiyc.filename_list[name][1]) for name in smiyc.url_list),
        *(
            (img.StreetHazards.url_list[split], img.StreetHazards.filename_list[split][1])
            for split in img.StreetHazards.url_list
        ),
    }
    assert theirs == {(archive.url, archive.md5) for archive in PUBLISHED}


def test_several_sets_are_fetched_unpacked_and_checked_by_one_command(
    archives: list[Archive],
    server: Server,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*NAMES, "--root", str(root)], archives) == 0
    lines = capsys.readouterr().out.splitlines()
    total = sum(map(len, server.files.values()))
    most = total + len(server.files["dataset_ObstacleTrack.zip"])
    assert "leftImg8bit.zip: 0.0 MB to download" in lines
    assert any(
        line.startswith(f"{most / 1e6:.1f} MB needed to download and unpack") for line in lines
    )
    assert [line.split() for line in lines[-5:]] == [
        ["data", "set", "split", "images", "size", "mode", "classes", "damaged"],
        [NAMES[0], "test", "2", "96x64", "RGB", "normal+anomaly", "0"],
        [NAMES[1], "test", "2", "96x64", "RGB", "normal+anomaly", "0"],
        [NAMES[2], "test", "2", "96x64", "RGB", "normal+anomaly", "0"],
        [NAMES[3], "test", "2", "96x64", "RGB", "normal+anomaly", "0"],
    ]
    assert sorted(path.name for path in root.iterdir()) == [
        "Fishyscapes",
        "RoadAnomaly_jpg",
        "dataset_AnomalyTrack",
        "dataset_ObstacleTrack",
    ]
    assert not [path for path in root.rglob("*") if path.name.startswith((".", "__MACOSX"))]
    assert not list(root.rglob("*.zip"))
    assert [len(open_dataset(name, root, "test")) for name in NAMES] == [2, 2, 2, 2]
    requests = list(server.requests)
    assert len(requests) == 5
    assert main([*NAMES, "--root", str(root)], archives) == 0
    assert server.requests == requests


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_fetched_again_and_others_stay(
    archives: list[Archive], server: Server, root: Path, name: str
) -> None:
    main([name, "--root", str(root)], archives)
    pictures = open_dataset(name, root, "test")
    lost, kept = (pictures.folder / image for image in pictures.names)
    lost.unlink()
    before = kept.stat().st_mtime_ns
    server.requests.clear()
    assert main([name, "--root", str(root)], archives) == 0
    assert len(server.requests) == 1  # of Fishyscapes that of the images alone
    assert lost.exists()
    assert kept.stat().st_mtime_ns == before


def test_a_download_that_does_not_fit_is_not_started(
    archives: list[Archive],
    server: Server,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = len(server.files["RoadAnomaly_jpg.zip"])
    monkeypatch.setattr(command, "free_space", lambda folder: 2 * size - 1)
    assert main(["road_anomaly", "--root", str(root)], archives) == 2
    assert server.requests == []
    assert capsys.readouterr().err == (
        f"error: {root} has {(2 * size - 1) / 1e6:.1f} MB free, and {2 * size / 1e6:.1f} MB are "
        "needed to download and unpack; make room or choose another --root\n"
    )
    monkeypatch.setattr(command, "free_space", lambda folder: 2 * size)
    assert main(["road_anomaly", "--root", str(root)], archives) == 0


@pytest.mark.parametrize("megabytes", [None, 3])
def test_an_unknown_download_size_is_reported(
    archives: list[Archive],
    server: Server,
    root: Path,
    megabytes: int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.tells_length = False
    archives = [replace(archive, megabytes=megabytes) for archive in archives]
    assert main(["road_anomaly", "--root", str(root)], archives) == 0
    size = "3.0 MB" if megabytes else "of unknown size"
    assert f"RoadAnomaly_jpg.zip: {size} to download" in capsys.readouterr().out


def test_existing_images_are_not_fetched(
    archives: list[Archive], server: Server, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "published/leftImg8bit", root / "lostandfound/leftImg8bit")
    shutil.move(root / "lostandfound", root / "Fishyscapes/lostandfound")
    assert main(["fishyscapes_lostandfound", "--root", str(root)], archives) == 0
    assert [name for name, _ in server.requests] == ["fishyscapes_lostandfound.zip"]


def test_an_incomplete_set_of_frames_is_not_extended(
    archives: list[Archive],
    server: Server,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trees.write_road_anomaly(root)
    archives = [replace(archive, images={"test": 60}) for archive in archives]
    assert main(["road_anomaly", "--root", str(root)], archives) == 2
    assert "lists 2 images where road_anomaly has 60; choose another" in capsys.readouterr().err
    assert server.requests == []


def test_archives_fetched_before_are_taken_and_kept(
    archives: list[Archive], server: Server, root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "downloads"
    source.mkdir()
    for name, content in server.files.items():
        (source / name).write_bytes(content)
    assert main([*NAMES, "--root", str(root), "--from", str(source)], archives) == 0
    assert {path.name for path in source.iterdir()} == set(server.files)
    assert server.requests == []


def unsafe(name: str, attributes: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = attributes << 16
    return info


@pytest.mark.parametrize(
    "bad",
    [
        unsafe("/tmp/out.png"),
        unsafe("../out.png"),
        unsafe("a/../../out.png"),
        unsafe("a\\..\\..\\out.png"),
        unsafe("a/link", 0o120777),
        unsafe("a/device", 0o020644),
    ],
    ids=lambda bad: bad.filename,
)
def test_nothing_is_unpacked_from_an_unsafe_zip_file(
    tmp_path: Path, root: Path, bad: zipfile.ZipInfo
) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/first.png", b"1")
        archive.writestr(bad, b"2")
    root.mkdir()
    with pytest.raises(PansError, match=f"^{re.escape(f'{path} holds {bad.filename!r}')}"):
        unpack(path, root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (8, 1, "which is a link, a device, encrypted or outside the"),
        (10, 99, "not a valid zip file"),
    ],
    ids=["encrypted", "compression"],
)
def test_a_zip_file_of_another_kind_is_a_clear_line(
    tmp_path: Path, root: Path, place: int, value: int, words: str
) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/first.png", b"1")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + place] = value  # in the directory at the file's end
    path.write_bytes(content)
    root.mkdir()
    with pytest.raises(PansError, match=words):
        unpack(path, root)
    assert not (root / "a/first.png").exists()


def test_a_damaged_zip_file_is_a_clear_line(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "x.zip"
    root.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/first.png", b"content" * 100)
    good = path.read_bytes()
    for content in (b"", good[:-30], good.replace(b"contentcontent", b"contentkontent", 1)):
        path.write_bytes(content)
        with pytest.raises(PansError, match=r"x\.zip is not a valid zip file"):
            unpack(path, root)
        assert not (root / "a/first.png").exists()


def test_a_zip_file_is_not_unpacked_through_a_link_out_of_the_root(
    tmp_path: Path, root: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (root / "a").symlink_to(outside)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/first.png", b"1")
    with pytest.raises(PansError, match="outside the destination; choose a --root"):
        unpack(tmp_path / "x.zip", root)
    assert list(outside.iterdir()) == []


def test_check_names_damaged_files_of_every_data_set(
    archives: list[Archive], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*NAMES, "--root", str(root)], archives)
    masks = root / "dataset_AnomalyTrack/labels_masks"
    trees.save(masks / "validation0001_labels_semantic.png", trees.label((0, 7)))
    (root / "RoadAnomaly_jpg/frames/rock02_road.jpg").write_bytes(b"")
    capsys.readouterr()
    assert main([*NAMES, "--root", str(root), "--check"], archives) == 2
    output = capsys.readouterr()
    assert output.out.splitlines()[0].startswith(f"{root}/RoadAnomaly_jpg/frames/rock02_road.jpg")
    assert f"{masks}/validation0001_labels_semantic.png holds the value 7" in output.out
    assert "2 samples under" in output.err
    assert "delete" not in output.err


def test_check_reports_how_many_images_are_missing(
    archives: list[Archive], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_track(root, "dataset_AnomalyTrack", ".jpg")
    archives = [replace(archive, images={"test": 10}) for archive in archives]
    assert main(["road_anomaly_21", "--root", str(root), "--check"], archives) == 2
    assert (
        f"error: {root}/dataset_AnomalyTrack/labels_masks has 2 images, and road_anomaly_21 10; run"
        in (capsys.readouterr().err)
    )


def test_check_of_several_sets_continues_after_a_missing_one(
    archives: list[Archive], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_track(root, "dataset_AnomalyTrack", ".jpg")
    names = ["road_anomaly", "road_anomaly_21"]
    assert main([*names, "--root", str(root), "--check"], archives) == 2
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].split()[:3] == ["road_anomaly_21", "test", "2"]
    assert "RoadAnomaly_jpg/frame_list.json is missing" in output.err
    assert output.err.splitlines()[-1].endswith(f"--root {root}' again")


def test_a_custom_folder_is_checked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_folder(root, train=4, validation=1, test=2)
    trees.save(root / "images/test/town/1.png", trees.noise(1, (32, 24)))
    trees.save(root / "labels/test/town/1.png", trees.label((0, 3), (32, 24)))
    (root / "images/test/town/1.jpg").unlink()
    assert main(["folder", "--root", str(root), "--check"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["split", "images", "size", "mode", "classes", "damaged"],
        ["train", "4", "96x64", "RGB", "0..2", "0"],
        ["validation", "1", "96x64", "RGB", "0..2", "0"],
        ["test", "2", "2", "sizes", "RGB", "0..3", "0"],
    ]
    (root / "labels/train/town/2.png").unlink()
    assert main(["folder", "--root", str(root), "--check"]) == 2
    assert (
        f"error: 1 samples under {root} are damaged, the first: {root}/labels/train/town/2.png is "
        "missing" in capsys.readouterr().err
    )


def test_bdd_anomaly_is_listed_and_checked_in_a_prepared_folder(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["bdd_anomaly", "--root", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: BDD100K requires registration at https://bdd-data.berkeley")
    assert error.count("\n") == 1
    trees.write_bdd100k(root)
    known = Published({"train": 6280, "validation": 910, "test": 810}, SIZE)
    assert replace(known, size=(1280, 720)) == BDD_ANOMALY
    monkeypatch.setattr(check, "BDD_ANOMALY", known)
    assert main(["bdd_anomaly", "--root", str(root)]) == 2
    assert "bdd100k/train.odgt has 2 images, and bdd_anomaly 6280; " in capsys.readouterr().err
    known = Published({"train": 2, "validation": 2, "test": 3}, SIZE)
    monkeypatch.setattr(check, "BDD_ANOMALY", known)
    for name, classes in (("bdd_anomaly", "0..19"), ("bdd_anomaly_16", "0..18")):
        assert main([name, "--root", str(root), "--check"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].split() == ["test", "3", "96x64", "RGB", classes, "0"]
    assert bdd_anomaly.LISTS["test"][0] == "anom.odgt"


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["cityscapes"])
    assert left.value.code == 2
    assert "there is no data set 'cityscapes'; known: streethazards, " in capsys.readouterr().err
