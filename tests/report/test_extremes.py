"""The worst and best images: which they are, how many are kept, and the same from two processes."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataset.loaders import EvaluationSample
from metrics import AnomalyMetrics
from report.extremes import Extremes
from utils.logger import Logger

SHOWN, IMAGES = 2, 23


def metrics_of(index):
    """Of every fifth image there are none; two images have the same AUROC."""
    if index % 5 == 4:
        return None
    rng = np.random.default_rng(index)
    auroc, aupr = rng.random(2)
    return AnomalyMetrics(0.5 if index in (1, 2) else auroc, aupr, 0.25)


def sample_of(index):
    picture = torch.full((4, 6, 3), index, dtype=torch.uint8)
    label = torch.full((4, 6), index, dtype=torch.uint8)
    return EvaluationSample([], label, index, f"t5/{index}.png", picture)


def draw(picture, label, prediction, score):
    """A panel that says which maps it was drawn from."""
    assert picture.shape == (4, 6, 3)
    index = int(picture[0, 0, 0])
    assert [int(maps[0, 0]) for maps in (label, prediction, score)] == [index, index + 1, index + 2]
    return np.full((10, 800, 3), index, np.uint8)


def offer_all(extremes, indices):
    for index in indices:
        sample = sample_of(index)
        prediction, score = sample.label.long() + 1, sample.label.float() + 2
        extremes.offer(sample, prediction, score, metrics_of(index))


def logged(folder):
    """{tag: index of the image in the panel}."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    found = {}
    for tag in events.Tags()["images"]:
        (event,) = events.Images(tag)
        panel = np.asarray(Image.open(BytesIO(event.encoded_image_string)))
        assert panel[:-10].min() < 100  # the heading
        found[tag] = int(panel[-1, 0, 0])
    return found


def expected():
    ranked = {index: metrics_of(index) for index in range(IMAGES) if metrics_of(index)}
    panels = {}
    for name in ("AUROC", "AUPR"):
        order = sorted(ranked, key=lambda index: (getattr(ranked[index], name.lower()), index))
        for place in range(SHOWN):
            panels[f"worst and best/worst {name} {place + 1}"] = order[place]
            panels[f"worst and best/best {name} {place + 1}"] = order[-1 - place]
    return panels


def test_the_extremes_are_those_of_sorting_all_images(tmp_path):
    extremes = Extremes(SHOWN, draw)
    offer_all(extremes, range(IMAGES))
    with Logger(tmp_path) as logger:
        extremes.log(logger, 3)
    assert logged(tmp_path) == expected()


def test_maps_are_kept_of_the_extremes_only():
    """In rising and falling order of quality, so that every image is an extreme for a while."""
    for order in (1, -1):
        extremes = Extremes(SHOWN, draw)
        for index in range(50):
            quality = 0.5 + order * index / 200
            sample = sample_of(index)
            metrics = AnomalyMetrics(quality, quality, 0.0)
            extremes.offer(sample, sample.label, sample.label.float(), metrics)
            assert len(extremes._maps) <= 4 * SHOWN


@pytest.mark.parametrize(("shown", "indices"), [(0, range(9)), (3, []), (3, [4])])
def test_without_images_nothing_is_logged(tmp_path, shown, indices):
    extremes = Extremes(shown, draw)
    offer_all(extremes, indices)
    with Logger(tmp_path) as logger:
        extremes.log(logger, 0)
    assert logged(tmp_path) == {}


def test_fewer_images_than_shown_are_all_shown(tmp_path):
    extremes = Extremes(5, draw)
    offer_all(extremes, [0, 1])
    with Logger(tmp_path) as logger:
        extremes.log(logger, 0)
    found = logged(tmp_path)
    assert len(found) == 8
    assert set(found.values()) == {0, 1}


def _log_part(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    extremes = Extremes(SHOWN, draw)
    offer_all(extremes, range(rank, IMAGES, 2))
    with Logger(folder / "events" if rank == 0 else None) as logger:
        extremes.log(logger, 3)
    dist.destroy_process_group()


def test_two_processes_show_the_same_as_one(tmp_path: Path):
    mp.start_processes(_log_part, (tmp_path,), 2, start_method="fork")
    assert logged(tmp_path / "events") == expected()
