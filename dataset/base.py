"""The base class of all data sets: image and label files, read and checked."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from PIL import Image

from dataset.description import DatasetInfo, Split
from dataset.pictures import read_image, read_label
from utils.errors import PansError
from utils.pictures import FOREIGN_SUFFIXES, PICTURE_SUFFIXES, SMALLEST_SIDE
from utils.reading import Unreadable, is_hidden

Transforms = Callable[[Image.Image, Image.Image], Any]
Item = TypeVar("Item")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Unsupported formats are found too, so that they are refused by name instead of overlooked.
FOUND_SUFFIXES = (*PICTURE_SUFFIXES, *FOREIGN_SUFFIXES)


class DatasetNotFound(PansError):
    """The files of a data set, or of one of its splits, were not found."""


@dataclass(frozen=True)
class SampleFiles:
    """The files of a split.

    Attributes:
        source: the file or folder that lists the images.
        folder: the folder to which `names` are relative.
        names: (image, label) of every sample.
    """

    source: Path
    folder: Path
    names: list[tuple[str, str]]


class SegmentationDataset(ABC):
    """One split of a data set.

    Args:
        root: the folder of the data, --data_root.
        split: "train", "validation" or "test"; only that split's files need to exist.
        transforms: called as `transforms(image, label)`; its return value is the sample.

    Without transforms a sample is a pair of PIL pictures of one size: the image (RGB) and the
    label (L) with the indices that `info` describes.

    Attributes:
        info: the data set's description.
        source, folder: as in `SampleFiles`.
        names, label_names: the samples' files, relative to `folder`.

    Raises:
        PansError: the data set has no such split.
        DatasetNotFound: the split's files are not under `root`.
        Unreadable: a list of files, an image or a label is not as published.
    """

    published_info: ClassVar[DatasetInfo]

    def __init__(
        self, root: str | Path, split: Split, transforms: Transforms | None = None
    ) -> None:
        self.info = self.describe(Path(root))
        self.split = split
        self.transforms = transforms
        if split not in self.info.splits:
            raise PansError(
                f"{self.info.name} has no {split} split, only {', '.join(self.info.splits)}; "
                "choose another --dataset"
            )
        files = self.find_files(Path(root), split)
        self.source, self.folder = files.source, files.folder
        self.names = [image for image, _ in files.names]
        self.label_names = [label for _, label in files.names]

    @classmethod
    def describe(cls, root: Path) -> DatasetInfo:
        """Describe the data set under `root`; only `folder` depends on it."""
        return cls.published_info

    @abstractmethod
    def find_files(self, root: Path, split: Split) -> SampleFiles:
        """Find the split's files under `root`.

        Raises:
            DatasetNotFound, Unreadable: see the class.
        """

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        image_path = self.folder / self.names[index]
        label_path = self.folder / self.label_names[index]
        image = read_image(image_path, self.info)
        if min(image.size) < SMALLEST_SIDE:
            raise Unreadable(
                f"{image_path} is {image.width}x{image.height}; expected at least "
                f"{SMALLEST_SIDE} pixels per side, remove it"
            )
        label = read_label(label_path, self.info, with_anomalies=self.split == "test")
        if image.size != label.size:
            raise Unreadable(
                f"{label_path} is {label.width}x{label.height} but its image {image_path} is "
                f"{image.width}x{image.height}; restore both from the archive"
            )
        return (image, label) if self.transforms is None else self.transforms(image, label)


def find_all(root: Path, folders: Iterable[str], names: Iterable[str], remedy: str) -> list[Path]:
    """Every existing path NAME, in the `folders` of `root` or in `root` itself.

    Args:
        remedy: what to do if there is none, for the error message.

    Raises:
        DatasetNotFound: none exists.
    """
    names = tuple(names)
    bases = [*(root / folder for folder in folders), root]
    candidates = [base / name for base in bases for name in names]
    found = [candidate for candidate in candidates if candidate.exists()]
    if found:
        return found
    missing = (
        f"{candidates[0]} is missing (also looked for "
        f"{', '.join(str(candidate) for candidate in candidates[1:])}); "
    )
    for parent in root.resolve().parents[:2]:  # the folder of a split, or of its images
        if any((parent / name).exists() for name in names):
            raise DatasetNotFound(f"{missing}it is in {parent}, type --data_root {parent}")
    raise DatasetNotFound(f"{missing}{remedy}, or pass the data folder as --data_root")


def find_first(root: Path, folders: Iterable[str], names: Iterable[str], remedy: str) -> Path:
    """The first path that `find_all` finds."""
    return find_all(root, folders, names, remedy)[0]


def images_in(folder: Path) -> dict[str, str]:
    """Map stem to file name for every image in a folder, sorted, without hidden files.

    Raises:
        Unreadable: the names of two images differ only in the suffix.
    """
    images: dict[str, str] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in FOUND_SUFFIXES and not is_hidden(Path(path.name)):
            if path.stem in images:
                raise two_of_a_name(folder / images[path.stem], path)
            images[path.stem] = path.name
    return images


def two_of_a_name(first: Path, second: Path) -> Unreadable:
    """The error for two images that would share one label."""
    return Unreadable(
        f"{first} and {second} would share one label, because their names differ only in the "
        "suffix; remove one, or rename one and its label"
    )


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]
