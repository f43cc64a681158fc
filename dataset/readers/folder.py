"""Any images with label maps, in a folder of the user's own.

ROOT/classes.txt                  a line a class, in the order of the index: NAME R G B
ROOT/classes.json                 or this: {"NAME": [R, G, B], ...}
ROOT/images/SPLIT/.../NAME.jpg    .jpeg, .png or .webp; SPLIT is train, validation or test
ROOT/labels/SPLIT/.../NAME.png    8-bit grey: class index, 255 = ignored; in the test split
                                  also anomalies: the number of classes, or any value up to 254
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dataset.base import DatasetNotFound, SampleFiles, SegmentationDataset
from dataset.description import Colour, DatasetInfo, Split
from dataset.pictures import BadSample

CLASS_FILES = ("classes.txt", "classes.json")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MOST_CLASSES = 254


class Folder(SegmentationDataset):
    """Images and label maps of the user's own, as the module's description has it."""

    @classmethod
    def describe(cls, root: Path) -> DatasetInfo:
        colours = read_classes(root)
        return DatasetInfo(
            name="folder",
            class_colours=colours,
            anomaly_index=len(colours),
            index_of={value: value for value in range(256)},
            label_meaning=f"class index, 255 = ignored, {len(colours)}..254 = anomalies of the "
            "test split",
            splits=tuple(split for split in SPLITS if (root / "images" / split).is_dir()),
            remedy="each image needs a label map of its relative name, see docs/data.md",
        )

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        source = root / "images" / split
        images = [path.relative_to(root) for path in _files_below(source)]
        images = sorted(path for path in images if path.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DatasetNotFound(
                f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}); put some there"
            )
        pairs = [
            (path.as_posix(), Path("labels", *path.parts[1:]).with_suffix(".png").as_posix())
            for path in images
        ]
        return SampleFiles(source, root, pairs)


def _files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links to folders too, each folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        yield from (Path(parent, name) for name in files)


def read_classes(root: Path) -> dict[str, Colour]:
    """Read classes.txt or classes.json: class names and their colours, by index.

    Raises:
        DatasetNotFound: there is neither.
        BadSample: both are there, or what is there is not as the module's description has it.
    """
    paths = [root / name for name in CLASS_FILES if (root / name).is_file()]
    if not paths:
        raise DatasetNotFound(
            f"{root / CLASS_FILES[0]} is missing, and so is {CLASS_FILES[1]}; write one, a line "
            "'NAME R G B' a class, or name the folder of the data with --data_root"
        )
    if len(paths) == 2:
        raise BadSample(f"{paths[0]} and {paths[1]} are both there; delete one")
    path = paths[0]
    rows = _json_rows(path) if path.suffix == ".json" else _text_rows(path)
    colours: dict[str, Colour] = {}
    for number, (name, colour) in enumerate(rows, start=1):
        if not name or name in colours or not _is_colour(colour):
            raise BadSample(
                f"{path}: class {number} must be a new name and three whole numbers of 0..255, "
                f"got {name!r}, {colour!r}; mend it"
            )
        colours[name] = colour
    if not 1 <= len(colours) <= MOST_CLASSES:
        raise BadSample(f"{path} has {len(colours)} classes; expected 1 to {MOST_CLASSES}")
    return colours


def _is_colour(colour: tuple[object, ...]) -> bool:
    return len(colour) == 3 and all(type(part) is int and 0 <= part <= 255 for part in colour)


def _text_rows(path: Path) -> list[tuple[str, tuple]]:
    lines = [line.split() for line in _read_text(path).splitlines() if line.strip()]
    return [
        (
            " ".join(words[:-3]),
            tuple(int(word) if word.isdecimal() else word for word in words[-3:]),
        )
        for words in lines
    ]


def _json_rows(path: Path) -> list[tuple[str, tuple]]:
    try:
        # Pairs, so that a name that comes twice is noticed.
        rows = json.loads(_read_text(path), object_pairs_hook=list)
        return [(name, tuple(colour)) for name, colour in rows]
    except (ValueError, TypeError, RecursionError) as error:
        raise BadSample(
            f'{path} is no JSON object of the form {{"NAME": [R, G, B]}} ({error}); mend it'
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadSample(
            f"{path} cannot be read ({error}); expected a text file in UTF-8"
        ) from error
