"""Samples that cannot be read, left out and remembered: --skip_bad_files."""

import torch
from PIL import Image

from dataset.base import SegmentationDataset
from dataset.pictures import BadSample


class SampleReader:
    """Reads a split's samples; those that cannot be read are errors, or left out and remembered.

    Args:
        pictures: without transforms.
        skip_bad_files: whether `read` gives None for such a sample instead of raising.
    """

    def __init__(self, pictures: SegmentationDataset, skip_bad_files: bool) -> None:
        self.pictures = pictures
        self._is_bad: torch.Tensor | None = None
        if skip_bad_files:
            # Loader workers hold copies of all else; this they share.
            self._is_bad = torch.zeros(len(pictures), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> tuple[Image.Image, Image.Image] | None:
        """The image and the label of a sample.

        Raises:
            BadSample: a file of the sample cannot be used, and is not to be skipped.
        """
        try:
            return self.pictures[index]
        except BadSample:
            if self._is_bad is None:
                raise
            self._is_bad[index] = True
            return None

    def skipped(self) -> list[str]:
        """What is wrong with each sample that was left out, by reading it once more."""
        if self._is_bad is None:
            return []
        return [self._problem(index) for index in self._is_bad.nonzero().flatten().tolist()]

    def nothing_readable(self) -> BadSample:
        """The error for a split of which no process could read a sample."""
        return BadSample(
            f"{self.pictures.source}: not one of its {len(self)} samples can be read, the first: "
            f"{self._problem(0)}"
        )

    def _problem(self, index: int) -> str:
        try:
            self.pictures[index]
        except BadSample as error:
            return str(error)
        return f"{self.pictures.folder / self.pictures.names[index]} was unreadable for a while"
