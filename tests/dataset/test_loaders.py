import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DistributedSampler

from dataset import loaders
from utils.errors import PansError
from utils.reading import Unreadable

MakeTree = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("two_cpus")


def training(root: Path, **changes: Any) -> torch.utils.data.DataLoader[Any]:
    settings: dict[str, Any] = {
        "batch_size": 2,
        "crop_size": 48,
        "seed": 42,
        "num_workers": 0,
        "rank": 0,
        "world_size": 1,
    }
    return loaders.training_loader(root, **(settings | changes))


def evaluation(root: Path, split: Any, **changes: Any) -> torch.utils.data.DataLoader[Any]:
    settings: dict[str, Any] = {
        "multi_scale": True,
        "num_workers": 0,
        "rank": 0,
        "world_size": 1,
    }
    return loaders.evaluation_loader(root, split, **(settings | changes))


def epoch_of(
    loader: torch.utils.data.DataLoader[Any], epoch: int, start_batch: int = 0
) -> list[Any]:
    assert isinstance(loader.sampler, loaders.EpochSampler)
    loader.sampler.set_epoch(epoch, start_batch)
    return list(loader)


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.image, other.image) and torch.equal(one.label, other.label)
        for one, other in zip(first, second, strict=True)
    )


def test_training_batches(make_tree: MakeTree) -> None:
    loader = training(make_tree(train=5))
    batches = epoch_of(loader, 0)
    assert len(loader) == len(batches) == 2
    for image, label in batches:
        assert (image.shape, image.dtype) == ((2, 3, 48, 48), torch.uint8)
        assert (label.shape, label.dtype) == ((2, 48, 48), torch.uint8)


def test_samples_do_not_depend_on_the_number_of_workers(make_tree: MakeTree) -> None:
    root = make_tree(train=5)
    alone, helped = training(root), training(root, num_workers=2)
    assert helped.num_workers == 2
    for epoch in (0, 1):
        assert same(epoch_of(alone, epoch), epoch_of(helped, epoch))


def test_samples_change_with_epoch_and_seed(make_tree: MakeTree) -> None:
    root = make_tree(train=1)
    loader = training(root, batch_size=1)
    first = epoch_of(loader, 0)
    assert same(first, epoch_of(loader, 0))
    assert not same(first, epoch_of(loader, 1))
    assert not same(first, epoch_of(training(root, batch_size=1, seed=43), 0))


def test_a_sample_does_not_depend_on_the_worker(make_tree: MakeTree) -> None:
    root = make_tree(train=4)

    def images(rank: int, world_size: int) -> dict[int, Any]:
        loader = training(root, batch_size=1, rank=rank, world_size=world_size)
        indices = [index for _, index in loader.sampler]
        return dict(zip(indices, epoch_of(loader, 0), strict=True))

    whole = images(0, 1)
    shared = images(0, 2) | images(1, 2)
    assert sorted(whole) == sorted(shared) == [0, 1, 2, 3]
    assert all(same([whole[index]], [shared[index]]) for index in whole)


def test_an_epoch_can_be_entered_in_the_middle(make_tree: MakeTree) -> None:
    loader = training(make_tree(train=7))
    whole = epoch_of(loader, 3)
    rest = epoch_of(loader, 3, start_batch=1)
    assert same(whole[1:], rest)
    assert len(loader) == 3
    assert same(epoch_of(loader, 3), whole)


def keys(images: int, rank: int, world_size: int, epoch: int = 0) -> list[tuple[int, int]]:
    sampler = loaders.EpochSampler(images, batch_size=2, rank=rank, world_size=world_size)
    sampler.set_epoch(epoch)
    assert len(list(sampler)) == len(sampler)
    return list(sampler)


@pytest.mark.parametrize(("world_size", "share"), [(1, 11), (2, 6), (3, 4), (20, 1)])
def test_ranks_share_an_epoch_evenly_with_repeats(world_size: int, share: int) -> None:
    """As the published code does, whose sampler is torch's with its seed of 0."""
    for epoch in (0, 3):
        shares = [keys(11, rank, world_size, epoch) for rank in range(world_size)]
        assert [len(one) for one in shares] == [share] * world_size
        assert {index for one in shares for _, index in one} == set(range(11))
        for rank, found in enumerate(shares):
            torchs = DistributedSampler(range(11), world_size, rank, shuffle=True, seed=0)  # type: ignore[arg-type]
            torchs.set_epoch(epoch)
            assert [index for _, index in found] == list(torchs)


@pytest.mark.parametrize(("processes", "steps"), [(1, 2562), (4, 641), (8, 320)])
def test_steps_of_an_epoch_of_streethazards(processes: int, steps: int) -> None:
    """5125 images, batches of 2, padded to equal shares: 4 x 1282, of which 641 batches."""
    sampler = loaders.EpochSampler(5125, batch_size=2, rank=processes - 1, world_size=processes)
    batches = torch.utils.data.BatchSampler(sampler, 2, drop_last=True)
    assert len(batches) == len(list(batches)) == steps
    sampler.set_epoch(1, start_batch=600 if processes == 4 else 0)
    assert len(list(batches)) == (41 if processes == 4 else steps)


def test_order_is_reshuffled_each_epoch() -> None:
    orders = [[index for _, index in keys(50, 0, 1, epoch)] for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in [*orders, list(range(50))]}) == 3
    assert {epoch for epoch, _ in keys(50, 0, 1, epoch=7)} == {7}


def test_too_few_images_for_one_batch_each(make_tree: MakeTree) -> None:
    root = make_tree(train=5)
    assert len(training(root, world_size=2)) == 1
    assert len(training(root, world_size=3)) == 1  # one image comes twice
    with pytest.raises(PansError) as caught:
        training(root, world_size=5)
    message = str(caught.value)
    assert "train.odgt lists 5 images" in message
    assert "batch of 2 on each of 5 processes; lower --batch_size" in message


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_test_image_counts_once(
    make_tree: MakeTree, world_size: int, num_workers: int
) -> None:
    root = make_tree(test=5, size=(24, 16))
    found = [
        (sample.index, sample.name)
        for rank in range(world_size)
        for sample in evaluation(
            root, "test", rank=rank, world_size=world_size, num_workers=num_workers
        )
    ]
    assert sorted(found) == [(index, f"images/test/t1/{index}.png") for index in range(5)]


def test_test_sample_holds_every_scale_and_the_raw_picture(make_tree: MakeTree) -> None:
    root = make_tree(test=1, size=(128, 72))
    (sample,) = evaluation(root, "test")
    # 72 * (300, 375, 450, 525)/720 and 72 * 1000/1280, rounded up to multiples of 8
    assert [tuple(image.shape) for image in sample.images] == [
        (3, 32, 56),
        (3, 40, 72),
        (3, 48, 80),
        (3, 56, 96),
        (3, 56, 104),
    ]
    raw = Image.open(root / "StreetHazards/test" / sample.name).convert("RGB")
    assert np.array_equal(sample.picture.numpy(), np.array(raw))
    assert (sample.label.shape, sample.label.dtype) == ((72, 128), torch.uint8)
    resized = np.array(raw.resize((104, 56), Image.Resampling.BILINEAR))
    assert np.array_equal(sample.images[-1].permute(1, 2, 0), resized)


def test_single_scale_is_the_largest(make_tree: MakeTree) -> None:
    root = make_tree(test=1, size=(128, 72))
    (five,), (one,) = evaluation(root, "test"), evaluation(root, "test", multi_scale=False)
    assert len(one.images) == 1
    assert torch.equal(one.images[0], five.images[-1])


def test_labels_and_pictures_can_come_at_the_size_of_the_input(make_tree: MakeTree) -> None:
    root = make_tree(test=1, size=(1280, 720))
    (sample,) = evaluation(root, "test", multi_scale=False, at_input_size=True)
    folder = root / "StreetHazards/test"
    raw = Image.open(folder / sample.name).convert("RGB")
    label = Image.open(folder / sample.name.replace("images", "annotations", 1))
    picture = np.array(raw.resize((1000, 568), Image.Resampling.BILINEAR))
    assert np.array_equal(sample.picture.numpy(), picture)
    nearest = np.array(label.resize((1000, 568), Image.Resampling.NEAREST))
    assert np.array_equal(sample.label.numpy(), nearest - 1)  # 0, to be ignored, becomes 255
    (own,) = evaluation(root, "test", multi_scale=False)
    assert own.label.shape == (720, 1280)
    assert torch.equal(sample.images[0], own.images[0])


def test_test_split_is_enough_to_test(make_tree: MakeTree) -> None:
    root = make_tree(test=2)
    assert [path.name for path in (root / "StreetHazards").iterdir()] == ["test"]
    assert len(evaluation(root, "test")) == 2


def test_validation_is_whole_images_of_any_size(make_tree: MakeTree) -> None:
    root = make_tree(validation=2)
    folder = root / "StreetHazards/train"
    for kind, mode in (("images", "RGB"), ("annotations", "L")):
        Image.new(mode, (40, 30), 5).save(folder / kind / "validation/t1/1.png")
    first, second = evaluation(root, "validation", multi_scale=None)
    assert [image.shape for image in first.images] == [(3, 64, 96)]
    assert [image.shape for image in second.images] == [(3, 30, 40)]
    assert (first.label.shape, second.label.shape) == ((64, 96), (30, 40))
    assert (second.label == 4).all()
    assert (second.images[0][0] == 5).all()


def test_train_split_can_be_validated_on(make_tree: MakeTree) -> None:
    samples = list(evaluation(make_tree(train=3), "train", multi_scale=None))
    assert [tuple(sample.images[0].shape) for sample in samples] == [(3, 64, 96)] * 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_workers_error_reaches_the_user_as_one_line(
    make_tree: MakeTree, num_workers: int
) -> None:
    root = make_tree(test=2)
    path = root / "StreetHazards/test/images/test/t1/1.png"
    path.unlink()
    with pytest.raises(Unreadable) as caught:
        list(evaluation(root, "test", num_workers=num_workers))
    assert str(caught.value) == f"{path} is missing; run 'python -m dataset.prepare'"
    # Workers that the garbage collector finds in a traceback take 5 s to end.
    traceback.clear_frames(caught.tb)


@pytest.mark.parametrize(
    ("requested", "cpus", "local_processes", "expected"),
    [
        (16, 2, None, 2),
        (1, 8, None, 1),
        (16, 8, "4", 2),
        (16, 7, "4", 1),
        (16, 2, "4", 0),
        (0, 8, "1", 0),
    ],
)
def test_workers_fit_the_cpus(
    monkeypatch: pytest.MonkeyPatch,
    requested: int,
    cpus: int,
    local_processes: str | None,
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cpus)))
    if local_processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_processes)
    assert loaders.worker_count(requested) == expected


def test_workers_are_kept_between_epochs(make_tree: MakeTree) -> None:
    loader = training(make_tree(train=4), num_workers=16)
    assert (loader.num_workers, loader.persistent_workers) == (2, True)
    assert not training(make_tree(train=4)).persistent_workers


def test_random_streams_differ_between_keys_of_equal_sum() -> None:
    draws = {
        key: loaders.random_stream(*key).random() for key in [(1, 2), (2, 1), (12,), (1, 2, 0)]
    }
    assert len(set(draws.values())) == 4
    assert loaders.random_stream(1, 2).random() == draws[1, 2]
