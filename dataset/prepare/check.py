"""Read every file of a data set and compare it with what is published."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dataset.base import DatasetNotFound, SegmentationDataset
from dataset.description import IGNORE_INDEX, NORMAL_INDEX, Split
from dataset.loaders import in_workers
from dataset.prepare.archives import BDD_ANOMALY, Archive, Published
from dataset.registry import describe, open_dataset
from utils.errors import PansError
from utils.reading import Unreadable

# StreetHazards is published with an alpha channel, which copies may lack.
IMAGE_MODES = {"streethazards": ("RGBA", "RGB")}
# Their lists give the number of images before all of them are on disk.
LISTED = ("streethazards", "road_anomaly")
HEADER = ("split", "images", "size", "mode", "classes", "damaged")


class BadDataSet(PansError):
    """The files on disk differ from the published data set."""


def published(name: str, root: Path, archives: Sequence[Archive]) -> Published:
    """The published properties of a data set; for a folder of the user's own, its splits."""
    own = [archive for archive in archives if archive.dataset == name]
    if own:
        images = {split: count for archive in own for split, count in archive.images.items()}
        return Published(images, own[-1].size)
    if name.startswith("bdd_anomaly"):
        return BDD_ANOMALY
    return Published(dict.fromkeys(describe(name, root).splits), None)


def open_split(name: str, root: Path, split: Split, expected: int | None) -> SegmentationDataset:
    """Open a split and compare the number of listed images with the published one.

    Raises:
        BadDataSet: they differ, or the list cannot be read.
        DatasetNotFound: there is no list.
    """
    try:
        pictures = open_dataset(name, root, split)
    except Unreadable as error:
        raise BadDataSet(f"{error}; or move it away and run the command without --check") from error
    if name in LISTED and expected is not None and len(pictures) != expected:
        raise BadDataSet(
            f"{pictures.source} lists {len(pictures)} images where {_title(name)} has "
            f"{expected}; choose another --root"
        )
    return pictures


def _title(name: str) -> str:
    return {"streethazards": "StreetHazards"}.get(name, name)


class SampleCheck(NamedTuple):
    """A sample's problem ("" if none), its image's size and mode, and its label's indices."""

    problem: str
    size: str = ""
    image_mode: str = ""
    indices: tuple[int, ...] = ()


def _check_sample(
    pictures: SegmentationDataset, expected: tuple[int, int] | None, index: int
) -> SampleCheck:
    """Read sample `index` in full; `expected`: the published size."""
    path = pictures.folder / pictures.names[index]
    try:
        image, label = pictures[index]
    except Unreadable as error:
        return SampleCheck(str(error))
    with Image.open(path) as file:  # the data set converts every mode to RGB
        mode = file.mode
    counts = label.histogram()[:IGNORE_INDEX]
    indices = tuple(index for index, count in enumerate(counts) if count)
    info, problem = pictures.info, ""
    modes = IMAGE_MODES.get(info.name, (mode,))
    if expected is not None and image.size != expected:
        problem = f"{path} is {_by(image.size)}, not {_by(expected)}"
    elif mode not in modes:
        problem = f"{path} has mode {mode}, not {' or '.join(modes)}"
    elif info.name == "streethazards" and indices and indices[-1] > info.anomaly_index:
        last = info.anomaly_index
        problem = f"the label of {path} holds class {indices[-1]}; the last is {last}"
    return SampleCheck(problem, _by(image.size), mode, indices)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def verify(root: Path, archives: Sequence[Archive], names: Sequence[str]) -> str:
    """Read every file of the named data sets and compare it with what is published.

    Returns:
        A table with one line per split.

    Raises:
        BadDataSet: a wrong number of images, or damaged files, each of which was printed.
        DatasetNotFound: a list is missing.
    """
    found = Findings()
    for name in names:
        try:
            _verify_one(name, root, published(name, root, archives), found)
        except (BadDataSet, DatasetNotFound) as error:
            if len(names) == 1:
                raise
            found.wrong.append(str(error))
    table = _table(found.rows, with_names=len(names) > 1)
    if not found.problems and not found.wrong:
        return table
    print(*found.problems, table, sep="\n")
    again = f"run 'python -m dataset.prepare {' '.join(names)} --root {root}' again"
    if not {archive.dataset for archive in archives} >= set(names):
        again = "check again"  # there is no archive to fetch again
    words = [*found.wrong, again]
    if found.problems:
        words.insert(
            0,
            f"{len(found.problems)} samples under {root} are damaged, the first: "
            f"{found.problems[0]}; move the named files away",
        )
    raise BadDataSet("; ".join(words))


@dataclass
class Findings:
    """Rows of the table, problems of samples, and problems of whole splits."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def _verify_one(name: str, root: Path, known: Published, found: Findings) -> None:
    for split, expected in known.images.items():
        pictures = open_split(name, root, split, expected)
        read = partial(_check_sample, pictures, known.size)
        checks = list(in_workers(read, len(pictures), f"verifying {split}"))
        problems = [check.problem for check in checks if check.problem]
        found.problems += problems
        found.rows.append(
            (name, split, *_summary(checks, pictures, known.size), str(len(problems)))
        )
        if expected is not None and len(pictures) != expected:
            found.wrong.append(
                f"{pictures.source} has {len(pictures)} images, and {_title(name)} {expected}"
            )


def _table(rows: Sequence[tuple[str, ...]], *, with_names: bool) -> str:
    widths = ("26", "12", ">8", ">12", ">10", ">16", ">10")
    first = 0 if with_names else 1
    return "\n".join(
        "".join(
            format(cell, width) for cell, width in zip(row[first:], widths[first:], strict=True)
        )
        for row in (("data set", *HEADER), *rows)
    )


def _summary(
    checks: Sequence[SampleCheck], pictures: SegmentationDataset, size: tuple[int, int] | None
) -> tuple[str, str, str, str]:
    good = [check for check in checks if not check.problem]
    modes = sorted({check.image_mode for check in good})
    sizes = sorted({check.size for check in good}) if size is None else [_by(size)]
    shown = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
    indices = {index for check in checks for index in check.indices}
    return str(len(checks)), shown, "+".join(modes), _span(indices, pictures)


def _span(indices: set[int], pictures: SegmentationDataset) -> str:
    if not indices:
        return "none"
    if pictures.info.has_class_labels:
        return f"{min(indices)}..{max(indices)}"
    return "+".join("normal" if index == NORMAL_INDEX else "anomaly" for index in sorted(indices))


def is_complete(root: Path, archive: Archive) -> bool:
    """Whether all files of an archive are on disk.

    Raises:
        BadDataSet: another data set is there, or a list cannot be read.
    """
    if archive.holds is not None:
        pattern, count = archive.holds
        return len(list((root / archive.folder).glob(pattern))) >= count
    for split, count in archive.images.items():
        try:
            pictures = open_split(archive.dataset, root, split, count)
        except DatasetNotFound:
            return False
        except BadDataSet:
            if archive.dataset in LISTED:
                raise
            return False  # inconsistent files: some are missing
        names = pictures.names + pictures.label_names
        there = all((pictures.folder / name).is_file() for name in names)
        if not there or len(pictures) < count:
            return False
    return True
