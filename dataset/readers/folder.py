"""Any images with label maps, in a folder of the user's own.

ROOT/classes.txt                  a line per class, in the order of the index: NAME R G B
                                  a line per further value of the labels: ignore 11, anomaly 12
ROOT/classes.json                 or this: {"NAME": [R, G, B], ..., "ignore": 11, "anomaly": 12}
ROOT/images/SPLIT/.../NAME.jpg    .jpeg, .png or .webp; SPLIT is train, validation or test
ROOT/labels/SPLIT/.../NAME.png    8-bit grey: class index, 255 = ignored, and what else the
                                  classes file names; anomalies in the test split alone. The
                                  first value above the classes needs no word if the labels of
                                  the test split hold it and those of training do not
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
from dataset.pictures import BadSample
from utils.reading import files_below, read_text

CLASS_FILES = ("classes.txt", "classes.json")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MOST_CLASSES = 254
IGNORE, ANOMALY = "ignore", "anomaly"
# Label maps of a split whose kind is looked at before anything is read.
LOOKED_AT = 16


class Folder(SegmentationDataset):
    """Images and label maps of the user's own, as the module's description has it."""

    @classmethod
    def describe(cls, root: Path) -> DatasetInfo:
        classes = read_class_file(root)
        first = len(classes.colours)
        note = ""
        if first not in classes.words and _test_alone_holds(root, first):
            classes.words[first] = ANOMALY
            note = (
                f"labels of the test split hold {first}, the first value above the classes, and "
                f"those of training do not: it is the anomaly; '{IGNORE} {first}' in "
                f"{classes.path} leaves it out"
            )
        return DatasetInfo(
            name="folder",
            class_colours=classes.colours,
            anomaly_index=len(classes.colours),
            index_of=classes.index_of,
            label_meaning=f"class index, 255 = ignored; {classes.path.name} may name further "
            f"values, a line '{IGNORE} N' or '{ANOMALY} N' each",
            splits=tuple(split for split in SPLITS if (root / "images" / split).is_dir()),
            remedy="each image needs a label map of its relative name, see docs/data.md",
            note=note,
        )

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        source = root / "images" / split
        images = [path.relative_to(source) for path in files_below(source, FOUND_SUFFIXES)]
        if not images:
            raise DatasetNotFound(
                f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}); put some there"
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
    """The label map of an image, both below the folders of their split."""
    path = folder / image.with_suffix(".png")
    capital = path.with_suffix(".PNG")
    return capital if capital.exists() and not path.exists() else path


def _test_alone_holds(root: Path, value: int) -> bool:
    """Whether a value is in labels of the test split, and in none of training and validation.

    A void label, such as raw CamVid's 11, is in all of them. Some evenly spaced files of each split
    are looked at; without training labels nothing can be told apart.
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
    """Raise if label maps hold colours, and not one of those that can be read holds indices."""
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
        wanted = ", ".join(info.class_names[:3]) + (", ..." if info.num_classes > 3 else "")
        raise BadSample(
            f"{path} and its like are colour pictures (mode {mode}); labels are 8-bit grey (mode "
            f"L) that hold the class index, 0, 1, ... for {wanted}; {_conversion(path, mode)}"
        )


def _conversion(path: Path, mode: str) -> str:
    if mode == "P":
        return (
            "if their palette's indices are the classes', save each anew with "
            "PIL.Image.fromarray(numpy.asarray(PIL.Image.open(FILE))).save(FILE)"
        )
    return "save each anew with the class's number where its colour stands"


@dataclass(frozen=True)
class ClassFile:
    """What a classes file says.

    Attributes:
        path: the file.
        colours: of the classes, by name, in the order of their indices.
        words: by value of the labels, `IGNORE` or `ANOMALY`.
    """

    path: Path
    colours: dict[str, Colour] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)

    @property
    def index_of(self) -> dict[int, int]:
        """Value in a label file to index: classes and anomalies their own, but for 255."""
        index_of = {index: index for index in range(len(self.colours))} | {255: IGNORE_INDEX}
        for value, word in self.words.items():
            anomaly = len(self.colours) if value == IGNORE_INDEX else value
            index_of[value] = IGNORE_INDEX if word == IGNORE else anomaly
        return index_of


def read_classes(root: Path) -> dict[str, Colour]:
    """Class names and their colours, by index; raises as `read_class_file`."""
    return read_class_file(root).colours


def read_class_file(root: Path) -> ClassFile:
    """Read classes.txt or classes.json.

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
        raise BadSample(
            f"{classes.path}: class {len(classes.colours) + 1} must be a new name and three whole "
            f"numbers of 0..255, got {name!r}, {colour!r}; correct it"
        )
    classes.colours[name] = colour


def _add_values(classes: ClassFile, word: str, values: tuple) -> None:
    # Three would be a class of that name and its colour.
    if len(values) in (0, 3) or not _are_bytes(values) or set(values) & set(classes.words):
        raise BadSample(
            f"{classes.path}: {word!r} is no class but says what a value of the labels means, and "
            f"takes one new whole number of 0..255, as in '{word} 12', got {values!r}; correct it"
        )
    classes.words.update(dict.fromkeys(values, word))


def _check_classes(classes: ClassFile) -> None:
    if not 1 <= len(classes.colours) <= MOST_CLASSES:
        raise BadSample(
            f"{classes.path} has {len(classes.colours)} classes; expected 1 to {MOST_CLASSES}"
        )
    for value, word in classes.words.items():
        if value < len(classes.colours):
            raise BadSample(
                f"{classes.path}: '{word} {value}' is also the index of the class "
                f"{list(classes.colours)[value]!r}; name a value from {len(classes.colours)} on"
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
        # Pairs, so that a name that comes twice is noticed.
        rows = json.loads(read_text(path), object_pairs_hook=list)
        return [
            (name, (value,) if name in (IGNORE, ANOMALY) and type(value) is int else tuple(value))
            for name, value in rows
        ]
    except (ValueError, TypeError, RecursionError) as error:
        raise BadSample(
            f'{path} is no JSON object of the form {{"NAME": [R, G, B]}} ({error}); correct it'
        ) from error
