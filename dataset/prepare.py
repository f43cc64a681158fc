"""Fetch, unpack and verify StreetHazards: `python -m dataset.prepare --root data`.

Every step leaves what it has done on disk, so that the same command goes on after a failure.
"""

import argparse
import hashlib
import http.client
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset.base import DatasetNotFound
from dataset.description import IGNORE_INDEX, Split
from dataset.loaders import worker_count
from dataset.pictures import BadSample
from dataset.readers.odgt import leaves_folder
from dataset.readers.streethazards import STREETHAZARDS, StreetHazards
from utils.errors import PansError, exit_code

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60.0
CHECKING_WORKERS = 16
IMAGE_MODES = ("RGBA", "RGB")  # published with an alpha that is dropped; it may be gone already


@dataclass(frozen=True)
class Archive:
    """A published tar file.

    Attributes:
        images: how many of them each split in it has.
        size: (width, height) of every image.
    """

    url: str
    md5: str
    images: dict[Split, int]
    size: tuple[int, int] = (1280, 720)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


ARCHIVES = (
    Archive(
        "https://people.eecs.berkeley.edu/~hendrycks/streethazards_train.tar",
        md5="cd2d1a8649848afb85b5059d227d2090",
        images={"train": 5125, "validation": 1031},
    ),
    Archive(
        "https://people.eecs.berkeley.edu/~hendrycks/streethazards_test.tar",
        md5="8c547c1346b00c21b2483887110bfea7",
        images={"test": 1500},
    ),
)


class ConnectionBroken(Exception):
    """The rest of a file did not arrive this time."""


class DownloadFailed(PansError):
    """An archive cannot be fetched."""


class BadArchive(PansError):
    """An archive is missing, is not the published one, or wants to write where it must not."""


class CannotWrite(PansError):
    """A file cannot be written, or has no room on the disk."""


class BadDataSet(PansError):
    """The files on disk are not StreetHazards as published."""


def prepare(root: Path, source: Path | None, archives: Sequence[Archive]) -> None:
    """Put StreetHazards under `root / "StreetHazards"`, doing only what is still missing.

    Args:
        source: folder of archives fetched before; None downloads them, and deletes each one
            once it is unpacked.

    Raises:
        DownloadFailed, BadArchive, CannotWrite, BadDataSet: each names its file.
    """
    folder = root / "StreetHazards"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        path = (source or folder) / archive.name
        if is_unpacked(root, archive):
            print(f"{archive.name}: unpacked already")
        else:
            if source is None and not path.exists():
                download(archive.url, path)
            check_md5(path, archive, keep=source is not None)
            unpack(path, folder)
            if not is_unpacked(root, archive):
                raise BadArchive(f"{path} lacks files that its lists name; find it whole elsewhere")
        if source is None:
            path.unlink(missing_ok=True)


def is_unpacked(root: Path, archive: Archive) -> bool:
    """Tell whether every file that the archive's lists name is on disk.

    Raises:
        BadDataSet: another data set lies there, or a list cannot be read.
    """
    for split in archive.images:
        try:
            pictures = open_split(root, split, archive)
        except DatasetNotFound:
            return False
        names = pictures.names + pictures.label_names
        if not all((pictures.folder / name).is_file() for name in names):
            return False
    return True


def open_split(root: Path, split: Split, archive: Archive) -> StreetHazards:
    """Open a split and compare the number of listed images with the published one.

    Raises:
        BadDataSet: they differ, or the list cannot be read.
        DatasetNotFound: there is no list.
    """
    try:
        pictures = StreetHazards(root, split)
    except BadSample as error:
        raise BadDataSet(f"{error}: delete it and run the command without --check") from error
    expected = archive.images[split]
    if len(pictures) != expected:
        raise BadDataSet(
            f"{pictures.source} lists {len(pictures)} images where StreetHazards has "
            f"{expected}; choose another --root, or delete the folder {pictures.folder}"
        )
    return pictures


def download(url: str, path: Path, *, attempts: int = 5, wait_seconds: float = 2.0) -> None:
    """Download a file, going on from `path` + ".part" where one is.

    Args:
        attempts: connections in a row that may bring nothing before it gives up.

    Raises:
        DownloadFailed: the server refuses, or the connection keeps breaking.
        CannotWrite: the file does not fit.
    """
    part = path.with_name(path.name + ".part")
    with writing(part):
        part.touch()
    failures = 0
    while True:
        size_before = part.stat().st_size
        try:
            _download_rest(url, part)
        except ConnectionBroken as error:
            size = part.stat().st_size
            failures = 0 if size > size_before else failures + 1
            if failures == attempts:
                raise DownloadFailed(
                    f"{url} broke off at byte {size} ({error}); check the network and run the "
                    "same command again to go on from there, or fetch it by other means and use "
                    "--from"
                ) from error
            print(f"{path.name}: broke off at byte {size} ({error}); trying again")
            time.sleep(wait_seconds)
        else:
            part.replace(path)
            return


def _download_rest(url: str, part: Path) -> None:
    start = part.stat().st_size
    # Whether the file has changed since is not asked: then it is not the published one anyway.
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            _append(response, part, start)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to fetch; the md5 tells whether it is right
        if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ConnectionBroken(str(error)) from error
        raise DownloadFailed(
            f"{url} cannot be fetched (HTTP {error.code} {error.reason}); fetch "
            f"{PurePosixPath(url).name} by other means and name its folder with --from"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionBroken(str(error) or type(error).__name__) from error


def _append(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        start = 0  # the server sends the whole file again
    # Not every server tells the length; then the end of the stream or the md5 does.
    total = None if response.length is None else start + response.length
    with (
        writing(part),
        part.open("r+b") as file,
        tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True) as bar,
    ):
        file.truncate(start)
        file.seek(start)
        require_space(part.parent, response.length or 0)
        for chunk in _chunks(response):
            file.write(chunk)
            bar.update(len(chunk))
    if response.length:
        raise ConnectionBroken(f"the server closed the connection before byte {total}")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionBroken(str(error) or type(error).__name__) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` in the errors of the disk.

    Raises:
        CannotWrite: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written ({error.strerror}); make room or choose another --root, "
            "and run the same command again to go on"
        ) from error


def require_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes fit on the disk of `folder`.

    Raises:
        CannotWrite: they do not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CannotWrite(
            f"{folder} has {free / 1e9:.1f} GB free and needs {needed / 1e9:.1f} GB more; make "
            "room or choose another --root"
        )


def check_md5(path: Path, archive: Archive, *, keep: bool) -> None:
    """Compare an archive's md5 with the published one, and delete a wrong file unless `keep`.

    Raises:
        BadArchive: the file is missing or differs.
    """
    if not path.is_file():
        raise BadArchive(f"{path} is missing; put it there or leave --from out to download it")
    print(f"{path}: checking the md5 sum")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found == archive.md5:
        return
    if keep:
        remedy = f"fetch it again from {archive.url}"
    else:
        path.unlink()
        remedy = (
            "it was deleted; run the same command again to fetch it anew, and if that does not "
            "help, fetch it from elsewhere and use --from"
        )
    raise BadArchive(f"{path} has md5 {found} instead of {archive.md5}; {remedy}")


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar file into `folder`, leaving alone what an earlier run has unpacked.

    Nothing is written if any member is a link, a device or would lie outside `folder`.

    Raises:
        BadArchive: such a member, a link on disk that leads out of `folder`, or not a whole tar
            file.
        CannotWrite: the files do not fit.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            for member in members:
                _check_member(path, member)
            missing = [
                member
                for member in members
                if member.isfile() and not _is_there(folder / member.name, member.size)
            ]
            require_space(folder, sum(member.size for member in missing))
            for member in tqdm(missing, desc=f"unpacking {path.name}", unit="file"):
                _write_member(tar, member, folder)
    except tarfile.FilterError as error:
        raise BadArchive(f"{path}: {error}; choose a --root without links in it") from error
    except tarfile.TarError as error:
        raise BadArchive(f"{path} is not a whole tar file ({error}); fetch it again") from error


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    # Stricter than tarfile's own filter, which would drop a leading slash and allow some links.
    if leaves_folder(member.name) or not (member.isfile() or member.isdir()):
        raise BadArchive(
            f"{path} holds {member.name!r}, which is a link, a device or outside the folder; "
            "nothing of it was unpacked; fetch the published archive"
        )


def _is_there(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    # A half-written file must not bear its name: the next run would take it as done.
    part = member.replace(name=f"{member.name}.part", deep=False)
    with writing(folder / member.name):
        tar.extract(part, folder, filter="data")
        (folder / part.name).replace(folder / member.name)


class SampleCheck(NamedTuple):
    """What is wrong with a sample ("" for nothing), its image's mode and its label's classes."""

    problem: str
    image_mode: str = ""
    classes: tuple[int, ...] = ()


class SampleChecks(Dataset[SampleCheck]):
    """Item i reads sample i in full."""

    def __init__(self, pictures: StreetHazards, size: tuple[int, int]) -> None:
        self.pictures = pictures
        self.size = size

    def __getitem__(self, index: int) -> SampleCheck:
        path = self.pictures.folder / self.pictures.names[index]
        try:
            image, label = self.pictures[index]
        except BadSample as error:
            return SampleCheck(str(error))
        with Image.open(path) as file:  # the data set turns every mode into RGB
            mode = file.mode
        classes = tuple(
            index for index, count in enumerate(label.histogram()[:IGNORE_INDEX]) if count
        )
        if image.size != self.size:
            return SampleCheck(f"{path} is {_by(image.size)}, not {_by(self.size)}")
        if mode not in IMAGE_MODES:
            return SampleCheck(f"{path} has mode {mode}, not {' or '.join(IMAGE_MODES)}")
        if classes and classes[-1] > STREETHAZARDS.anomaly_index:
            last = STREETHAZARDS.anomaly_index
            return SampleCheck(f"the label of {path} holds class {classes[-1]}; the last is {last}")
        return SampleCheck("", mode, classes)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def verify(root: Path, archives: Sequence[Archive]) -> str:
    """Read every file of the data set and compare with what is published.

    Returns:
        A table of a line a split.

    Raises:
        BadDataSet: a wrong number of images, or damaged files, each of which was printed.
        DatasetNotFound: a list is missing.
    """
    rows = [("split", "images", "size", "mode", "classes", "damaged")]
    problems: list[str] = []
    for archive in archives:
        for split in archive.images:
            checks = _check_samples(open_split(root, split, archive), archive.size)
            found = [check.problem for check in checks if check.problem]
            rows.append((split, *_summary(checks, archive.size), str(len(found))))
            problems += found
    table = "\n".join("{:<12}{:>8}{:>12}{:>10}{:>10}{:>10}".format(*row) for row in rows)
    if problems:
        print(*problems, table, sep="\n")
        raise BadDataSet(
            f"{len(problems)} samples under {root} are damaged, the first: {problems[0]}; delete "
            f"the named files and run 'python -m dataset.prepare --root {root}' again"
        )
    return table


def _summary(checks: Sequence[SampleCheck], size: tuple[int, int]) -> tuple[str, str, str, str]:
    modes = {check.image_mode for check in checks if not check.problem}
    classes = {index for check in checks for index in check.classes}
    span = f"{min(classes)}..{max(classes)}" if classes else "none"
    return str(len(checks)), _by(size), "+".join(sorted(modes)), span


def _check_samples(pictures: StreetHazards, size: tuple[int, int]) -> list[SampleCheck]:
    loader = DataLoader(
        SampleChecks(pictures, size),
        batch_size=None,
        sampler=range(len(pictures)),
        num_workers=worker_count(CHECKING_WORKERS),
    )
    return list(tqdm(loader, desc=f"verifying {pictures.split}", unit="image"))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dataset.prepare",
        description="Fetch, unpack and verify StreetHazards; run again, it goes on where it was.",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data"), help="folder of all data (default: data)"
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take the archives from this folder instead of downloading them",
    )
    task.add_argument("--check", action="store_true", help="only verify what is there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, archives: Sequence[Archive] = ARCHIVES) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(arguments)

    def run() -> None:
        if not options.check:
            prepare(options.root, options.source, archives)
        print(verify(options.root, archives))

    try:
        return exit_code(run)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
