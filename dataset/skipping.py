"""Skip samples that cannot be read, and keep a list of them: --skip_bad_files."""

from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from dataset.base import SegmentationDataset
from utils.distributed import gather_objects
from utils.reading import Unreadable


class SampleReader:
    """Reads a split's samples and, with `skip_bad_files`, records the unreadable ones.

    Args:
        pictures: the data set, without transforms.
        skip_bad_files: whether `read` returns None for an unreadable sample instead of raising.
    """

    def __init__(self, pictures: SegmentationDataset, skip_bad_files: bool) -> None:
        self.pictures = pictures
        self._is_bad: torch.Tensor | None = None
        if skip_bad_files:
            # Shared with the loader workers, which have copies of everything else.
            self._is_bad = torch.zeros(len(pictures), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> tuple[Image.Image, Image.Image] | None:
        """Read the image and the label of a sample; None if it is skipped.

        Raises:
            Unreadable: a file of the sample cannot be used, without `skip_bad_files`.
        """
        try:
            return self.pictures[index]
        except Unreadable:
            if self._is_bad is None:
                raise
            self._is_bad[index] = True
            return None

    def skipped(self) -> list[str]:
        """One line per skipped sample, with its error, found by reading it again."""
        if self._is_bad is None:
            return []
        return [self._problem(index) for index in self._is_bad.nonzero().flatten().tolist()]

    def nothing_readable(self) -> Unreadable:
        """The error for a split without any readable sample."""
        return Unreadable(
            f"{self.pictures.source}: none of its {len(self)} samples can be read, the first: "
            f"{self._problem(0)}"
        )

    def _problem(self, index: int) -> str:
        try:
            self.pictures[index]
        except Unreadable as error:
            return str(error)
        return f"{self.pictures.folder / self.pictures.names[index]} was unreadable for a while"


def reader_of(loader: DataLoader[Any]) -> SampleReader:
    """The reader of a loader of `dataset.loaders`."""
    reader: SampleReader = loader.dataset.reader  # type: ignore[attr-defined]
    return reader


class SkippedFiles:
    """Collects the readers of all loaders of a run, one per split."""

    def __init__(self) -> None:
        self._readers: dict[str, SampleReader] = {}

    def watch(self, split: str, loader: DataLoader[Any]) -> None:
        """Register a loader of `dataset.loaders`."""
        self._readers[split] = reader_of(loader)

    def gather(self, split: str) -> list[str]:
        """One line per skipped sample of a split; to be called by all processes."""
        lines = self._readers[split].skipped() if split in self._readers else []
        return sorted(set(chain.from_iterable(gather_objects(lines))))

    def report(self) -> list[str]:
        """A heading and one line per skipped sample; to be called by all processes."""
        lines = [
            f"  {split}: {line}" for split in sorted(self._readers) for line in self.gather(split)
        ]
        return [f"skipped {len(lines)} samples that cannot be read:", *lines] if lines else []
