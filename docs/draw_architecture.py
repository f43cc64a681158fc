"""Draw docs/architecture.png: `python docs/draw_architecture.py`."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

Point = tuple[float, float]

BODY, HEAD, CLASSIFIER, SCORE, DATA = "#cfe0f3", "#d6ecd2", "#f9dfb4", "#f5c6c6", "#e9e9e9"
TRAINING = "#f4f4f4"
HEIGHT = 1.25


def box(axes: Axes, centre: Point, width: float, colour: str, title: str, words: str) -> None:
    """A rounded box with a bold title and smaller lines below it."""
    x, y = centre
    corner = (x - width / 2, y - HEIGHT / 2)
    shape = FancyBboxPatch(
        corner, width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec="#404040"
    )
    axes.add_patch(shape)
    axes.text(x, y + 0.33, title, ha="center", va="center", fontsize=15, weight="bold")
    axes.text(x, y - 0.18, words, ha="center", va="center", fontsize=12, linespacing=1.25)


def arrow(axes: Axes, start: Point, end: Point, words: str = "", style: str = "-") -> None:
    """An arrow with a tensor's shape above it, or beside it if it points up or down."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, ls=style, color="#303030")
    )
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if start[0] == end[0]:
        axes.text(x + 0.1, y, words, ha="left", va="center", fontsize=11, color="#303030")
    else:
        axes.text(x, y + 0.18, words, ha="center", va="center", fontsize=11, color="#303030")


def frame(axes: Axes, corner: Point, width: float, height: float, words: str) -> None:
    """A dashed frame around a group, with its name at the top left."""
    shape = FancyBboxPatch(
        corner,
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.15",
        fc="none",
        ec="#808080",
        ls="--",
    )
    axes.add_patch(shape)
    axes.text(corner[0] + 0.15, corner[1] + height - 0.25, words, fontsize=13, color="#505050")


def draw_body(axes: Axes) -> None:
    frame(axes, (2.15, 4.05), 14.45, 2.35, "body: dilated ResNet-50, output stride 8, in-place ABN")
    stages = (
        ("mod1", "7 x 7, stride 2\nmax-pool", "64, H/4"),
        ("mod2", "3 bottlenecks", "256, H/4"),
        ("mod3", "4 bottlenecks\nstride 2", "512, H/8"),
        ("mod4", "6 bottlenecks\ndilation 2", "1024, H/8"),
        ("mod5", "3 bottlenecks\ndilation 4", ""),
    )
    for number, (title, words, shape) in enumerate(stages):
        x = 3.3 + 3.02 * number
        box(axes, (x, 5.0), 1.95, BODY, title, words)
        if shape:
            arrow(axes, (x + 0.98, 5.0), (x + 2.04, 5.0), shape)


def draw_head_and_scores(axes: Axes) -> None:
    frame(axes, (9.5, 0.75), 7.1, 2.35, "head: pyramid pooling")
    box(axes, (15.2, 1.7), 2.4, HEAD, "pooling", "1, 2, 3 and 6 cells,\n1 x 1, upsample")
    box(axes, (11.0, 1.7), 2.6, HEAD, "conv_last", "3 x 3 over all five,\nnorm, dropout 0.1")
    arrow(axes, (15.4, 4.37), (15.4, 2.33), "2048, H/8")
    arrow(axes, (14.0, 1.7), (12.3, 1.7), "4096, H/8")
    box(
        axes,
        (6.95, 1.7),
        2.6,
        CLASSIFIER,
        "prototypes",
        "10 cos(feature,\nprototype)",
    )
    arrow(axes, (9.7, 1.7), (8.25, 1.7), "512, H/8")
    box(axes, (3.75, 2.45), 2.6, SCORE, "prediction", "argmax of the softmax,\nmean over scales")
    box(axes, (3.75, 0.95), 2.6, SCORE, "anomaly score", "1 - (max + 10) / 20,\nmean over scales")
    arrow(axes, (5.65, 1.95), (5.05, 2.45))
    arrow(axes, (5.65, 1.45), (5.05, 0.95))
    axes.text(5.6, 2.55, "13, H/8", ha="center", va="center", fontsize=11, color="#303030")
    arrow(axes, (2.45, 2.45), (1.75, 2.45))
    arrow(axes, (2.45, 0.95), (1.75, 0.95))
    box(axes, (0.95, 2.45), 1.6, DATA, "classes", "H x W")
    box(axes, (0.95, 0.95), 1.6, DATA, "anomalies", "H x W,\nhigh = unknown")


def draw() -> Figure:
    """The network from the image to its two maps; the training-only parts are dashed."""
    figure = Figure(figsize=(16.8, 8.2), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 16.8), ylim=(0.1, 8.3))
    axes.axis("off")
    box(axes, (0.95, 5.0), 1.6, DATA, "image", "3, H, W\nfive scales")
    arrow(axes, (1.75, 5.0), (2.32, 5.0))
    draw_body(axes)
    draw_head_and_scores(axes)
    box(axes, (12.36, 7.5), 2.6, TRAINING, "cbr_deepsup", "3 x 3 to 512\nnorm, dropout 0.1")
    box(axes, (8.6, 7.5), 2.6, TRAINING, "cls_deepsup", "own prototypes\n0.4 x cross-entropy")
    arrow(axes, (12.36, 5.63), (12.36, 6.87), style="--")
    arrow(axes, (11.06, 7.5), (9.9, 7.5), "512, H/8", style="--")
    axes.text(12.5, 6.6, "in training only", fontsize=12, color="#505050")
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("architecture.png"), dpi=90)
