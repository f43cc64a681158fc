"""Pictures of labels, anomaly scores, confusion matrices and class IoUs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from dataset.description import DatasetInfo
from utils.figures import Picture, render

_NOT_A_NUMBER_COLOUR = (0, 255, 255)
_PICTURE_WIDTH_INCHES = 4.8
_ASPECTS = (1 / 16, 3 / 2)  # height / width of a picture's cell; other shapes do not fill it
_WIDE = 1 / 3  # below this height / width, pictures are stacked vertically
_THINNEST_INCHES = 0.03
_LEGEND_HEIGHT_INCHES = 0.45
_LEGEND_LINE_INCHES = 0.25
_LEGEND_FONT_SIZE = 11
_CARD_FONT_SIZE = 14
_TITLE_HEIGHT_INCHES = 0.35
_INCHES_A_POINT = 1 / 72

LEAST_SHARE = 0.2
"""Share of a score's range that a heat map without a threshold spans at least."""

_STRONGEST = 0.8  # opacity of the heat map in the overlay where the score is highest
_SHORT_SIDE_A_LINE = 360  # pixels of a picture's shorter side per pixel of the outline's width

_SHEET_CELL_INCHES = (3.2, 2.0)
_SHEET_LINE_INCHES = 0.35
_SHEET_TITLES = ("overlay", "prediction", "anomaly score")


def colorize(label: NDArray[np.integer], info: DatasetInfo) -> Picture:
    """Class indices (H, W) in 0..255 -> their palette colours (H, W, 3)."""
    return info.palette[label]


def score_limits(score: NDArray[np.floating]) -> tuple[float, float]:
    """The 1st and 99th percentile of the finite scores, (0, 0) if there are none."""
    finite = score[np.isfinite(score)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, (1, 99))
    return float(low), float(high)


def heat_map(score: NDArray[np.floating], limits: tuple[float, float] | None = None) -> Picture:
    """Anomaly scores (H, W) -> colours (H, W, 3), black for low over red to bright yellow for high.

    Args:
        score: any range; the map is matplotlib's inferno, whose lightness rises evenly.
        limits: the scores of the first and the last colour, `score_limits` by default. A constant
            map is black. NaN is cyan, which inferno does not contain.
    """
    relative = _relative(score, score_limits(score) if limits is None else limits)
    colours: Picture = matplotlib.colormaps["inferno"](np.nan_to_num(relative), bytes=True)[..., :3]
    colours[np.isnan(score)] = _NOT_A_NUMBER_COLOUR
    return colours


def _relative(score: NDArray[np.floating], limits: tuple[float, float]) -> NDArray[np.floating]:
    """Position between the limits, clipped to [0, 1]; 0 if they are equal. NaN stays."""
    low, high = limits
    if not high > low:
        return np.where(np.isnan(score), score, np.zeros_like(score))
    place: NDArray[np.floating] = np.clip((score - low) / (high - low), 0, 1)
    return place


@dataclass(frozen=True)
class HeatScale:
    """The scores of the first and the last colour of a heat map.

    With a threshold they are the same in every picture and centred on the threshold: they extend
    to the nearer end of the score's range, or from 0 to twice the threshold if it has none.
    Without a threshold they are the picture's own `score_limits`, at least `LEAST_SHARE` of the
    score's range apart, so that small differences in a normal picture stay dark.

    Attributes:
        bounds: lowest and highest possible score; None if it is unbounded.
        threshold: scores >= threshold are anomalies; None if there is none.
    """

    bounds: tuple[float, float] | None = None
    threshold: float | None = None

    def limits(self, score: NDArray[np.floating]) -> tuple[float, float]:
        """The limits for a picture with this score (H, W)."""
        if self.threshold is not None:
            return self._around(self.threshold)
        low, high = score_limits(score)
        if self.bounds is None:
            return low, high
        least = LEAST_SHARE * (self.bounds[1] - self.bounds[0])
        if high - low < least:
            low = min(low, self.bounds[1] - least)
            high = low + least
        return low, high

    def _around(self, threshold: float) -> tuple[float, float]:
        if self.bounds is None:
            reach = abs(threshold) or 1.0
        else:
            reach = min(threshold - self.bounds[0], self.bounds[1] - threshold)
            if reach <= 0:
                return self.bounds
        return threshold - reach, threshold + reach


def overlay(
    picture: Picture,
    score: NDArray[np.floating],
    limits: tuple[float, float],
    mask: NDArray[np.bool_] | None = None,
) -> Picture:
    """Blend a heat map over a picture (H, W, 3), more opaque where the score is higher.

    The opacity is 0.8 r**2, where r in [0, 1] is the score's position between the limits, so that
    normal regions keep the picture's brightness; at NaN it is 0.8.

    Args:
        score: (H, W).
        limits: see `heat_map`.
        mask: (H, W); its outline is drawn, white inside and black outside of its edge.
    """
    opacity = _STRONGEST * np.nan_to_num(_relative(score, limits), nan=1.0)[..., None] ** 2
    blended = picture + opacity * (heat_map(score, limits).astype(np.float32) - picture)
    drawn: Picture = np.rint(blended).astype(np.uint8)
    if mask is not None:
        width = max(1, round(min(mask.shape) / _SHORT_SIDE_A_LINE))
        drawn[_grown(~mask, width) & mask] = 255
        drawn[_grown(mask, width) & ~mask] = 0
    return drawn


def _grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Dilate a mask (H, W) by this many steps up, down, left or right."""
    for _ in range(pixels):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


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
    """Draw one sample: image, ground truth, prediction, and anomaly score with its colour bar.

    Args:
        image: (H, W, 3) RGB, 0..255.
        label: (H, W) class indices, with anomalies and ignored pixels.
        prediction: (H, W) class indices.
        score: (H, W) anomaly score, higher is more anomalous.
        info: class names and colours.
        columns: pictures per row: 1, 2 or 4.
        legend: whether to add a legend of the classes.
        text_scale: relative text size; 1 suits pictures that are shown at their own size.

    Returns:
        RGB, 480 pixels per column; the height follows from the image's shape.
    """
    limits = score_limits(score)
    pictures = {
        "image": image,
        "ground truth": colorize(label, info),
        "prediction": colorize(prediction, info),
        "anomaly score": heat_map(score, limits),
    }
    patches = _class_patches(_legend_entries(info), info) if legend else []
    return _panel(pictures, columns, patches, limits, text_scale)


def prediction_panel(
    image: Picture,
    prediction: NDArray[np.integer],
    overlaid: Picture,
    heat: Picture,
    limits: tuple[float, float],
    info: DatasetInfo,
    threshold: float | None = None,
) -> Picture:
    """Draw one picture without a ground truth: image, prediction, overlay and anomaly score.

    Args:
        image: (H, W, 3) RGB, 0..255.
        prediction: (H, W) class indices.
        overlaid, heat: (H, W, 3), from `overlay` and `heat_map` with `limits`.
        info: class names and colours.
        threshold: the threshold of the overlay's outline, for the legend.

    Returns:
        RGB, 960 pixels wide: 2x2 pictures, or four stacked vertically if they are wide.
    """
    pictures = {
        "image": image,
        "prediction": colorize(prediction, info),
        "overlay": overlaid,
        "anomaly score": heat,
    }
    columns = 1 if image.shape[0] < _WIDE * image.shape[1] else 2
    return _panel(pictures, columns, _prediction_patches(info, threshold), limits, widths=2)


def _panel(
    pictures: Mapping[str, Picture],
    columns: int,
    patches: Sequence[Patch],
    limits: tuple[float, float],
    text_scale: float = 1.0,
    widths: int | None = None,
) -> Picture:
    """Draw titled pictures of one shape above a legend of the patches, if there are any.

    The colour bar of `limits` is beside the last picture's title. The panel is `widths` times 480
    pixels wide, by default one per column.
    """
    width = _PICTURE_WIDTH_INCHES * (widths or columns)
    legend_columns, legend_height = _legend_size(patches, width, text_scale)
    picture_height, picture_width = next(iter(pictures.values())).shape[:2]
    cell = (
        width / columns,
        width / columns * float(np.clip(picture_height / picture_width, *_ASPECTS)),
    )
    title_height = _TITLE_HEIGHT_INCHES * text_scale
    height = len(pictures) // columns * (title_height + cell[1]) + legend_height
    figure = Figure((width, height), dpi=100)
    for number, (title, picture) in enumerate(pictures.items()):
        row, column = divmod(number, columns)
        bottom = height - (row + 1) * (title_height + cell[1])
        axes = _add_picture(figure, picture, (column * cell[0], bottom, *cell))
        axes.set_axis_off()
        place = (column + 0.005) * cell[0], bottom + cell[1] + 0.3 * title_height
        _write(figure, title, place, 12 * text_scale)
    bar = (place[0] + 0.62 * cell[0], place[1], 0.22 * cell[0], 0.4 * title_height)
    _add_colour_bar(figure, bar, limits, 10 * text_scale)
    _add_legend(figure, patches, legend_columns, text_scale)
    return render(figure)


class SheetEntry(NamedTuple):
    """A picture in a contact sheet: (h, w, 3) pictures of one size, and the score's limits."""

    name: str
    overlay: Picture
    prediction: Picture
    heat: Picture
    limits: tuple[float, float]


def contact_sheet(
    entries: Sequence[SheetEntry], info: DatasetInfo, threshold: float | None = None
) -> Picture:
    """Draw overlay, prediction and anomaly score of many pictures, two per row, and one legend.

    Above each are its name, shortened on the left, and the colour bar of its limits.

    Returns:
        RGB, 960 pixels wide for one picture and 1920 for more.
    """
    cell_width, cell_height = _SHEET_CELL_INCHES
    line = _SHEET_LINE_INCHES
    columns = min(2, len(entries))
    width = len(_SHEET_TITLES) * cell_width * columns
    patches = _prediction_patches(info, threshold)
    legend_columns, legend_height = _legend_size(patches, width, 1.0)
    rows = math.ceil(len(entries) / columns)
    figure = Figure((width, line + rows * (line + cell_height) + legend_height), dpi=100)
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        left = column * width / columns
        bottom = legend_height + (rows - 1 - row) * (line + cell_height)
        for picture in (entry.overlay, entry.prediction, entry.heat):
            small = _within(picture, round(cell_width * 100), round(cell_height * 100))
            _add_picture(figure, small, (left, bottom, cell_width, cell_height)).set_axis_off()
            left += cell_width
        text_bottom = bottom + cell_height + 0.3 * line
        name = _fitted(entry.name, 2 * cell_width - 0.2, 12)
        _write(figure, name, (left - 3 * cell_width + 0.02, text_bottom), 12, weight="bold")
        bar = (left - 0.75 * cell_width, text_bottom, 0.45 * cell_width, 0.4 * line)
        _add_colour_bar(figure, bar, entry.limits, 11)
    for number, title in enumerate(_SHEET_TITLES * columns):
        place = number * cell_width + 0.02, figure.get_figheight() - 0.65 * line
        _write(figure, title, place, 12)
    _add_legend(figure, patches, legend_columns, 1.0)
    return render(figure)


def _within(picture: Picture, width: int, height: int) -> Picture:
    """Shrink a picture to this size if it is larger; matplotlib's own reduction is slow."""
    share = min(width / picture.shape[1], height / picture.shape[0])
    if share >= 1:
        return picture
    size = max(1, round(share * picture.shape[1])), max(1, round(share * picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize(size, reducing_gap=2.0))


def _add_picture(
    figure: Figure, picture: Picture, place: tuple[float, float, float, float]
) -> Axes:
    """Fit a picture into a box (left, bottom, width, height in inches).

    A margin of half a percent of the width is left at both sides.
    """
    left, bottom, width, height = place
    shape = (picture.shape[0] / picture.shape[1]) / (height / width)
    wide, high = min(1, 1 / shape) * 0.99 * width, min(1, shape) * height
    wide, high = max(wide, _THINNEST_INCHES), max(high, _THINNEST_INCHES)
    axes = _add_axes(figure, (left + 0.005 * width, bottom + (height - high) / 2, wide, high))
    axes.imshow(picture, aspect="auto")
    return axes


def _add_axes(figure: Figure, place: tuple[float, float, float, float]) -> Axes:
    """Axes at (left, bottom, width, height) in inches."""
    width, height = figure.get_size_inches()
    left, bottom, wide, high = place
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def _write(
    figure: Figure, text: str, place: tuple[float, float], size: float, weight: str = "normal"
) -> None:
    """Write literal text, starting at (left, baseline) in inches."""
    width, height = figure.get_size_inches()
    x, y = place[0] / width, place[1] / height
    figure.text(x, y, _printable(text), fontsize=size, weight=weight, parse_math=False)


def _font() -> FT2Font:
    return font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))


def _printable(text: str) -> str:
    """Replace each character that the font does not have by a question mark."""
    font = _font()
    return "".join(letter if font.get_char_index(ord(letter)) else "?" for letter in text)


def _text_width(text: str, size: float) -> float:
    """Width in inches at a font size in points."""
    font = _font()
    font.set_size(size, 72)
    font.set_text(_printable(text))
    return float(font.get_width_height()[0] / 64 * _INCHES_A_POINT)


def _fitted(text: str, width: float, size: float) -> str:
    """Shorten text on the left to a width in inches."""
    bold = 1.15
    shown = text
    while len(text) > 1 and _text_width(shown, size) * bold > width:
        text = text[1:]
        shown = "\u2026" + text
    return shown


def _add_colour_bar(
    figure: Figure,
    place: tuple[float, float, float, float],
    limits: tuple[float, float],
    font_size: float,
) -> None:
    """Draw the colours of `heat_map` from left to right, between the numbers of its limits.

    The box is (left, bottom, width, height) in inches.
    """
    axes = _add_axes(figure, place)
    axes.imshow(heat_map(np.linspace(0, 1, 256)[None], (0.0, 1.0)), aspect="auto")
    axes.set_axis_off()
    style: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "fontsize": font_size}
    axes.text(-0.04, 0.5, f"{limits[0]:.2g}", ha="right", **style)
    axes.text(1.04, 0.5, f"{limits[1]:.2g}", ha="left", **style)


def _legend_entries(info: DatasetInfo) -> dict[int, str]:
    """Name by index of everything in a label map or a prediction except ignored pixels."""
    entries = dict(enumerate(info.class_names))
    if info.anomaly_index > info.num_classes:
        entries[info.num_classes] = "normal"
    return entries | {info.anomaly_index: "anomaly"}


def _class_patches(entries: Mapping[int, str], info: DatasetInfo) -> list[Patch]:
    """One patch per class, labelled by its name."""
    return [
        Patch(facecolor=info.palette[index] / 255, edgecolor="grey", label=_printable(name))
        for index, name in entries.items()
    ]


def _prediction_patches(info: DatasetInfo, threshold: float | None) -> list[Patch]:
    """Patches of all classes that can be predicted, and of the overlay's outline."""
    patches = _class_patches(dict(enumerate(info.class_names)), info)
    if threshold is not None:
        words = f"outline: anomaly, score of {threshold:.3g} or more"
        patches.append(Patch(facecolor="white", edgecolor="black", linewidth=2, label=words))
    return patches


def _legend_size(patches: Sequence[Patch], width: float, text_scale: float) -> tuple[int, float]:
    """Number of columns and height in inches of a legend at most `width` inches wide."""
    if not patches:
        return 1, 0.0
    size = _LEGEND_FONT_SIZE * text_scale
    # Patch, its distance from the name and the next column's distance: see _add_legend.
    widths = [
        _text_width(str(patch.get_label()), size) + 2.8 * size * _INCHES_A_POINT
        for patch in patches
    ]
    lines = 1
    while lines < len(widths) and _columns_width(widths, lines) > width - 0.1:
        lines += 1
    columns = math.ceil(len(patches) / lines)
    height = _LEGEND_HEIGHT_INCHES + _LEGEND_LINE_INCHES * (lines - 1)
    return columns, height * text_scale


def _columns_width(widths: Sequence[float], lines: int) -> float:
    """Width of the entries in columns of at most `lines`, split as the legend does."""
    columns = np.array_split(np.array(widths), math.ceil(len(widths) / lines))
    return float(sum(column.max() for column in columns))


def _add_legend(figure: Figure, patches: Sequence[Patch], columns: int, text_scale: float) -> None:
    """Add the patches and their labels at the bottom, if there are any."""
    if not patches:
        return
    legend = figure.legend(
        handles=list(patches),
        loc="lower center",
        ncols=columns,
        fontsize=_LEGEND_FONT_SIZE * text_scale,
        frameon=False,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def confusion_matrix_figure(matrix: NDArray[np.integer], names: Sequence[str]) -> Figure:
    """Plot pixel counts (C, C), rows truth and columns prediction, as percent of each row.

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


def _label_size(names: Sequence[str]) -> float:
    """Font size of the classes' names, to be read in a card of half the figure's size."""
    return min(12, 156 / len(names))


def class_matrix_figure(
    values: NDArray[np.floating],
    names: Sequence[str],
    *,
    colours: str,
    limits: tuple[float, float],
    number: str,
    title: str,
) -> Figure:
    """Plot numbers (C, C) of pairs of classes, as colours between the limits and as text.

    NaN stays empty. `colours` is a matplotlib colour map, `number` the format of the values.
    """
    figure = Figure((7, 6.3), dpi=100, layout="constrained")
    size = _label_size(names)
    axes = figure.add_subplot()
    shown = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size * 0.66}
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            lightness = np.dot(shown.to_rgba(value)[:3], (0.299, 0.587, 0.114))
            colour = "white" if lightness < 0.5 else "black"
            axes.text(column, row, number.format(value), color=colour, **style)
    axes.set_xticks(
        range(len(names)), names, fontsize=size, rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_title(title, fontsize=_CARD_FONT_SIZE)
    figure.colorbar(shown, shrink=0.8)
    return figure


def class_iou_figure(class_iou: Mapping[int, float], info: DatasetInfo) -> Figure:
    """Plot the IoU of every class, in [0, 1]; a class without a value is marked as absent."""
    figure = Figure((7, 5.3), dpi=100, layout="constrained")
    axes, size = figure.add_subplot(), _label_size(info.class_names)
    classes = range(info.num_classes)
    values = np.array([class_iou.get(index, np.nan) for index in classes])
    colours = info.palette[: info.num_classes] / 255
    bars = axes.barh(classes, np.nan_to_num(values), color=colours, edgecolor="grey")
    labels = [f"{value:.3f}" if np.isfinite(value) else "absent" for value in values]
    axes.bar_label(bars, labels, padding=3, fontsize=size)
    axes.set_yticks(classes, info.class_names, fontsize=size)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("IoU", fontsize=size)
    if np.isfinite(values).any():
        title = f"IoU of every class, mean {np.nanmean(values):.3f}"
        axes.set_title(title, fontsize=_CARD_FONT_SIZE)
    return figure
