"""The pictures of --predict: heat scales, overlays, panels and contact sheets, pixel by pixel."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dataset.readers.streethazards import STREETHAZARDS
from modules.scores import formulas
from modules.scores.formulas import bounds_of
from modules.scores.registry import SCORES
from report.visualize import (
    HeatScale,
    SheetEntry,
    colorize,
    contact_sheet,
    heat_map,
    overlay,
    prediction_panel,
)

CLASSES = 13


def test_scores_of_any_logits_are_within_their_bounds() -> None:
    """Also of the extreme ones: alike in all classes, and as far apart as cosines can be."""
    cosine = torch.rand(1, CLASSES, 40, 40) * 20 - 10
    cosine[..., 0] = 10.0
    cosine[..., 1] = -10.0
    cosine[..., 2] = -10.0
    cosine[:, 3, :, 2] = 10.0
    samples = torch.randn(6, CLASSES, 20, 20) * 50
    maps = {
        "prototype": formulas.cosine_score([cosine], (40, 40)),
        "prototype_margin": formulas.prototype_margin(cosine),
        "msp": formulas.msp_score(cosine.softmax(1)),
        "msp_crf": formulas.msp_score(cosine.softmax(1)),
        "entropy": formulas.entropy(cosine),
        "mc_dropout": formulas.mutual_information(samples),
        "maxlogit": formulas.max_logit(cosine),
        "energy": formulas.energy(cosine),
    }
    no_bounds = {name for name in SCORES if bounds_of(name, CLASSES, "cosine") is None}
    assert no_bounds == {"standardized_maxlogit", "class_mean", "mahalanobis", "knn"}
    assert set(SCORES) - no_bounds == set(maps)
    for name, score in maps.items():
        bounds = bounds_of(name, CLASSES, "cosine")
        assert bounds is not None
        low, high = bounds
        assert low - 1e-5 <= score.min() <= score.max() <= high + 1e-5, name
        if name != "mc_dropout":  # the bounds are reached
            assert score.min() == pytest.approx(low, abs=2e-4), name
            assert score.max() == pytest.approx(high, abs=2e-4), name


def test_unbounded_scores_have_no_bounds() -> None:
    for name in ("maxlogit", "energy", "standardized_maxlogit"):
        assert bounds_of(name, CLASSES, "standard") is None
    assert bounds_of("msp", 4, "standard") == (0.0, 0.75)
    assert bounds_of("entropy", 4, "standard") == (0.0, math.log(4))


def test_a_threshold_is_in_the_middle_of_one_scale_for_all_pictures() -> None:
    for score in (np.zeros((4, 4)), np.linspace(0, 1, 16).reshape(4, 4)):
        assert HeatScale((0, 1), 0.2).limits(score) == pytest.approx((0.0, 0.4))
        assert HeatScale((0, 1), 0.9).limits(score) == pytest.approx((0.8, 1.0))
        assert HeatScale((-10, 10), -8).limits(score) == pytest.approx((-10, -6))
        assert HeatScale((0, 1), 1.5).limits(score) == (0, 1)  # which no score reaches
        assert HeatScale(None, -8).limits(score) == (-16, 0)
        assert HeatScale(None, 0).limits(score) == (-1, 1)


def test_without_a_threshold_the_scale_spans_at_least_a_fifth_of_the_range() -> None:
    gradient = np.linspace(0.1, 0.12, 101)[None]
    low, high = np.percentile(gradient, (1, 99))
    assert HeatScale((0, 1)).limits(gradient) == pytest.approx((low, low + 0.2))
    assert HeatScale(None).limits(gradient) == pytest.approx((low, high))
    assert HeatScale((0, 1)).limits(gradient + 0.85) == pytest.approx((0.8, 1.0))
    wide = np.linspace(0.1, 0.6, 101)[None]
    assert HeatScale((0, 1)).limits(wide) == pytest.approx(tuple(np.percentile(wide, (1, 99))))
    assert HeatScale((0, 1)).limits(np.full((3, 3), np.nan)) == pytest.approx((0, 0.2))
    # A tenth of the least span is all that the harmless gradient gets of the colours.
    assert heat_map(gradient, HeatScale((0, 1)).limits(gradient)).max() < 64


def test_the_overlay_keeps_normal_regions_and_covers_anomalies_by_four_fifths() -> None:
    picture = np.full((1, 5, 3), (100, 150, 200), dtype=np.uint8)
    score = np.array([[0.0, 0.1, 0.5, 1.0, np.nan]], dtype=np.float32)
    drawn = overlay(picture, score, (0.0, 1.0)).astype(int)
    heat = heat_map(score, (0.0, 1.0)).astype(float)
    assert drawn[0, 0].tolist() == [100, 150, 200]
    assert np.abs(drawn[0, 1] - picture[0, 1]).max() <= 2
    for x, share in ((2, 0.2), (3, 0.8), (4, 0.8)):
        expected = (1 - share) * picture[0, x] + share * heat[0, x]
        assert np.abs(drawn[0, x] - expected).max() <= 1, x
    constant = overlay(picture, np.where(np.isnan(score), score, 0.3), (0.3, 0.3))
    assert constant[0, :4].tolist() == [[100, 150, 200]] * 4
    assert constant[0, 4].tolist() == [20, 234, 244]  # cyan over the picture


@pytest.mark.parametrize(("side", "width"), [(40, 1), (720, 2)])
def test_the_mask_s_outline_is_white_inside_and_black_outside(side: int, width: int) -> None:
    picture = np.full((side, side, 3), 90, dtype=np.uint8)
    mask = np.zeros((side, side), dtype=bool)
    mask[10:30, :20] = True  # ends at the picture's edge, where there is no outline
    drawn = overlay(picture, np.zeros((side, side)), (0.0, 1.0), mask)[..., 0]
    row = drawn[20]
    assert (row[: 20 - width] == 90).all()
    assert (row[20 - width : 20] == 255).all()
    assert (row[20 : 20 + width] == 0).all()
    assert (row[20 + width :] == 90).all()
    column = drawn[:, 5]
    assert (column[10 - width : 10] == 0).all()
    assert (column[10 : 10 + width] == 255).all()
    assert (column[10 + width : 30 - width] == 90).all()
    expected = {1: (58, 60), 2: (112, 122)}
    assert ((drawn == 255).sum(), (drawn == 0).sum()) == expected[width]


def maps_of(height: int, width: int) -> dict[str, Any]:
    image = np.full((height, width, 3), (10, 200, 30), dtype=np.uint8)
    return {
        "image": image,
        "prediction": np.full((height, width), 10),
        "overlaid": np.full_like(image, (30, 30, 250)),
        "heat": np.full_like(image, (250, 120, 10)),
        "limits": (0.0, 0.4),
        "info": STREETHAZARDS,
    }


def assert_shows_every_class(legend: np.ndarray) -> None:
    for index in range(CLASSES):
        assert (legend == STREETHAZARDS.palette[index]).all(axis=-1).any(), index


def test_the_panel_has_image_prediction_overlay_and_score_in_two_rows() -> None:
    panel = prediction_panel(**maps_of(90, 160))
    assert panel.dtype == np.uint8
    assert panel.shape[1:] == (960, 3)
    assert abs(panel.shape[0] - (2 * (35 + 270) + 70)) <= 1
    first, second = 35 + 135, 35 + 270 + 35 + 135
    assert panel[first, 240].tolist() == [10, 200, 30]
    assert panel[first, 720].tolist() == STREETHAZARDS.palette[10].tolist()
    assert panel[second, 240].tolist() == [30, 30, 250]
    assert panel[second, 720].tolist() == [250, 120, 10]
    for top, left in ((0, 0), (0, 480), (305, 0), (305, 480)):
        assert panel[top : top + 34, left : left + 480].min() < 100  # a title
    bar = panel[305 + 17, 480 + 302 : 480 + 400].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert bar[:5].max() < 40
    assert bar[-8:].min() > 180
    assert_shows_every_class(panel[-68:])
    assert panel[-3:].min() == 255


def test_the_legend_names_the_outline_where_there_is_a_threshold() -> None:
    plain = prediction_panel(**maps_of(90, 160))
    with_threshold = prediction_panel(**maps_of(90, 160), threshold=0.2)
    assert_shows_every_class(with_threshold[-93:])
    assert with_threshold.shape[0] - plain.shape[0] == 25  # a line more


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (8, 8), (30, 1200), (8, 6000), (900, 30), (6000, 8)]
)
def test_panels_of_any_shape_show_all_four_pictures(height: int, width: int) -> None:
    panel = prediction_panel(**maps_of(height, width))
    assert panel.shape[1] == 960
    assert 300 < panel.shape[0] < 1700
    colours = [(10, 200, 30), STREETHAZARDS.palette[10], (30, 30, 250), (250, 120, 10)]
    seen = [int((panel == colour).all(axis=-1).sum()) for colour in colours]
    assert min(seen) > 500
    assert_shows_every_class(panel[-70:])


def test_names_of_classes_and_pictures_are_drawn_literally_and_fit() -> None:
    names = [f"$class_{{ {'x' * (number % 30)}\u65e5 {number}" for number in range(40)]
    info = replace(STREETHAZARDS, class_colours=dict.fromkeys(names, (9, 80, 200)))
    panel = prediction_panel(**{**maps_of(90, 160), "info": info})
    assert panel[:, :2].min() == 255
    assert panel[610:, -2:].min() == 255
    assert panel[-3:].min() == 255
    assert panel[612:620].min() == 255  # the legend does not reach the pictures


def sheet_of(names: list[str]) -> np.ndarray:
    maps = maps_of(180, 320)
    prediction = colorize(maps["prediction"], STREETHAZARDS)
    entry = SheetEntry("", maps["overlaid"], prediction, maps["heat"], (0.0, 0.4))
    return contact_sheet([entry._replace(name=name) for name in names], STREETHAZARDS, 0.2)


def test_the_contact_sheet_shows_two_pictures_per_row_and_one_legend() -> None:
    sheet = sheet_of(["a", "b" * 300, "c"])
    assert sheet.shape[1] == 1920
    assert abs(sheet.shape[0] - (35 + 2 * (35 + 200) + 45)) <= 1
    overlaid, prediction, heat = [30, 30, 250], STREETHAZARDS.palette[10].tolist(), [250, 120, 10]
    for row in range(2):
        y = 35 + row * 235 + 35 + 100
        shown = [sheet[y, 160 + 320 * column].tolist() for column in range(6)]
        rest = [overlaid, prediction, heat] if row == 0 else [[255, 255, 255]] * 3
        assert shown == [overlaid, prediction, heat, *rest]
    title = sheet[35 : 35 + 34]
    assert title[:, :20].min() < 100  # a
    assert title[:, 962:1560].min() < 100  # the end of b's long name
    assert title[:, 1560:1660].min() == 255  # which ends before the numbers of the colour bar
    assert_shows_every_class(sheet[-45:])
    assert sheet[-3:].min() == 255


def test_the_contact_sheet_of_one_picture_is_half_as_wide() -> None:
    sheet = sheet_of(["only"])
    assert sheet.shape[1] == 960
    assert sheet[35 + 35 + 100, 160].tolist() == [30, 30, 250]


def test_contact_sheets_take_pictures_of_any_shape() -> None:
    shapes = [(1, 1), (8, 6000), (6000, 8), (900, 1600)]
    entries = []
    for height, width in shapes:
        maps = maps_of(height, width)
        entries.append(SheetEntry("x", maps["overlaid"], maps["image"], maps["heat"], (0.0, 0.4)))
    sheet = contact_sheet(entries, STREETHAZARDS)
    assert abs(sheet.shape[0] - (35 + 2 * (35 + 200) + 45)) <= 1
    for row, column in ((0, 0), (0, 960), (1, 0), (1, 960)):
        cell = sheet[35 + row * 235 + 35 :][:200, column : column + 320]
        assert (np.abs(cell.astype(int) - (30, 30, 250)).max(axis=-1) < 4).sum() > 300
