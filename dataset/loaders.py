"""Loaders for training and evaluation, the same samples on any number of processes and workers."""

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset.base import SegmentationDataset
from dataset.description import Split
from dataset.registry import open_dataset
from dataset.skipping import SampleReader
from dataset.transforms import (
    LARGEST_SCALE,
    TEST_SCALES,
    Pair,
    Sample,
    byte_tensor,
    normalised,
    scaled_images,
    training_sample,
)
from dataset.worker_signals import only_parent_ends
from utils.errors import PansError


class TooFewImages(PansError):
    """The training split does not fill one step on every process."""


class EvaluationSample(NamedTuple):
    """One validation or test image at every scale it is looked at.

    Attributes:
        images: one (3, h, w) float32 tensor a scale, normalised.
        label: (H, W) uint8, class indices at the size of the file.
        index: position in the split.
        name: path of the image, relative to the folder of the split.
        picture: (H, W, 3) uint8, the picture as it is in the file.
    """

    images: list[Tensor]
    label: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    name: str
    picture: Tensor


def random_stream(*key: int) -> random.Random:
    """Make a generator that depends on `key` alone, such as (seed, epoch, index)."""
    # A string is hashed in whole, where arithmetic on the parts would let keys collide.
    return random.Random("/".join(map(str, key)))


def worker_count(requested: int) -> int:
    """Limit `requested` loader workers to this process's share of the CPUs it may use.

    The processes of one machine (LOCAL_WORLD_SIZE, set by torchrun) share them evenly.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux tells which CPUs a process may use
        cpus = os.cpu_count() or 1
    return min(requested, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) keys of one rank in an order drawn from (seed, epoch).

    The key carries the epoch because persistent workers keep a copy of the data set and would
    not see it change there. Ranks get disjoint shares of equal length; the tail that does not
    share out is left to chance in the next epoch. The length is that of a whole epoch.
    """

    def __init__(
        self, images: int, *, batch_size: int, seed: int, rank: int, world_size: int
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the next epoch, and how many of its batches were already trained on."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        return self.images // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = list(range(self.images))
        random_stream(self.seed, self.epoch).shuffle(order)
        share = order[self.rank :: self.world_size][: len(self)]
        for index in share[self.start_batch * self.batch_size :]:
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
        """The first readable sample of an order drawn for (seed, epoch, index) alone."""
        order = list(range(len(self.reader)))
        random_stream(self.seed, epoch, index, len(order)).shuffle(order)
        for other in order:
            if (pair := self.reader.read(other)) is not None:
                return pair
        raise self.reader.nothing_readable()


class EvaluationSamples(Dataset[EvaluationSample | None]):
    """Whole images at the given scales, each decoded once; no scales means their own size.

    A sample that is skipped is None.
    """

    def __init__(self, reader: SampleReader, scales: Sequence[float] = ()) -> None:
        self.reader = reader
        self.scales = scales

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> EvaluationSample | None:
        pair = self.reader.read(index)
        if pair is None:
            return None
        image, label = pair
        return EvaluationSample(
            images=scaled_images(image, self.scales) if self.scales else [normalised(image)],
            label=byte_tensor(label),
            index=index,
            name=self.reader.pictures.names[index],
            picture=byte_tensor(image),
        )


class EvaluationLoader(DataLoader[Any]):
    """Gives the samples that were not skipped."""

    def __iter__(self) -> Iterator[EvaluationSample]:  # type: ignore[override]
        return (sample for sample in super().__iter__() if sample is not None)


def reader_of(loader: DataLoader[Any]) -> SampleReader:
    """What a loader of this module reads its samples by."""
    reader: SampleReader = loader.dataset.reader  # type: ignore[attr-defined]
    return reader


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
    """Load the train split in shuffled, whole batches.

    Args:
        accumulate: the batches of a step, of which there must be one at least.
        dataset: its name in `dataset.registry`.
        skip_bad_files: put a sample drawn from (seed, epoch, index) in an unreadable one's place.
        timeout: seconds to wait for a batch of the workers; 0 waits for ever.

    Yields:
        Sample of image (batch_size, 3, crop_size, crop_size) and label (batch_size, crop_size,
        crop_size). Call `loader.sampler.set_epoch(epoch)` before every epoch.

    Raises:
        TooFewImages: the split has fewer images than a step of all processes takes.
    """
    pictures = open_dataset(dataset, root, "train")
    _require_a_step(pictures, batch_size, accumulate, world_size)
    sampler = EpochSampler(
        len(pictures), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size
    )
    return DataLoader(
        TrainingSamples(SampleReader(pictures, skip_bad_files), crop_size, seed),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        **worker_options(num_workers, timeout),
    )


def _require_a_step(
    pictures: SegmentationDataset, batch_size: int, accumulate: int, world_size: int
) -> None:
    if len(pictures) // world_size // batch_size < accumulate:
        batches = "one batch" if accumulate == 1 else f"{accumulate} batches"
        remedy = "" if accumulate == 1 else ", --accumulate"
        raise TooFewImages(
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
) -> DataLoader[EvaluationSample]:
    """Load whole images one at a time, without a batch dimension, each on one rank only.

    Args:
        dataset: its name in `dataset.registry`.
        skip_bad_files: leave out a sample that cannot be read.
        multi_scale: True for the five test scales, False for the largest of them; None for
            validation, at full size.
        timeout: seconds to wait for an image of the workers; 0 waits for ever.

    Yields:
        EvaluationSample. Sizes may differ between images, and the number of images between ranks
        by one.
    """
    scales = {None: (), True: TEST_SCALES, False: (LARGEST_SCALE,)}[multi_scale]
    pictures = open_dataset(dataset, root, split)
    samples = EvaluationSamples(SampleReader(pictures, skip_bad_files), scales)
    return EvaluationLoader(
        samples,
        batch_size=None,
        sampler=range(rank, len(samples), world_size),
        **worker_options(num_workers, timeout),
    )


def worker_options(num_workers: int, timeout: float = 0) -> dict[str, Any]:
    """A DataLoader's arguments about its workers; `timeout` as for the loaders."""
    workers = worker_count(num_workers)
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "timeout": timeout if workers else 0,
        "worker_init_fn": only_parent_ends,
        # A loader draws a seed for its workers, which shall not come from dropout's generator.
        "generator": torch.Generator(),
    }
