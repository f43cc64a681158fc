"""Pictures of labels, anomaly scores, confusion matrices and class IoUs."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from dataset import DatasetInfo

Picture = NDArray[np.uint8]

_NOT_A_NUMBER_COLOUR = (0, 255, 255)
_PANEL_WIDTH_INCHES = 19.2
_LEGEND_HEIGHT_INCHES = 0.45  # of a row
_LEGEND_COLUMNS = 14
_TITLE_HEIGHT_INCHES = 0.35


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


def sample_panel(
    image: Picture,
    label: NDArray[np.integer],
    prediction: NDArray[np.integer],
    score: NDArray[np.floating],
    info: DatasetInfo,
) -> Picture:
    """One sample, four pictures side by side over a legend of the classes.

    Args:
        image: (H, W, 3) RGB, 0..255.
        label: (H, W) class indices, with anomalies and ignored pixels.
        prediction: (H, W) class indices.
        score: (H, W) anomaly score, higher is more anomalous.
        info: gives the classes their names and colours.

    Returns:
        RGB, 1920 pixels wide; the height follows from the image's shape.
    """
    low, high = score_limits(score)
    pictures = {
        "image": image,
        "ground truth": colorize(label, info),
        "prediction": colorize(prediction, info),
        f"anomaly score, {low:.3g} (black) to {high:.3g} (yellow)": heat_map(score, (low, high)),
    }
    figure = _side_by_side(pictures, _legend_rows(info) * _LEGEND_HEIGHT_INCHES)
    _add_class_legend(figure, info)
    return render(figure)


def _side_by_side(pictures: Mapping[str, Picture], legend_height: float) -> Figure:
    """Titled pictures of one shape in a row, with space (in inches) for a legend below."""
    height, width = next(iter(pictures.values())).shape[:2]
    share = 1 / len(pictures)
    picture_height = _PANEL_WIDTH_INCHES * share * height / width
    total_height = _TITLE_HEIGHT_INCHES + picture_height + legend_height
    bottom = legend_height / total_height
    figure = Figure((_PANEL_WIDTH_INCHES, total_height), dpi=100)
    for column, (title, picture) in enumerate(pictures.items()):
        left = (column + 0.005) * share
        axes = figure.add_axes((left, bottom, 0.99 * share, picture_height / total_height))
        axes.imshow(picture, aspect="auto")
        axes.set_title(title, fontsize=12)
        axes.set_axis_off()
    return figure


def _legend_entries(info: DatasetInfo) -> dict[int, str]:
    """Index to name of all that a label map or a prediction can show, but for ignored pixels."""
    entries = dict(enumerate(info.class_names))
    if info.anomaly_index > info.num_classes:
        entries[info.num_classes] = "normal"
    return entries | {info.anomaly_index: "anomaly"}


def _legend_rows(info: DatasetInfo) -> int:
    return math.ceil(len(_legend_entries(info)) / _LEGEND_COLUMNS)


def _add_class_legend(figure: Figure, info: DatasetInfo) -> None:
    patches = [
        Patch(facecolor=info.palette[index] / 255, edgecolor="grey", label=name)
        for index, name in _legend_entries(info).items()
    ]
    figure.legend(
        handles=patches,
        loc="lower center",
        ncols=math.ceil(len(patches) / _legend_rows(info)),
        fontsize=11,
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
    figure = Figure((10, 9), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            colour = "white" if value > 60 else "black"
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9
            )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("Share of each class's pixels by predicted class, in percent")
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


def render(figure: Figure) -> Picture:
    """Draw a figure as RGB (H, W, 3), without matplotlib's global state."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
