"""Read image and label files; every fault is an error of one line that names the file."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.decoded import read_copy
from dataset.description import DatasetInfo
from utils import pictures
from utils.pictures import read_picture
from utils.reading import Unreadable

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
# Number of memory blocks (of up to 16 MB) that Pillow keeps for the next picture. Without them the
# system allocates fresh pages for each: 1700 per training input of StreetHazards.
Image.core.set_blocks_max(4)


def read_image(path: Path, info: DatasetInfo) -> Image.Image:
    """`utils.pictures.read_picture` of a data set's image, or its decoded copy if there is one."""
    return read_copy(path) or read_picture(path, IMAGE_FORMATS, info.remedy)


def read_label(path: Path, info: DatasetInfo, *, with_anomalies: bool) -> Image.Image:
    """Read a label map and map the file's values to indices by `info.index_of`.

    Raises:
        Unreadable: see `utils.pictures.read_label`; or it contains a value that the data set does
            not have, or an anomaly although not `with_anomalies`.
    """
    label = pictures.read_label(path, remedy=info.remedy)
    _check_values(path, label, info, with_anomalies)
    return label.point(info.lookup)


def _check_values(path: Path, label: Image.Image, info: DatasetInfo, with_anomalies: bool) -> None:
    allowed = info.test_values if with_anomalies else info.training_values
    # Usually the highest value suffices; it takes a quarter of the histogram's time.
    if allowed[-1] == len(allowed) - 1 and np.asarray(label).max() < len(allowed):
        return
    histogram = label.histogram()
    unknown = [value for value in range(256) if histogram[value] and value not in allowed]
    if unknown:
        where = "in the test split" if with_anomalies else "outside the test split"
        raise Unreadable(
            f"{path} holds the value {unknown[-1]}; {where} labels are {_ranges(allowed)} "
            f"({info.label_meaning})"
        )


def _ranges(values: Iterable[int]) -> str:
    """Format sorted integers, such as "0..15, 255"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
