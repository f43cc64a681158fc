"""Write decoded copies of all images of a split, with one process per core."""

from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset.base import SegmentationDataset
from dataset.decoded import copy_of, write_copy
from dataset.loaders import worker_count
from dataset.pictures import IMAGE_FORMATS
from dataset.prepare.check import WORKERS
from dataset.prepare.disk import writing
from utils.errors import PansError


class _Copies(Dataset[str]):
    """Item i writes the copy of image i and is "" or the error, as workers garble exceptions."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> str:
        try:
            with writing(copy_of(self.paths[index])):
                write_copy(self.paths[index], IMAGE_FORMATS)
        except PansError as error:
            return str(error)
        return ""


def write_copies(pictures: SegmentationDataset) -> str:
    """Write the copies that are missing or outdated; returns a summary of all copies.

    Raises:
        PansError: a copy cannot be written, or an image cannot be read.
    """
    paths = [pictures.folder / name for name in pictures.names]
    workers = worker_count(WORKERS)
    loader = DataLoader(_Copies(paths), None, sampler=range(len(paths)), num_workers=workers)
    for problem in tqdm(loader, desc="decoding", unit="image"):
        if problem:
            raise PansError(problem)
    size = sum(copy_of(path).stat().st_size for path in paths)
    return f"{len(paths)} decoded copies, {size / 1e9:.2f} GB"
