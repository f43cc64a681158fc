"""Unpack tar and zip files safely: nothing outside the folder, no links, no partial files."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from dataset.prepare.disk import require_space, writing
from dataset.readers.odgt import leaves_folder
from utils.errors import PansError
from utils.reading import is_hidden

# The last is raised for a compression method that zipfile does not support.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class _Member(NamedTuple):
    """A file or folder of an archive; `is_safe` if it is not a link, a device or encrypted."""

    name: str
    size: int
    is_file: bool
    is_safe: bool
    open: Callable[[], IO[bytes]]


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar or zip file into `folder`, skipping what an earlier run has unpacked.

    Nothing is written if any member is a link, a device or outside `folder`. Hidden files and
    those of macOS are skipped. A single top folder with `folder`'s own name is merged into it.

    Raises:
        PansError: there is such a member, a link on disk leads out of `folder`, or the archive
            is truncated or damaged.
        PansError: the files do not fit.
    """
    kind = "zip" if path.suffix == ".zip" else "tar"
    try:
        with _opened(path, kind) as members:
            _check_members(path, members)
            files = _files_in(members, folder)
            missing = {
                target: member
                for target, member in files.items()
                if not _is_there(folder / target, member.size)
            }
            require_space(folder, sum(member.size for member in missing.values()))
            for target, member in tqdm(missing.items(), desc=f"unpacking {path.name}", unit="file"):
                _write(path, member, folder, folder / target)
    except _DAMAGED as error:
        raise PansError(f"{path} is not a valid {kind} file ({error}); fetch it again") from error


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[list[_Member]]:
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            yield [_zip_member(archive, info) for info in archive.infolist()]
    else:
        with tarfile.open(path, "r:") as archive:
            yield [_tar_member(archive, info) for info in archive.getmembers()]


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    def opened() -> IO[bytes]:
        file = archive.extractfile(info)
        assert file is not None  # only files are opened
        return file

    return _Member(info.name, info.size, info.isfile(), info.isfile() or info.isdir(), opened)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if it was not created on Unix
    encrypted = bool(info.flag_bits & 1)
    is_safe = kind in (0, stat.S_IFREG, stat.S_IFDIR) and not encrypted
    return _Member(
        info.filename, info.file_size, not info.is_dir(), is_safe, lambda: archive.open(info)
    )


def _check_members(path: Path, members: Sequence[_Member]) -> None:
    for member in members:
        # Stricter than tarfile's own filter, which would drop a leading slash and allow some links.
        if leaves_folder(member.name) or "\\" in member.name or not member.is_safe:
            raise PansError(
                f"{path} holds {member.name!r}, which is a link, a device, encrypted or outside "
                "the folder; nothing was unpacked; fetch the published archive"
            )


def _files_in(members: Sequence[_Member], folder: Path) -> dict[PurePosixPath, _Member]:
    """Members by destination, relative to `folder`."""
    files = {
        PurePosixPath(member.name): member
        for member in members
        if member.is_file and not is_hidden(Path(member.name))
    }
    if files and all(len(name.parts) > 1 and name.parts[0] == folder.name for name in files):
        return {name.relative_to(folder.name): member for name, member in files.items()}
    return files


def _is_there(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _write(path: Path, member: _Member, folder: Path, target: Path) -> None:
    if not target.resolve().is_relative_to(folder.resolve()):
        raise PansError(
            f"{path}: {member.name!r} would be written to {target.resolve()}, which is outside "
            "the destination; choose a --root without links in it"
        )
    # A partial file must not have the final name: the next run would skip it.
    part = target.with_name(target.name + ".part")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, part.open("wb") as file:
            shutil.copyfileobj(source, file)
        part.replace(target)
