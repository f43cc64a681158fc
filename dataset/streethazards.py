"""StreetHazards: its classes and colours, and a reader of its files."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from errors import PansError

Split = Literal["train", "validation", "test"]

CLASS_COLOURS = {
    "unlabeled": (0, 0, 0),
    "building": (70, 70, 70),
    "fence": (190, 153, 153),
    "other": (250, 170, 160),
    "pedestrian": (220, 20, 60),
    "pole": (153, 153, 153),
    "road line": (157, 234, 50),
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "vegetation": (107, 142, 35),
    "car": (0, 0, 142),
    "wall": (102, 102, 156),
    "traffic sign": (220, 220, 0),
}
CLASS_NAMES = tuple(CLASS_COLOURS)  # "unlabeled" is the sky as well
NUM_CLASSES = len(CLASS_NAMES)
ANOMALY_INDEX = NUM_CLASSES  # the first of them: every index in [13, 255) is an anomaly
ANOMALY_COLOUR = (60, 250, 240)
IGNORE_INDEX = 255

PALETTE = np.full((256, 3), ANOMALY_COLOUR, dtype=np.uint8)
PALETTE[:NUM_CLASSES] = list(CLASS_COLOURS.values())
PALETTE[IGNORE_INDEX] = 0

# The files hold class index + 1, and 0 where there is nothing.
RAW_TO_INDEX = (IGNORE_INDEX, *range(255))

LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("train/train.odgt",),
    "validation": ("validation/validation.odgt", "train/validation.odgt"),
    "test": ("test/test.odgt",),
}
# Pillow hands some other formats to outside programs.
PICTURE_FORMATS = ("PNG", "JPEG")
COLOUR_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")


class StreetHazardsNotFound(PansError):
    """A split's list of files is missing."""


class BadSample(PansError):
    """A file of the data set cannot be used.

    A DataLoader raises a worker's error again with the worker's traceback as its message; only
    the words after the error's own name, on one line, are for the user.
    """

    def __init__(self, message: str) -> None:
        own_words = message.rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(" ".join(own_words.split()))


class UnknownClass(PansError):
    """A class name that the data set does not have."""


def class_indices(names: Iterable[str]) -> tuple[int, ...]:
    """Class names, such as "traffic sign" -> their indices.

    Raises:
        UnknownClass: a name outside `CLASS_NAMES`.
    """
    names = list(names)
    for name in names:
        if name not in CLASS_NAMES:
            raise UnknownClass(f"there is no class {name!r}; the classes: {', '.join(CLASS_NAMES)}")
    return tuple(CLASS_NAMES.index(name) for name in names)


class StreetHazards(Dataset[Any]):
    """One split of StreetHazards (Hendrycks et al., ICML 2022), read from its odgt list.

    Args:
        root: folder that holds `train/` and `test/`, or a folder `StreetHazards/` that does.
        split: "train", "validation" or "test"; only that split's files need to exist.
        transforms: called as `transforms(image, label)`; what it returns is the sample.

    Without transforms a sample is a pair of PIL pictures of one size: the image (RGB) and the
    label (L) with class indices 0..12, anomalies 13..254 (test split only) and 255 to ignore.

    Raises:
        StreetHazardsNotFound: the split's odgt file is not under `root`.
        BadSample: the odgt file, an image or a label is not as published.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        transforms: Callable[[Image.Image, Image.Image], Any] | None = None,
    ) -> None:
        self.split = split
        self.transforms = transforms
        self.list_path = find_list(Path(root), split)
        entries = read_list(self.list_path)
        self.names = [entry[0] for entry in entries]
        self.label_names = [entry[1] for entry in entries]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        folder = self.list_path.parent
        image_path = folder / self.names[index]
        label_path = folder / self.label_names[index]
        image = read_image(image_path)
        label = read_label(label_path, with_anomalies=self.split == "test")
        if image.size != label.size:
            raise BadSample(
                f"{label_path} is {label.width}x{label.height} but its image {image_path} is "
                f"{image.width}x{image.height}; restore both from the archive"
            )
        return (image, label) if self.transforms is None else self.transforms(image, label)


def find_list(root: Path, split: Split) -> Path:
    """Find the odgt file of a split in either of the published folder layouts.

    Raises:
        StreetHazardsNotFound: no layout under `root` has it.
    """
    candidates = [base / name for base in (root / "StreetHazards", root) for name in LISTS[split]]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise StreetHazardsNotFound(
        f"{candidates[0]} is missing (also looked for "
        f"{', '.join(str(candidate) for candidate in candidates[1:])}); run 'python -m "
        f"dataset.prepare --root {root}', or name the folder of the data with --data_root"
    )


def read_list(path: Path) -> list[tuple[str, str]]:
    """Read an odgt file: a JSON array of entries, or JSON lines.

    Returns:
        One (image, label) pair of paths an entry, relative to the folder of the odgt file.

    Raises:
        BadSample: the file is not JSON or is empty, or an entry lacks a path or leaves the folder.
    """
    entries = _parse_list(path)
    if not entries:
        raise BadSample(f"{path} lists no image; restore it from the archive")
    return [
        (
            _checked_name(path, number, entry, "fpath_img"),
            _checked_name(path, number, entry, "fpath_segm"),
        )
        for number, entry in enumerate(entries, start=1)
    ]


def _parse_list(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        try:
            documents = [json.loads(text)]
        except json.JSONDecodeError:
            documents = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise BadSample(f"{path} cannot be read as JSON ({error}); restore it") from error
    entries: list[Any] = []
    for document in documents:
        entries.extend(document if isinstance(document, list) else [document])
    return entries


def _checked_name(path: Path, number: int, entry: Any, key: str) -> str:
    name = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise BadSample(f"{path}: entry {number} has no {key}; restore the file")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise BadSample(f"{path}: entry {number}'s {key} {name!r} leaves the folder; mend it")
    return name


def read_image(path: Path) -> Image.Image:
    """Read a picture as RGB, alpha dropped.

    Raises:
        BadSample: missing, truncated, or of more than 8 bits a channel.
    """
    image = _decode(path)
    if image.mode not in COLOUR_MODES:
        raise BadSample(f"{path} has mode {image.mode}; expected an 8-bit picture such as RGB(A)")
    return image.convert("RGB")


def read_label(path: Path, *, with_anomalies: bool) -> Image.Image:
    """Read a label map and turn its raw values into class indices (raw - 1; 0 becomes 255).

    Raises:
        BadSample: missing, truncated, not 8-bit grey (mode L), or it holds anomalies (raw values
            above 13) without `with_anomalies`.
    """
    label = _decode(path)
    if label.mode != "L":
        raise BadSample(f"{path} has mode {label.mode}; expected an 8-bit grey label map (mode L)")
    if not with_anomalies:
        highest = np.asarray(label).max()
        if highest > NUM_CLASSES:
            raise BadSample(
                f"{path} holds the value {highest}; outside the test split labels are "
                f"0..{NUM_CLASSES} (class index + 1)"
            )
    return label.point(RAW_TO_INDEX)


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise BadSample(f"{path} is missing; run 'python -m dataset.prepare'") from error
    # Decoders meet damaged files with errors of many types; each means the same to the user.
    except Exception as error:
        raise BadSample(f"{path} cannot be decoded ({error}); restore the file") from error
