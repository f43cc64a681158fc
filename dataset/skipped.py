"""The files that a run skipped (--skip_bad_files), over all of its loaders and processes."""

from itertools import chain

from torch.utils.data import DataLoader

from dataset.loaders import reader_of
from dataset.skipping import SampleReader
from utils.distributed import gather_objects


class SkippedFiles:
    """Collects the readers of all loaders, one per split."""

    def __init__(self) -> None:
        self._readers: dict[str, SampleReader] = {}

    def watch(self, split: str, loader: DataLoader) -> None:
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
