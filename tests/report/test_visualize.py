from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from dataset.readers.streethazards import STREETHAZARDS
from report.visualize import (
    class_iou_figure,
    colorize,
    confusion_matrix_figure,
    heat_map,
    sample_panel,
    score_limits,
)
from utils.figures import render


def texts(axes: matplotlib.axes.Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def assert_every_class_is_in(legend: np.ndarray) -> None:
    for index in range(14):
        is_colour = (legend == STREETHAZARDS.palette[index]).all(axis=1)
        assert is_colour.any(), f"no colour of class {index}"


def test_colorize_gives_the_published_colours() -> None:
    label = np.array([[1, 4, 12], [13, 200, 255]], dtype=np.uint8)
    expected = [
        [[70, 70, 70], [220, 20, 60], [220, 220, 0]],
        [[60, 250, 240], [60, 250, 240], [0, 0, 0]],
    ]
    assert colorize(label, STREETHAZARDS).tolist() == expected
    assert colorize(label, STREETHAZARDS).dtype == np.uint8


def test_score_limits_are_robust_percentiles_of_finite_scores() -> None:
    score = np.arange(101.0)
    assert score_limits(score) == pytest.approx((1.0, 99.0))
    score[50] = np.nan
    score = np.append(score, [np.inf, -np.inf])
    expected = np.percentile(np.delete(np.arange(101.0), 50), [1, 99])
    assert score_limits(score) == pytest.approx(tuple(expected))
    assert score_limits(np.full(3, np.nan)) == (0.0, 0.0)


def test_heat_map_runs_over_inferno_between_its_limits() -> None:
    inferno = matplotlib.colormaps["inferno"]
    score = np.array([[-1.0, 0.0, 0.5], [1.0, 2.0, np.nan]])
    colours = heat_map(score, (0.0, 1.0))
    low, middle, high = (np.array(inferno(value)[:3]) * 255 for value in (0.0, 0.5, 1.0))
    assert np.abs(colours[0, :2] - low).max() <= 1
    assert np.abs(colours[0, 2] - middle).max() <= 1
    assert np.abs(colours[1, :2] - high).max() <= 1
    assert colours[1, 2].tolist() == [0, 255, 255]


def test_heat_map_gets_lighter_as_scores_rise() -> None:
    colours = heat_map(np.linspace(0, 1, 256)[None]).astype(float)[0]
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(luminance) >= -1)
    assert luminance[-1] - luminance[0] > 200


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_constant_heat_map_is_black(value: float) -> None:
    assert heat_map(np.full((4, 5), value)).max() <= 4


@pytest.mark.parametrize(("height", "width"), [(90, 160), (64, 64), (31, 97)])
def test_sample_panel_shows_the_four_pictures_in_order(height: int, width: int) -> None:
    image = np.full((height, width, 3), (10, 200, 30), dtype=np.uint8)
    label = np.full((height, width), 7, dtype=np.uint8)
    prediction = np.full((height, width), 10, dtype=np.int64)
    score = np.zeros((height, width), dtype=np.float32)
    score[: height // 2] = 1
    panel = sample_panel(image, label, prediction, score, STREETHAZARDS, columns=4)
    pictures = round(480 * height / width)
    assert panel.dtype == np.uint8
    assert panel.shape[1:] == (1920, 3)
    assert abs(panel.shape[0] - (35 + pictures + 45)) <= 1
    centre = 35 + pictures // 4
    assert panel[centre, 240].tolist() == [10, 200, 30]
    assert panel[centre, 720].tolist() == STREETHAZARDS.palette[7].tolist()
    assert panel[centre, 1200].tolist() == STREETHAZARDS.palette[10].tolist()
    assert panel[centre, 1680].min() > 150  # the upper half is anomalous: light yellow
    assert panel[centre + pictures // 2, 1680].max() < 10  # and the lower one is not: black


def test_sample_panel_in_two_rows() -> None:
    """The same four pictures, half as wide, over two lines of the legend."""
    label = np.full((60, 80), 7, dtype=np.uint8)
    score = np.zeros((60, 80), dtype=np.float32)
    score[:30] = 1
    image = np.full((60, 80, 3), (10, 200, 30), dtype=np.uint8)
    panel = sample_panel(image, label, np.full((60, 80), 10), score, STREETHAZARDS)
    assert panel.shape[1:] == (960, 3)
    assert abs(panel.shape[0] - (2 * (35 + 360) + 70)) <= 1
    first, second = 35 + 90, 35 + 360 + 35 + 90
    assert panel[first, 240].tolist() == [10, 200, 30]
    assert panel[first, 720].tolist() == STREETHAZARDS.palette[7].tolist()
    assert panel[second, 240].tolist() == STREETHAZARDS.palette[10].tolist()
    assert panel[second, 720].min() > 150
    assert panel[second + 180, 720].max() < 10
    legend = panel[-68:].reshape(-1, 3)
    assert_every_class_is_in(legend)
    assert panel[:, :2].min() == 255
    assert panel[-3:].min() == 255


def test_sample_panel_has_titles_and_every_class_in_its_legend() -> None:
    shape = (90, 160)
    label = np.zeros(shape, dtype=np.uint8)
    image = np.zeros((*shape, 3), dtype=np.uint8)
    panel = sample_panel(image, label, label, np.zeros(shape), STREETHAZARDS, columns=4)
    for left in range(0, 1920, 480):
        assert panel[:30, left : left + 480].min() < 100  # something is written over each picture
    legend = panel[-40:].reshape(-1, 3)
    assert_every_class_is_in(legend)
    # Nothing is written over the edges.
    assert panel[:, :2].min() == 255
    assert panel[-3:].min() == 255


def test_sample_panel_has_the_colour_bar_of_its_score() -> None:
    """Left of the score's picture black, right of it light yellow, in the last title's line."""
    image, label = np.zeros((90, 160, 3), dtype=np.uint8), np.zeros((90, 160), dtype=np.uint8)
    score = np.linspace(0, 1, 90 * 160).reshape(90, 160)
    panel = sample_panel(image, label, label, score, STREETHAZARDS)
    line = panel[35 + 270 + 17, 480:]
    low, high = 480 * np.array([0.63, 0.83])
    assert line[round(low)].max() < 40
    assert line[round(high)].min() > 80
    lightness = line[round(low) : round(high)].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -3).all()
    assert line[-3:].min() == 255


def test_sample_panel_without_a_legend_ends_with_its_pictures() -> None:
    image, label = np.zeros((90, 160, 3), dtype=np.uint8), np.zeros((90, 160), dtype=np.uint8)
    panel = sample_panel(
        image, label, label, np.zeros((90, 160)), STREETHAZARDS, columns=4, legend=False
    )
    assert abs(panel.shape[0] - (35 + 270)) <= 1
    assert panel[-10, 240].max() == 0


def test_confusion_matrix_shows_the_shares_of_rows() -> None:
    matrix = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 6]])
    figure = confusion_matrix_figure(matrix, ["road", "sky", "car"])
    axes = figure.axes[0]
    assert texts(axes) == ["75", "25", "0", "12", "12", "75"]
    assert [text.get_position() for text in axes.texts][:3] == [(0, 0), (1, 0), (2, 0)]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["road", "sky", "car"]
    shown = np.ma.filled(axes.images[0].get_array(), -1)
    assert shown.tolist() == [[75, 25, 0], [-1, -1, -1], [12.5, 12.5, 75]]


def test_class_iou_bars_have_the_values_and_mark_absent_classes() -> None:
    info = replace(
        STREETHAZARDS, class_colours=dict.fromkeys(("road", "sky", "car", "wall"), (9, 8, 7))
    )
    figure = class_iou_figure({0: 0.5, 2: float("nan"), 3: 1.0}, info)
    axes = figure.axes[0]
    assert texts(axes) == ["0.500", "absent", "absent", "1.000"]
    assert [bar.get_bbox().width for bar in axes.patches] == [0.5, 0, 0, 1.0]
    assert axes.patches[0].get_facecolor() == pytest.approx((9 / 255, 8 / 255, 7 / 255, 1))
    assert [text.get_text() for text in axes.get_yticklabels()] == ["road", "sky", "car", "wall"]
    assert axes.get_title() == "IoU of every class, mean 0.750"


@pytest.mark.parametrize(
    "figure",
    [
        confusion_matrix_figure(np.eye(13, dtype=int), STREETHAZARDS.class_names),
        class_iou_figure(dict.fromkeys(range(13), 1.0), STREETHAZARDS),
    ],
)
def test_no_label_is_clipped(figure: matplotlib.figure.Figure) -> None:
    picture = render(figure)
    border = np.concatenate(
        [picture[0], picture[-1], picture[:, 0], picture[:, -1]]  # a cut label touches an edge
    )
    assert border.min() == 255
