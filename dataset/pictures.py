"""Image and label files to PIL pictures; whatever is wrong with a file is one line naming it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from dataset.description import DatasetInfo
from utils.errors import PansError

# Pillow hands some other formats to outside programs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
LABEL_FORMATS = ("PNG",)  # a lossy format would change the classes
# Pillow keeps so many blocks of memory (of 16 MB at most) for the next picture. Without them the
# system hands out fresh pages for each, 1700 of them for a training input of StreetHazards.
Image.core.set_blocks_max(4)

COLOUR_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")


class BadSample(PansError):
    """A file of the data set cannot be used.

    A DataLoader raises a worker's error again with the worker's traceback as its message; only
    the words after the error's own name, on one line, are for the user.
    """

    def __init__(self, message: str) -> None:
        own_words = message.rpartition(f"{type(self).__name__}: ")[2]
        one_line = " ".join(own_words.split())
        # Names of files may hold what no terminal should be given.
        super().__init__(
            "".join(
                letter if letter.isprintable() else letter.encode("unicode_escape").decode()
                for letter in one_line
            )
        )


def is_hidden(path: Path) -> bool:
    """Whether a part of a path, relative to the folder of the data, is hidden or of macOS archives.

    Such files are never the data's: ._x.png, .ipynb_checkpoints/, __MACOSX/.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def read_image(path: Path, info: DatasetInfo) -> Image.Image:
    """Read a picture as RGB, alpha dropped.

    Raises:
        BadSample: missing, truncated, or of more than 8 bits a channel.
    """
    image, file_mode = _decode(path, IMAGE_FORMATS, info)
    if not is_colour_of_8_bits(image, file_mode):
        raise BadSample(f"{path} has mode {file_mode}; expected an 8-bit picture such as RGB(A)")
    return image.convert("RGB")


def read_label(path: Path, info: DatasetInfo, *, with_anomalies: bool) -> Image.Image:
    """Read a label map and turn the file's values into indices, as `info.index_of` has it.

    Raises:
        BadSample: missing, truncated, not 8-bit grey (mode L), or it holds a value that the data
            set does not have, or that marks an anomaly without `with_anomalies`.
    """
    label, file_mode = _decode(path, LABEL_FORMATS, info)
    # Pillow stretches grey of fewer bits over 0..255, which would change the classes.
    if file_mode != "L":
        raise BadSample(f"{path} has mode {file_mode}; expected an 8-bit grey label map (mode L)")
    _check_values(path, label, info, with_anomalies)
    return label.point(info.lookup)


def _check_values(path: Path, label: Image.Image, info: DatasetInfo, with_anomalies: bool) -> None:
    allowed = info.test_values if with_anomalies else info.training_values
    # Mostly the highest value tells; it takes a quarter of the histogram's time.
    if allowed[-1] == len(allowed) - 1 and np.asarray(label).max() < len(allowed):
        return
    histogram = label.histogram()
    unknown = [value for value in range(256) if histogram[value] and value not in allowed]
    if unknown:
        where = "in the test split" if with_anomalies else "outside the test split"
        raise BadSample(
            f"{path} holds the value {unknown[-1]}; {where} labels are {_ranges(allowed)} "
            f"({info.label_meaning})"
        )


def _ranges(values: Iterable[int]) -> str:
    """Rising whole numbers -> words, such as "0..15, 255"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _decode(path: Path, formats: tuple[str, ...], info: DatasetInfo) -> tuple[Image.Image, str]:
    """The picture, and its mode as the file has it, such as "RGB;16B" or "L;4"."""
    try:
        with Image.open(path, formats=formats) as picture:
            file_mode = mode_in_file(picture)
            picture.load()
            return picture, file_mode
    except FileNotFoundError as error:
        raise BadSample(f"{path} is missing; {info.remedy}") from error
    # Decoders meet damaged files with errors of many types; each means the same to the user.
    except Exception as error:
        raise BadSample(
            f"{path} cannot be decoded ({error}); expected a {' or '.join(formats)} file, "
            "restore the file"
        ) from error


def is_colour_of_8_bits(picture: Image.Image, file_mode: str) -> bool:
    """Whether a picture is colour or grey of at most 8 bits a channel, by its `mode_in_file`."""
    return picture.mode in COLOUR_MODES and ";16" not in file_mode


def mode_in_file(picture: Image.Image) -> str:
    """The mode that the file of a picture has, such as "RGB;16B"; ask before it is decoded."""
    # In these modes Pillow also gives PNG pixels of other depths, stretched or cut to 8 bits.
    if isinstance(picture, PngImageFile) and picture.mode in ("L", "LA", "RGB", "RGBA"):
        return str(picture.tile[0].args)
    return picture.mode
