"""Draw docs/teaser.png: three evenly spaced test images of the demo, not picked by their metrics.

make demo
python docs/draw_teaser.py
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

import hubconf  # noqa: E402
from dataset.readers.streethazards import STREETHAZARDS  # noqa: E402
from dataset.registry import open_dataset  # noqa: E402
from report.visualize import Picture, sample_panel  # noqa: E402

ROWS = 3


def draw(checkpoint: Path, data: Path) -> Picture:
    """One row per image, with titles above each and one legend at the bottom."""
    model = hubconf.pans(checkpoint)
    pictures = open_dataset("streethazards", data, "test")
    rows: list[Picture] = []
    for index in np.linspace(0, len(pictures) - 1, ROWS).astype(int):
        picture, label = pictures[index]
        classes, score = model.predict(picture)
        maps = np.asarray(picture), np.asarray(label), classes, score
        last = len(rows) == ROWS - 1
        rows.append(sample_panel(*maps, STREETHAZARDS, columns=4, legend=last, text_scale=1.5))
    return np.concatenate(rows)


if __name__ == "__main__":
    teaser = draw(REPOSITORY / "checkpoints/streethazards/demo.pth", REPOSITORY / "data/demo")
    Image.fromarray(teaser).save(Path(__file__).with_name("teaser.png"))
