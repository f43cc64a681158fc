"""docs/teaser.png: pictures of the demo's test split, their classes and their anomaly scores.

    make demo
    python run.py --predict data/demo/StreetHazards/test/images --out logs/teaser \
        --ckpt_test checkpoints/streethazards/demo_best.pth
    python docs/draw_teaser.py data/demo/StreetHazards/test/images logs/teaser \
        t6/00003 t5/00014 t5/00024
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

TITLES = ("picture", "prediction", "anomaly score, black to yellow")


def draw(pictures: Path, predictions: Path, names: list[str]) -> Figure:
    """One row a picture: as it is, its predicted classes, and the score as a heat map."""
    figure = Figure(figsize=(12, 0.4 + 2.3 * len(names)), facecolor="white")
    axes = figure.subplots(len(names), len(TITLES), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        (path,) = pictures.rglob(f"{name}.png")
        stem = path.relative_to(pictures).with_suffix("")
        images = (
            path,
            predictions / "classes" / f"{stem}.png",
            predictions / "heat" / f"{stem}.png",
        )
        for axis, image in zip(row, images, strict=True):
            axis.imshow(np.asarray(Image.open(image).convert("RGB")))
            axis.axis("off")
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=13)
    figure.subplots_adjust(0.003, 0.003, 0.997, 1 - 0.33 / (0.4 + 2.3 * len(names)), 0.015, 0.02)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("names", nargs="+")
    words = parser.parse_args()
    figure = draw(words.pictures, words.predictions, words.names)
    figure.savefig(Path(__file__).with_name("teaser.png"), dpi=78)
