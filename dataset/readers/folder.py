"""The user's own images and label maps in a folder.

ROOT/classes.txt                  one line per class, in index order: NAME R G B
                                  one line per further label value: ignore 11, anomaly 12
ROOT/classes.json                 or this: {"NAME": [R, G, B], ..., "ignore": 11, "anomaly": 12}
ROOT/images/SPLIT/.../NAME.jpg    .jpeg, .png or .webp; SPLIT is train, validation or test
ROOT/labels/SPLIT/.../NAME.png    8-bit grey: class index, 255 = ignored, and the values declared
                                  in the classes file; anomalies in the test split only. The
                                  first value above the classes needs no declaration if labels of
                                  the test split have it and those of training do not
"""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dataset.base import (
    FOUND_SUFFIXES,
    IMAGE_SUFFIXES,
    DatasetNotFound,
    SampleFiles,
    SegmentationDataset,
    evenly,
    two_of_a_name,
)
from dataset.description import IGNORE_INDEX, Colour, DatasetInfo, Split
from utils.reading import Unreadable, files_below, read_text

CLASS_FILES = ("classes.txt", "classes.json")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MOST_CLASSES = 254
IGNORE, ANOMALY = "ignore", "anomaly"
# Label maps inspected per split.
LOOKED_AT = 16


class Folder(SegmentationDataset):
    """The user's own images and label maps, in the layout above."""

    @classmethod
    def describe(cls, root: Path) -> DatasetInfo:
        classes = read_class_file(root)
        first = len(classes.colours)
        note = ""
        if first not in classes.words and _test_alone_holds(root, first):
            classes.words[first] = ANOMALY
            note = (
                f"labels of the test split contain {first}, the first value above the classes, and "
                f"those of training do not: it is the anomaly; to ignore it, write "
                f"'{IGNORE} {first}' into {classes.path}"
            )
        return DatasetInfo(
            name="folder",
            class_colours=classes.colours,
            anomaly_index=len(classes.colours),
            index_of=classes.index_of,
            label_meaning=f"class index, 255 = ignored; {classes.path.name} may declare further "
            f"values, one line '{IGNORE} N' or '{ANOMALY} N' each",
            splits=tuple(split for split in SPLITS if (root / "images" / split).is_dir()),
            remedy="each image needs a label map of the same relative name, see docs/data.md",
            note=note,
        )

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        source = root / "images" / split
        images = [path.relative_to(source) for path in files_below(source, FOUND_SUFFIXES)]
        if not images:
            raise DatasetNotFound(
                f"{source} contains no image ({', '.join(IMAGE_SUFFIXES)}); put some there"
            )
        by_stem: dict[Path, Path] = {}
        for path in images:
            other = by_stem.setdefault(path.with_suffix(""), path)
            if other != path:
                raise two_of_a_name(source / other, source / path)
        labels = [_label_of(root / "labels" / split, path) for path in images]
        _refuse_painted(evenly(labels, LOOKED_AT), self.info)
        return SampleFiles(
            source,
            root,
            [
                (f"images/{split}/{image.as_posix()}", label.relative_to(root).as_posix())
                for image, label in zip(images, labels, strict=True)
            ],
        )


def _label_of(folder: Path, image: Path) -> Path:
    """The label map of an image, both relative to the folders of their split."""
    path = folder / image.with_suffix(".png")
    capital = path.with_suffix(".PNG")
    return capital if capital.exists() and not path.exists() else path


def _test_alone_holds(root: Path, value: int) -> bool:
    """Whether a value occurs in labels of the test split, but not of training and validation.

    A void label, such as raw CamVid's 11, occurs in all of them. Some evenly spaced files of each
    split are inspected; without training labels the answer is no.
    """

    def holds(split: Split) -> bool | None:
        paths = [path for path in files_below(root / "labels" / split) if path.suffix == ".png"]
        counts = []
        for path in evenly(sorted(paths), LOOKED_AT):
            # What is wrong with a file is told when it is read as a sample.
            with suppress(Exception), Image.open(path) as label:
                if label.mode == "L":
                    counts.append(label.histogram()[value])
        return any(counts) if counts else None

    return holds("test") is True and holds("train") is False and not holds("validation")


def _refuse_painted(labels: list[Path], info: DatasetInfo) -> None:
    """Raise if label maps are colour pictures and no readable one has indices."""
    painted: list[tuple[Path, str]] = []
    for path in labels:
        # What is wrong with a file is told when it is read as a sample.
        if not path.is_file():  # such as a named pipe, whose opening would wait
            continue
        with suppress(Exception), Image.open(path) as label:
            if label.mode not in ("RGB", "RGBA", "P"):
                return
            painted.append((path, label.mode))
    if painted:
        path, mode = painted[0]
        remedy = "replace each colour by the index of its class"
        if mode == "P":
            remedy = (
                "if their palette indices are the class indices, convert each with "
                "PIL.Image.fromarray(numpy.asarray(PIL.Image.open(FILE))).save(FILE)"
            )
        wanted = ", ".join(info.class_names[:3]) + (", ..." if info.num_classes > 3 else "")
        raise Unreadable(
            f"{path} and others are colour pictures (mode {mode}); labels must be 8-bit grey (mode "
            f"L) with the class index, 0, 1, ... for {wanted}; {remedy}"
        )


@dataclass(frozen=True)
class ClassFile:
    """The contents of a classes file.

    Attributes:
        path: the file.
        colours: RGB by class name, in index order.
        words: `IGNORE` or `ANOMALY` by label value.
    """

    path: Path
    colours: dict[str, Colour] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)

    @property
    def index_of(self) -> dict[int, int]:
        """Index by value in a label file."""
        index_of = {index: index for index in range(len(self.colours))} | {255: IGNORE_INDEX}
        for value, word in self.words.items():
            anomaly = len(self.colours) if value == IGNORE_INDEX else value
            index_of[value] = IGNORE_INDEX if word == IGNORE else anomaly
        return index_of


def read_class_file(root: Path) -> ClassFile:
    """Read classes.txt or classes.json.

    Raises:
        DatasetNotFound: neither exists.
        Unreadable: both exist, or the file does not have the format above.
    """
    paths = [root / name for name in CLASS_FILES if (root / name).is_file()]
    if not paths:
        raise DatasetNotFound(
            f"{root / CLASS_FILES[0]} is missing, and so is {CLASS_FILES[1]}; write one with a "
            "line 'NAME R G B' per class, or pass the data folder as --data_root"
        )
    if len(paths) == 2:
        raise Unreadable(f"{paths[0]} and {paths[1]} are both there; delete one")
    classes = ClassFile(paths[0])
    rows = _json_rows(paths[0]) if paths[0].suffix == ".json" else _text_rows(paths[0])
    for name, numbers in rows:
        if name in (IGNORE, ANOMALY):
            _add_values(classes, name, numbers)
        else:
            _add_class(classes, name, numbers)
    _check_classes(classes)
    return classes


def _add_class(classes: ClassFile, name: str, colour: tuple) -> None:
    if not name or name in classes.colours or len(colour) != 3 or not _are_bytes(colour):
        raise Unreadable(
            f"{classes.path}: class {len(classes.colours) + 1} must be a new name and three "
            f"integers of 0..255, got {name!r}, {colour!r}; correct it"
        )
    classes.colours[name] = colour


def _add_values(classes: ClassFile, word: str, values: tuple) -> None:
    # Three numbers would be a class of that name.
    if len(values) in (0, 3) or not _are_bytes(values) or set(values) & set(classes.words):
        raise Unreadable(
            f"{classes.path}: {word!r} declares a label value and takes one new integer of 0..255, "
            f"as in '{word} 12', got {values!r}; correct it"
        )
    classes.words.update(dict.fromkeys(values, word))


def _check_classes(classes: ClassFile) -> None:
    if not 1 <= len(classes.colours) <= MOST_CLASSES:
        raise Unreadable(
            f"{classes.path} has {len(classes.colours)} classes; expected 1 to {MOST_CLASSES}"
        )
    for value, word in classes.words.items():
        if value < len(classes.colours):
            raise Unreadable(
                f"{classes.path}: '{word} {value}' is also the index of the class "
                f"{list(classes.colours)[value]!r}; choose a value >= {len(classes.colours)}"
            )


def _are_bytes(numbers: tuple[object, ...]) -> bool:
    return all(type(number) is int and 0 <= number <= 255 for number in numbers)


def _text_rows(path: Path) -> list[tuple[str, tuple]]:
    rows = []
    for words in map(str.split, read_text(path).splitlines()):
        if words:
            is_value = words[0] in (IGNORE, ANOMALY) and all(map(str.isdecimal, words[1:]))
            start = 1 if is_value else max(len(words) - 3, 0)
            numbers = (int(word) if word.isdecimal() else word for word in words[start:])
            rows.append((" ".join(words[:start]), tuple(numbers)))
    return rows


def _json_rows(path: Path) -> list[tuple[str, tuple]]:
    try:
        # As pairs, so that duplicate names are noticed.
        rows = json.loads(read_text(path), object_pairs_hook=list)
        return [
            (name, (value,) if name in (IGNORE, ANOMALY) and type(value) is int else tuple(value))
            for name, value in rows
        ]
    except (ValueError, TypeError, RecursionError) as error:
        raise Unreadable(
            f'{path} is not a JSON object of the form {{"NAME": [R, G, B]}} ({error}); correct it'
        ) from error
