"""Write decoded copies of all images of a split, with one process per core."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dataset.base import SegmentationDataset
from dataset.decoded import copy_of, write_copy
from dataset.loaders import in_workers
from dataset.pictures import IMAGE_FORMATS
from dataset.prepare.disk import writing
from utils.errors import PansError


def write_copies(pictures: SegmentationDataset) -> str:
    """Write the copies that are missing or outdated; returns a summary of all copies.

    Raises:
        PansError: a copy cannot be written, or an image cannot be read.
    """
    paths = [pictures.folder / name for name in pictures.names]
    for problem in in_workers(partial(_write, paths), len(paths), "decoding"):
        if problem:
            raise PansError(problem)
    size = sum(copy_of(path).stat().st_size for path in paths)
    return f"{len(paths)} decoded copies, {size / 1e9:.2f} GB"


def _write(paths: Sequence[Path], index: int) -> str:
    """Write the copy of image `index`; returns "" or the error."""
    try:
        with writing(copy_of(paths[index])):
            write_copy(paths[index], IMAGE_FORMATS)
    except PansError as error:
        return str(error)
    return ""
