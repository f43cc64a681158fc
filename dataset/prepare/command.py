"""The command line of `python -m dataset.prepare`, and its steps in order."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from dataset.base import DatasetNotFound
from dataset.bdd_anomaly import write_lists
from dataset.prepare.archives import PUBLISHED, Archive
from dataset.prepare.check import is_complete, verify
from dataset.prepare.copies import write_copies
from dataset.prepare.disk import free_space, writing
from dataset.prepare.download import download, size_of
from dataset.prepare.unpack import unpack
from dataset.readers.bdd_anomaly import LISTS
from dataset.registry import DATASETS, open_dataset
from utils.errors import PansError, exit_code


def prepare(root: Path, source: Path | None, archives: Sequence[Archive]) -> None:
    """Fetch and unpack data sets under `root`, as far as they are not there yet.

    Args:
        source: folder of archives fetched before; None downloads them, and deletes each one
            after unpacking.

    Raises:
        PansError: each names its file.
    """
    if source is None:
        tell_sizes(root, [archive for archive in archives if not is_complete(root, archive)])
    for archive in archives:
        home = root / archive.folder
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
        path = (source or home) / archive.name
        if is_complete(root, archive):
            print(f"{archive.name}: unpacked already")
        else:
            if source is None and not path.exists():
                download(archive.url, path)
            check_md5(path, archive, keep=source is not None)
            unpack(path, home / archive.into)
            if not is_complete(root, archive):
                raise PansError(f"{path} lacks files that its lists name; find it whole elsewhere")
        if source is None:
            path.unlink(missing_ok=True)


def tell_sizes(root: Path, archives: Sequence[Archive]) -> None:
    """Print the download size and the disk space needed, before anything is fetched.

    Raises:
        PansError: it does not fit.
    """
    wanted, fullest, unknown = 0, 0, False
    for archive in archives:
        path = root / archive.folder / archive.name
        if path.exists():
            continue
        size = size_of(archive.url) or (archive.megabytes or 0) * 10**6
        unknown |= not size
        part = path.with_name(path.name + ".part")
        rest = max(size - (part.stat().st_size if part.exists() else 0), 0)
        print(f"{archive.name}: {_megabytes(rest) if size else 'of unknown size'} to download")
        # Images take as much space unpacked, and each archive is deleted after unpacking.
        fullest = max(fullest, wanted + rest + size)
        wanted += size
    free = free_space(root)
    if not fullest:
        return
    most = f"{'at least ' if unknown else ''}{_megabytes(fullest)}"
    if fullest > free:
        raise PansError(
            f"{root} has {_megabytes(free)} free, and {most} are needed to download and unpack; "
            "make room or choose another --root"
        )
    print(f"{most} needed to download and unpack, {_megabytes(free)} free in {root}")


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def check_md5(path: Path, archive: Archive, *, keep: bool) -> None:
    """Compare an archive's md5 with the published one, and delete a wrong file unless `keep`.

    Raises:
        PansError: the file is missing or differs.
    """
    if not path.is_file():
        raise PansError(f"{path} is missing; put it there or leave --from out to download it")
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
            "it was deleted; run the same command to download it again, and if that does not "
            "help, fetch it from elsewhere and use --from"
        )
    raise PansError(f"{path} has md5 {found} instead of {archive.md5}; {remedy}")


def prepare_by_hand(name: str, root: Path) -> None:
    """What is left to do for a data set that no public address spreads: its lists.

    Raises:
        PansError: its files are missing.
    """
    if not name.startswith("bdd_anomaly"):
        return
    bases = (root / "bdd100k", root)
    if all(any((base / LISTS[split][0]).exists() for base in bases) for split in LISTS):
        return
    try:
        write_lists(root)
    except DatasetNotFound as error:
        raise PansError(
            f"BDD100K requires registration at https://bdd-data.berkeley.edu: {error}"
        ) from error


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dataset.prepare",
        description="Fetch, unpack and check data sets; the same command resumes after a failure.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"data sets, streethazards if none is named: {', '.join(DATASETS)}",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        help="folder of all data, or a folder of your own (default: data)",
    )
    parser.add_argument(
        "--decoded",
        action="store_true",
        help="also write decoded copies of the training images, hidden files beside them: a tenth "
        "of the time to read, 80 %% more disk",
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take the archives from this folder instead of downloading them",
    )
    task.add_argument("--check", action="store_true", help="only check what is there")
    found = parser.parse_args(arguments)
    found.names = list(dict.fromkeys(found.names)) or ["streethazards"]
    for name in found.names:
        if name not in DATASETS:
            parser.error(f"there is no data set {name!r}; known: {', '.join(DATASETS)}")
    return found


def main(arguments: Sequence[str] | None = None, archives: Sequence[Archive] = PUBLISHED) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(arguments)
    names = options.names

    def run() -> None:
        if not options.check:
            asked = [archive for archive in archives if archive.dataset in names]
            prepare(options.root, options.source, asked)
            for name in names:
                prepare_by_hand(name, options.root)
        print(verify(options.root, archives, names))
        for name in names if options.decoded else ():
            print(write_copies(open_dataset(name, options.root, "train")))

    try:
        return exit_code(run)
    except KeyboardInterrupt:
        print("stopped; the same command resumes from here", file=sys.stderr)
        return 130
