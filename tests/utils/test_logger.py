import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer
from tensorboard.util.tensor_util import make_ndarray

from argparser import parse_options
from dataset.readers.streethazards import STREETHAZARDS
from report.results import log_segmentation
from report.visualize import confusion_matrix_figure
from utils.figures import render
from utils.logger import Logger


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def text(folder: Path, tag: str) -> str:
    (event,) = read(folder).Tensors(f"{tag}/text_summary")
    return make_ndarray(event.tensor_proto).item().decode()


def picture(folder: Path, tag: str) -> np.ndarray:
    (event,) = read(folder).Images(tag)
    path = folder.parent / "picture.png"
    path.write_bytes(event.encoded_image_string)
    return np.asarray(Image.open(path))


def test_scalars_have_their_values_and_steps(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        for step, loss in ((0, 1.5), (10, 0.75), (20, 0.375)):
            logger.scalars({"train/loss": loss, "train/lr": step}, step)
    assert points(tmp_path, "train/loss") == [(0, 1.5), (10, 0.75), (20, 0.375)]
    assert points(tmp_path, "train/lr") == [(0, 0.0), (10, 10.0), (20, 20.0)]


@pytest.mark.parametrize("start", [0, 5])
def test_points_of_an_interrupted_run_are_not_doubled(tmp_path: Path, start: int) -> None:
    with Logger(tmp_path) as logger:
        logger.start_at(0)
        for step in range(10):
            logger.scalars({"loss": step}, step)
    with Logger(tmp_path) as logger:
        logger.start_at(start)
        for step in range(start, 8):
            logger.scalars({"loss": 100 + step}, step)
    expected = [(step, float(step if step < start else 100 + step)) for step in range(8)]
    assert points(tmp_path, "loss") == expected


def test_a_test_alone_keeps_the_points_of_training(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.start_at(0)
        logger.scalars({"loss": 1.0}, 7)
    with Logger(tmp_path) as logger:
        logger.scalars({"test/AUROC": 91.125}, 0)
    assert points(tmp_path, "loss") == [(7, 1.0)]
    assert points(tmp_path, "test/AUROC") == [(0, 91.125)]


def test_images_come_back_pixel_by_pixel(tmp_path: Path) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    with Logger(tmp_path) as logger:
        logger.image("sample", shown, 3)
    assert np.array_equal(picture(tmp_path, "sample"), shown)


def test_segmentation_is_drawn_and_has_a_curve_for_every_class_that_is_present(
    tmp_path: Path,
) -> None:
    matrix = torch.zeros((13, 13), dtype=torch.int64)
    matrix[0, :2] = torch.tensor([3, 1])
    matrix[2, 2] = 5
    scores = {"Mean IoU": 0.875, "Class IoU": {0: 0.75, 1: math.nan, 2: 1.0}}
    with Logger(tmp_path) as logger:
        log_segmentation(logger, "validation", scores, matrix, STREETHAZARDS, 4)
    tags = read(tmp_path).Tags()
    curves = ["validation_iou/unlabeled", "validation_iou/fence"]
    assert tags["scalars"] == ["validation/Mean IoU", *curves]
    assert [points(tmp_path, tag) for tag in curves] == [[(4, 0.75)], [(4, 1.0)]]
    assert sorted(tags["images"]) == ["validation/confusion_matrix", "validation_iou/bars"]
    expected = render(confusion_matrix_figure(matrix.numpy(), STREETHAZARDS.class_names))
    assert np.array_equal(picture(tmp_path, "validation/confusion_matrix"), expected)


def test_options_are_a_table(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.table("options", parse_options(["--default", "--name", "a|b"]).to_dict())
    lines = text(tmp_path, "options").splitlines()
    assert lines[:2] == ["| option | value |", "| --- | --- |"]
    assert "| crop_size | 450 |" in lines
    assert "| ckpt | None |" in lines
    assert r"| name | a\|b |" in lines  # a bare bar would end the cell
    assert len(lines) == 2 + len(parse_options([]).to_dict())


def test_hparams_join_the_run_itself(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.hparams(
            {"lr": 0.007, "msp": True, "ckpt": None, "head": "PPM"}, {"test/AUROC": 91.125}, 6
        )
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    events = read(tmp_path)
    content = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    found = start.session_start_info.hparams
    assert found["lr"].number_value == 0.007
    assert found["msp"].string_value == "True"
    assert found["ckpt"].string_value == "None"
    assert found["head"].string_value == "PPM"
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["test/AUROC"]
    assert points(tmp_path, "test/AUROC") == [(6, 91.125)]


def test_layout_groups_tags_into_charts(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.layout({"training": {"loss": ["train/loss", "validation/loss"]}, "test": {}})
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    assert [category.title for category in layout.category] == ["training", "test"]
    (chart,) = layout.category[0].chart
    assert chart.title == "loss"
    assert list(chart.multiline.tag) == ["train/loss", "validation/loss"]


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Logger(None) as logger:
        logger.start_at(3)
        logger.scalars({"loss": 1.0}, 0)
        logger.image("sample", np.zeros((2, 2, 3), dtype=np.uint8), 0)
        logger.pr_curve("curve", np.array([1, 2]), np.array([0, 1]), 0)
        logger.table("options", {"lr": 1})
        logger.hparams({"lr": 1}, {"AUROC": 1.0}, 0)
        logger.layout({"training": {"loss": ["loss"]}})
        logger.text("table", "| a |", 0)
        logger.histogram("scores", np.array([0.0, 1.0]), np.array([3]), 0)
        logger.flush()
    assert list(tmp_path.iterdir()) == []


def test_flush_puts_points_on_the_disk(tmp_path: Path) -> None:
    logger = Logger(tmp_path)
    logger.scalars({"loss": 1.0}, 0)
    logger.flush()
    assert points(tmp_path, "loss") == [(0, 1.0)]
    logger.close()
    logger.scalars({"loss": 2.0}, 1)
    assert points(tmp_path, "loss") == [(0, 1.0)]


def test_points_are_kept_when_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, begun in enumerate((5000.0, 5000.0, 1400.0, 1400.0, 2000.0)):
        clock = SimpleNamespace(time=lambda begun=begun: begun)
        monkeypatch.setattr(event_file_writer, "time", clock)
        monkeypatch.setattr("utils.logger.time", clock)
        with Logger(tmp_path) as logger:
            logger.start_at(10 * number)
            for step in range(10 * number, 10 * number + 15):
                logger.scalars({"loss": number}, step)
    assert [step for step, _ in points(tmp_path, "loss")] == list(range(55))


def test_a_test_replaces_an_earlier_one_once_it_is_complete(tmp_path: Path) -> None:
    def log(value: float) -> None:
        with Logger(tmp_path) as logger, logger.replacing_test():
            logger.scalars({"test/AUROC": value}, 7)
            logger.flush()
            if value < 0:
                raise ZeroDivisionError

    log(1.0)
    (first,) = (path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        log(-1.0)
    (now,) = (path.read_bytes() for path in tmp_path.iterdir())
    assert now == first
    assert points(tmp_path, "test/AUROC") == [(7, 1.0)]
    log(2.0)
    assert points(tmp_path, "test/AUROC") == [(7, 2.0)]
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_point_there_is_no_file(tmp_path: Path) -> None:
    with Logger(tmp_path / "x") as logger:
        logger.start_at(7)
        with logger.replacing_test():
            logger.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_log_with_one_warning(
    tmp_path: Path,
    files_of_at_most: Callable[[int], AbstractContextManager[None]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    with files_of_at_most(2000), Logger(tmp_path) as logger:
        for step in range(200):
            logger.scalars({"loss": 1.0}, step)
            logger.flush()
    error = capfd.readouterr().err
    assert error.count("WARNING") == 1
    assert error.strip().endswith(
        "cannot be written to (File too large): nothing further is logged for TensorBoard, the run "
        "continues"
    )
    assert "Traceback" not in error
