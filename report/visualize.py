"""Pictures of labels, anomaly scores, confusion matrices and class IoUs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from dataset import DatasetInfo
from utils.figures import Picture, render
from utils.files import replacing

_NOT_A_NUMBER_COLOUR = (0, 255, 255)
_PICTURE_WIDTH_INCHES = 4.8
_PICTURES = 4
_LEGEND_HEIGHT_INCHES = 0.45
_LEGEND_LINE_INCHES = 0.25
_LEGEND_COLUMNS = 14  # of a row of four pictures
_TITLE_HEIGHT_INCHES = 0.35


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a PNG file, whole at any time; folders that are missing are made."""
    with replacing(path) as file:
        image.save(file, format="PNG")


def colorize(label: NDArray[np.integer], info: DatasetInfo) -> Picture:
    """Class indices (H, W) in 0..255 -> their palette colours (H, W, 3)."""
    return info.palette[label]


def score_limits(score: NDArray[np.floating]) -> tuple[float, float]:
    """The 1st and 99th percentile of the finite scores, (0, 0) where there are none."""
    finite = score[np.isfinite(score)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, (1, 99))
    return float(low), float(high)


def heat_map(score: NDArray[np.floating], limits: tuple[float, float] | None = None) -> Picture:
    """Anomaly scores (H, W) -> colours (H, W, 3), black for low over red to bright yellow for high.

    Args:
        score: any range; the map is matplotlib's inferno, whose lightness rises evenly.
        limits: the scores that get the first and the last colour, `score_limits` by default. A
            map that is constant comes out black, and NaN as cyan, which inferno does not contain.
    """
    low, high = score_limits(score) if limits is None else limits
    span = high - low
    relative = np.clip((score - low) / span, 0, 1) if span > 0 else np.zeros_like(score)
    colours: Picture = matplotlib.colormaps["inferno"](np.nan_to_num(relative), bytes=True)[..., :3]
    colours[np.isnan(score)] = _NOT_A_NUMBER_COLOUR
    return colours


def overlay(picture: Picture, colours: Picture) -> Picture:
    """Half a picture (H, W, 3), half other colours (H, W, 3)."""
    blended: Picture = np.rint(picture * 0.5 + colours * 0.5).astype(np.uint8)
    return blended


def sample_panel(
    image: Picture,
    label: NDArray[np.integer],
    prediction: NDArray[np.integer],
    score: NDArray[np.floating],
    info: DatasetInfo,
    *,
    columns: int = 2,
    legend: bool = True,
    text_scale: float = 1.0,
) -> Picture:
    """One sample: image, ground truth, prediction and anomaly score, with its colour bar.

    Args:
        image: (H, W, 3) RGB, 0..255.
        label: (H, W) class indices, with anomalies and ignored pixels.
        prediction: (H, W) class indices.
        score: (H, W) anomaly score, higher is more anomalous.
        info: gives the classes their names and colours.
        columns: 1, 2 or 4 pictures a row.
        legend: name the classes below.
        text_scale: size of all text; 1 is for pictures that are shown at their own size.

    Returns:
        RGB, 480 pixels a column; the height follows from the image's shape.
    """
    limits = score_limits(score)
    pictures = {
        "image": image,
        "ground truth": colorize(label, info),
        "prediction": colorize(prediction, info),
        "anomaly score": heat_map(score, limits),
    }
    entries = _legend_entries(info)
    legend_columns = math.ceil(_LEGEND_COLUMNS * columns / _PICTURES / text_scale)
    legend_lines = math.ceil(len(entries) / legend_columns)
    legend_height = (_LEGEND_HEIGHT_INCHES + _LEGEND_LINE_INCHES * (legend_lines - 1)) * text_scale
    figure = _in_rows(pictures, columns, legend_height if legend else 0.0, limits, text_scale)
    if legend:
        columns_of_legend = math.ceil(len(entries) / legend_lines)
        _add_class_legend(figure, entries, info, columns_of_legend, text_scale)
    return render(figure)


def _in_rows(
    pictures: Mapping[str, Picture],
    columns: int,
    legend_height: float,
    limits: tuple[float, float],
    text_scale: float,
) -> Figure:
    """Titled pictures of one shape, with space (in inches) for a legend below.

    The last picture's title has the colour bar of its `limits` beside it.
    """
    height, width = next(iter(pictures.values())).shape[:2]
    rows = len(pictures) // columns
    picture_height = _PICTURE_WIDTH_INCHES * height / width
    title_height = _TITLE_HEIGHT_INCHES * text_scale
    row_height = title_height + picture_height
    total_height = rows * row_height + legend_height
    figure = Figure((_PICTURE_WIDTH_INCHES * columns, total_height), dpi=100)
    for number, (title, picture) in enumerate(pictures.items()):
        row, column = divmod(number, columns)
        left = (column + 0.005) / columns
        bottom = 1 - (row + 1) * row_height / total_height
        axes = figure.add_axes((left, bottom, 0.99 / columns, picture_height / total_height))
        axes.imshow(picture, aspect="auto")
        axes.set_title(title, fontsize=12 * text_scale, loc="left")
        axes.set_axis_off()
    bar_bottom = bottom + (picture_height + 0.3 * title_height) / total_height
    bar = (left + 0.62 / columns, bar_bottom, 0.22 / columns, 0.4 * title_height / total_height)
    _add_colour_bar(figure, bar, limits, 10 * text_scale)
    return figure


def _add_colour_bar(
    figure: Figure,
    place: tuple[float, float, float, float],
    limits: tuple[float, float],
    font_size: float,
) -> None:
    """The colours of `heat_map` from left to right, between the numbers of its limits."""
    axes = figure.add_axes(place)
    axes.imshow(heat_map(np.linspace(0, 1, 256)[None], (0.0, 1.0)), aspect="auto")
    axes.set_axis_off()
    for x, alignment, value in ((-0.04, "right", limits[0]), (1.04, "left", limits[1])):
        axes.text(
            x,
            0.5,
            f"{value:.2g}",
            transform=axes.transAxes,
            ha=alignment,
            va="center",
            fontsize=font_size,
        )


def _legend_entries(info: DatasetInfo) -> dict[int, str]:
    """Index to name of all that a label map or a prediction can show, but for ignored pixels."""
    entries = dict(enumerate(info.class_names))
    if info.anomaly_index > info.num_classes:
        entries[info.num_classes] = "normal"
    return entries | {info.anomaly_index: "anomaly"}


def _add_class_legend(
    figure: Figure,
    entries: Mapping[int, str],
    info: DatasetInfo,
    columns: int,
    text_scale: float,
) -> None:
    patches = [
        Patch(facecolor=info.palette[index] / 255, edgecolor="grey", label=name)
        for index, name in entries.items()
    ]
    figure.legend(
        handles=patches,
        loc="lower center",
        ncols=columns,
        fontsize=11 * text_scale,
        frameon=False,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=1.2,
    )


def confusion_matrix_figure(matrix: NDArray[np.integer], names: Sequence[str]) -> Figure:
    """Pixel counts (C, C), rows truth and columns prediction -> shares of each row in percent.

    The row of a class without any pixel stays empty.
    """
    counts = matrix.sum(axis=1, keepdims=True)
    percent = np.divide(100.0 * matrix, counts, out=np.full(matrix.shape, np.nan), where=counts > 0)
    figure = class_matrix_figure(
        percent,
        names,
        colours="Blues",
        limits=(0, 100),
        number="{:.0f}",
        title="Share of each class's pixels by predicted class, in percent",
    )
    figure.axes[0].set_xlabel("predicted class")
    figure.axes[0].set_ylabel("true class")
    return figure


def class_matrix_figure(
    values: NDArray[np.floating],
    names: Sequence[str],
    *,
    colours: str,
    limits: tuple[float, float],
    number: str,
    title: str,
) -> Figure:
    """Numbers (C, C) of pairs of classes, as colours between the limits and written out.

    NaN stays empty. `colours` is one of matplotlib's maps, `number` a format of each value.
    """
    figure = Figure((10, 9), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            lightness = np.dot(shown.to_rgba(value)[:3], (0.299, 0.587, 0.114))
            axes.text(
                column,
                row,
                number.format(value),
                ha="center",
                va="center",
                color="white" if lightness < 0.5 else "black",
                fontsize=9,
            )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title)
    figure.colorbar(shown, shrink=0.8)
    return figure


def class_iou_figure(class_iou: Mapping[int, float], info: DatasetInfo) -> Figure:
    """Bars of the IoU of every class, in [0, 1]; a class without a value is marked as absent."""
    figure = Figure((8, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for index in range(info.num_classes):
        value = class_iou.get(index, float("nan"))
        present = np.isfinite(value)
        axes.barh(index, value if present else 0, color=info.palette[index] / 255, edgecolor="grey")
        axes.text(
            value + 0.01 if present else 0.01,
            index,
            f"{value:.3f}" if present else "absent",
            va="center",
        )
    axes.set_yticks(range(info.num_classes), info.class_names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("IoU")
    present_values = [value for value in class_iou.values() if np.isfinite(value)]
    if present_values:
        axes.set_title(f"IoU of every class, mean {np.mean(present_values):.3f}")
    return figure
