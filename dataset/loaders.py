"""Loaders for training and evaluation; samples do not depend on the number of loader workers."""

import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from tqdm import tqdm

from dataset.base import SegmentationDataset
from dataset.description import Split
from dataset.registry import open_dataset
from dataset.shared_memory import fitting_workers, in_shared_memory, largest_size
from dataset.skipping import SampleReader
from dataset.transforms import (
    LARGEST_SCALE,
    TEST_SCALES,
    Pair,
    Sample,
    byte_planes,
    byte_tensor,
    scaled_images,
    scaled_pair,
    scaled_size,
    training_sample,
)
from dataset.worker_signals import prepare_worker
from utils.errors import PansError
from utils.interruption import handling

T = TypeVar("T")

WORKERS = 16
"""Processes of `in_workers`, if there are as many cores."""


class EvaluationSample(NamedTuple):
    """One validation or test image at every scale.

    Attributes:
        images: one (3, h, w) uint8 RGB tensor per scale.
        label: (H, W) uint8, class indices at the evaluation size: that of the file, or of the
            network's input.
        index: position in the split.
        name: path of the image, relative to the folder of the split.
        picture: (H, W, 3) uint8, the picture at that size.
    """

    images: list[Tensor]
    label: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not needed here
    name: str
    picture: Tensor


def random_stream(*key: int) -> random.Random:
    """Make a generator that depends on `key` alone, such as (seed, epoch, index)."""
    # random.Random hashes the whole string; arithmetic on the parts would let keys collide.
    return random.Random("/".join(map(str, key)))


def worker_count(requested: int) -> int:
    """Limit `requested` loader workers to this process's share of the CPUs it may use.

    The processes of one machine (LOCAL_WORLD_SIZE, set by torchrun) share them evenly.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # only on Linux
        cpus = os.cpu_count() or 1
    return min(requested, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) keys of one rank, in the published order.

    That is DistributedSampler's: drawn from (0, epoch), independent of --random_seed, and padded
    with repeats to equal shares. The key contains the epoch because persistent workers have a
    copy of the data set and would not see it change there. The length is that of a whole epoch.
    """

    def __init__(self, images: int, *, batch_size: int, rank: int, world_size: int) -> None:
        dataset: Any = range(images)  # only its length is used
        self.share: DistributedSampler[int] = DistributedSampler(dataset, world_size, rank)
        self.batch_size = batch_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Set the next epoch and how many of its batches are already done."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.share.set_epoch(self.epoch)
        for index in islice(self.share, self.start_batch * self.batch_size, None):
            yield self.epoch, index


class TrainingSamples(Dataset[Sample]):
    """Random crops; item (epoch, index) is a function of that key and the seed alone."""

    def __init__(self, reader: SampleReader, crop_size: int, seed: int) -> None:
        self.reader = reader
        self.crop_size = crop_size
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        image, label = self.reader.read(index) or self._replacement(epoch, index)
        return training_sample(image, label, random_stream(self.seed, epoch, index), self.crop_size)

    def _replacement(self, epoch: int, index: int) -> Pair:
        """The first readable sample in an order that depends on (seed, epoch, index) alone."""
        order = list(range(len(self.reader)))
        random_stream(self.seed, epoch, index, len(order)).shuffle(order)
        for other in order:
            if (pair := self.reader.read(other)) is not None:
                return pair
        raise self.reader.nothing_readable()


class EvaluationSamples(Dataset[EvaluationSample | None]):
    """Whole images at the given scales, each decoded once; without scales at their own size.

    With `at_input_size` and one scale, picture and label are resized to the network's input too
    (the label by nearest neighbour). A skipped sample is None.
    """

    def __init__(
        self, reader: SampleReader, scales: Sequence[float] = (), *, at_input_size: bool = False
    ) -> None:
        self.reader = reader
        self.scales = scales
        self.at_input_size = at_input_size

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> EvaluationSample | None:
        pair = self.reader.read(index)
        if pair is None:
            return None
        image, label = pair
        if self.at_input_size:
            (scale,) = self.scales
            image, label = scaled_pair(image, label, scale)
        scales = () if self.at_input_size else self.scales
        return EvaluationSample(
            images=scaled_images(image, scales) if scales else [byte_planes(image)],
            label=byte_tensor(label),
            index=index,
            name=self.reader.pictures.names[index],
            picture=byte_tensor(image),
        )


class BoundedLoader(DataLoader[T]):
    """A loader whose `timeout` also holds if a worker stops in the middle of sending a sample.

    torch's timeout covers the wait for a sample, but not for the file descriptors sent with it.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        samples = super().__iter__()
        on_main_thread = threading.current_thread() is threading.main_thread()
        return _in_time(samples, self.timeout) if self.timeout and on_main_thread else samples


def _in_time(samples: Iterator[T], seconds: float) -> Iterator[T]:
    def give_up(number: int, frame: FrameType | None) -> None:
        raise RuntimeError(f"DataLoader timed out after {seconds} seconds")

    while True:
        with handling({signal.SIGALRM: give_up}):
            signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # torch's own time-out comes first
            try:
                sample = next(samples)
            except StopIteration:
                return
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        yield sample


class EvaluationLoader(BoundedLoader[Any]):
    """Yields the samples that were not skipped."""

    def __iter__(self) -> Iterator[EvaluationSample]:  # type: ignore[override]
        return (sample for sample in super().__iter__() if sample is not None)


def training_loader(
    root: str | Path,
    *,
    batch_size: int,
    crop_size: int,
    seed: int,
    num_workers: int,
    rank: int,
    world_size: int,
    accumulate: int = 1,
    dataset: str = "streethazards",
    skip_bad_files: bool = False,
    timeout: float = 0,
) -> DataLoader[Sample]:
    """Load the train split in shuffled, full batches.

    Args:
        accumulate: batches per step; the split must have enough images for one step.
        skip_bad_files: replace an unreadable sample by one drawn from (seed, epoch, index).
        timeout: seconds to wait for a batch from the workers; 0 waits forever.

    Yields:
        Sample of image (batch_size, 3, crop_size, crop_size) and label (batch_size, crop_size,
        crop_size). Call `loader.sampler.set_epoch(epoch)` before every epoch.

    Raises:
        PansError: the split has too few images for one step on every process.
    """
    pictures = open_dataset(dataset, root, "train")
    _require_a_step(pictures, batch_size, accumulate, world_size)
    sampler = EpochSampler(len(pictures), batch_size=batch_size, rank=rank, world_size=world_size)
    return BoundedLoader(
        TrainingSamples(SampleReader(pictures, skip_bad_files), crop_size, seed),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        **worker_options(num_workers, timeout, batch_size * 4 * crop_size**2, rank),
    )


def _require_a_step(
    pictures: SegmentationDataset, batch_size: int, accumulate: int, world_size: int
) -> None:
    share = math.ceil(len(pictures) / world_size)  # padded with repeats
    if share // batch_size < accumulate:
        batches = "one batch" if accumulate == 1 else f"{accumulate} batches"
        remedy = "" if accumulate == 1 else ", --accumulate"
        raise PansError(
            f"{pictures.source} lists {len(pictures)} images, fewer than {batches} of "
            f"{batch_size} on each of {world_size} processes; lower --batch_size{remedy} or --nproc"
        )


def evaluation_loader(
    root: str | Path,
    split: Split,
    *,
    multi_scale: bool | None,
    num_workers: int,
    rank: int,
    world_size: int,
    dataset: str = "streethazards",
    skip_bad_files: bool = False,
    timeout: float = 0,
    at_input_size: bool = False,
) -> DataLoader[EvaluationSample]:
    """Load whole images one at a time, without a batch dimension, each on one rank only.

    Args:
        multi_scale: True for the five test scales, False for the largest of them; None for
            validation, at full size.
        timeout: seconds to wait for an image from the workers; 0 waits forever.
        at_input_size: with one scale, resize label and picture to the network's input size.

    Yields:
        EvaluationSample. Sizes may differ between images, and the number of images between ranks
        by one.
    """
    scales = {None: (), True: TEST_SCALES, False: (LARGEST_SCALE,)}[multi_scale]
    pictures = open_dataset(dataset, root, split)
    reader = SampleReader(pictures, skip_bad_files)
    samples = EvaluationSamples(reader, scales, at_input_size=at_input_size)
    files = [pictures.folder / name for name in pictures.names]
    return EvaluationLoader(
        samples,
        batch_size=None,
        sampler=range(rank, len(samples), world_size),
        collate_fn=in_shared_memory,
        **worker_options(num_workers, timeout, sample_bytes(files, scales), rank),
    )


def sample_bytes(files: Sequence[Path], scales: Sequence[float]) -> int:
    """Approximate upper bound of the bytes of an image, its label and its copies at all scales."""
    height, width = largest_size(files)
    sizes = [scaled_size(height, width, scale) for scale in scales] or [(height, width)]
    return 4 * height * width + 3 * sum(rows * columns for rows, columns in sizes)


def worker_options(
    num_workers: int, timeout: float, sample_bytes: int, rank: int
) -> dict[str, Any]:
    """The worker-related arguments of a DataLoader; a worker sends `sample_bytes` at a time."""
    workers = fitting_workers(worker_count(num_workers), sample_bytes, tells=rank == 0)
    return {
        "num_workers": workers.processes,
        "prefetch_factor": workers.ready if workers.processes else None,
        "persistent_workers": workers.processes > 0,
        "pin_memory": torch.cuda.is_available(),
        "timeout": timeout if workers.processes else 0,
        "worker_init_fn": prepare_worker,
        # A loader draws a seed for its workers; this must not advance dropout's generator.
        "generator": torch.Generator(),
    }


class Calls(Dataset[T]):
    """Item i is function(i)."""

    def __init__(self, function: Callable[[int], T]) -> None:
        self.function = function

    def __getitem__(self, index: int) -> T:
        return self.function(index)


def in_workers(function: Callable[[int], T], count: int, name: str) -> Iterator[T]:
    """Yield function(0) to function(count - 1), called in one process per core, with a bar.

    The function should return its errors, because exceptions lose their type on the way.
    """
    loader = DataLoader(
        Calls(function),
        batch_size=None,
        sampler=range(count),
        num_workers=worker_count(WORKERS),
    )
    yield from tqdm(loader, desc=name, unit="image")
