"""What `--predict` leaves on the disk for every picture, and one look at all of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from dataset import DatasetInfo
from report.visualize import Picture, colorize, heat_map, overlay
from utils.errors import PansError

_CELL = (320, 200)  # of a panel: width, height
_CAPTION_HEIGHT = 14
_PANELS_A_SHEET = 16


class NotWritten(PansError):
    """The folder of the results cannot be written to."""


class PredictionFolder:
    """A folder a kind of result, in it the pictures' own names and folders.

    classes/NAME.png: class indices in the palette's colours. heat/NAME.png: the anomaly score, from
    black to bright yellow between its 1st and 99th percentile. overlay/NAME.png: that over the
    picture. score/NAME.npy: (H, W) float32. mask/NAME.png: 255 where the score reaches the
    threshold, 0 elsewhere, if there is one. panel/NAME.png: all of them small, side by side.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder, self.info = folder, info

    def write(
        self,
        name: str,
        picture: Picture,
        prediction: NDArray[np.uint8],
        score: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
    ) -> None:
        """Write the results of one picture.

        Args:
            picture: (H, W, 3) RGB.
            prediction, score, mask: (H, W).

        Raises:
            NotWritten: the folder cannot be written to, or the disk is full.
        """
        heat = heat_map(score)
        classes = Image.fromarray(prediction, mode="P")
        classes.putpalette(self.info.palette.tobytes())
        pictures = {
            "classes": classes,
            "heat": Image.fromarray(heat),
            "overlay": Image.fromarray(overlay(picture, heat)),
        }
        if mask is not None:
            pictures["mask"] = Image.fromarray(mask.astype(np.uint8) * 255)
        shown = [Image.fromarray(picture), Image.fromarray(colorize(prediction, self.info))]
        shown += [pictures[kind] for kind in ("heat", "overlay", "mask") if kind in pictures]
        pictures["panel"] = _panel(name, shown)
        try:
            for kind, image in pictures.items():
                image.save(self._place(kind, name, ".png"))
            np.save(self._place("score", name, ".npy"), score)
        except OSError as error:
            raise _not_written(self.folder, error) from error

    def _place(self, kind: str, name: str, suffix: str) -> Path:
        path = self.folder / kind / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_contact_sheets(self, names: Sequence[str]) -> None:
        """contact_sheet_001.png and on: the panels of all names, 16 a sheet, read back one by one.

        Raises:
            NotWritten: as `write`.
        """
        try:
            for stale in self.folder.glob("contact_sheet_[0-9]*.png"):
                stale.unlink()
            for start in range(0, len(names), _PANELS_A_SHEET):
                page = names[start : start + _PANELS_A_SHEET]
                panels = [Image.open(self.folder / "panel" / f"{name}.png") for name in page]
                number = start // _PANELS_A_SHEET + 1
                _stacked(panels).save(self.folder / f"contact_sheet_{number:03d}.png")
        except OSError as error:
            raise _not_written(self.folder, error) from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """predictions.json.

        Raises:
            NotWritten: as `write`.
        """
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "predictions.json").write_text(text, encoding="utf-8")
        except OSError as error:
            raise _not_written(self.folder, error) from error


def _not_written(folder: Path, error: OSError) -> NotWritten:
    return NotWritten(
        f"{folder} could not be written to ({error}); name a folder with space by --out"
    )


def _panel(name: str, pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of any size in cells of one size, beside each other below their name."""
    width, height = _CELL
    panel = Image.new("RGB", (width * len(pictures), height + _CAPTION_HEIGHT), "white")
    # The built-in font knows Latin letters alone.
    caption = name.encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(panel).text((2, 1), caption, fill="black")
    for column, picture in enumerate(pictures):
        cell = ImageOps.pad(picture.convert("RGB"), (width - 2, height), color="white")
        panel.paste(cell, (column * width + 1, _CAPTION_HEIGHT))
    return panel


def _stacked(panels: Sequence[Image.Image]) -> Image.Image:
    width = max(panel.width for panel in panels)
    sheet = Image.new("RGB", (width, sum(panel.height for panel in panels)), "white")
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    return sheet
