"""The files that a run left out (--skip_bad_files), over all of its loaders and processes."""

from itertools import chain

from torch.utils.data import DataLoader

from dataset import reader_of
from dataset.skipping import SampleReader
from utils.distributed import gather_objects


class SkippedFiles:
    """Remembers every loader's reader; a later loader of the same split takes over."""

    def __init__(self) -> None:
        self._readers: dict[str, SampleReader] = {}

    def watch(self, split: str, loader: DataLoader) -> None:
        """Take in a loader of `dataset.loaders`."""
        self._readers[split] = reader_of(loader)

    def gather(self, split: str) -> list[str]:
        """A line for each sample of the split that any process left out; all processes call it."""
        lines = self._readers[split].skipped() if split in self._readers else []
        return sorted(set(chain.from_iterable(gather_objects(lines))))

    def report(self) -> list[str]:
        """All that was left out, a line each, below a heading; all processes call it."""
        lines = [
            f"  {split}: {line}" for split in sorted(self._readers) for line in self.gather(split)
        ]
        return [f"skipped {len(lines)} samples that cannot be read:", *lines] if lines else []
