"""What `--predict` leaves on the disk for every picture, and one look at all of them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset import DatasetInfo
from dataset.own_pictures import Source
from report.video import write_video
from report.visualize import (
    HeatScale,
    Picture,
    SheetEntry,
    contact_sheet,
    heat_map,
    overlay,
    prediction_panel,
)
from utils.errors import PansError
from utils.reading import is_hidden

_PICTURES_PER_SHEET = 16
_KINDS = ("classes", "heat", "overlay", "score", "mask", "panel")
_SUMMARY, _SHEET = "predictions.json", "contact_sheet_"


class PredictionFolder:
    """A folder a kind of result, in it the pictures' own names and folders.

    classes/NAME.png: class indices in the palette's colours. heat/NAME.png: the anomaly score, from
    black to bright yellow between the limits of `report.visualize.HeatScale`. overlay/NAME.png:
    that over the picture, with the mask's outline. score/NAME.npy: (H, W) float32. mask/NAME.png:
    255 where the score reaches the threshold, 0 elsewhere, if there is one. panel/NAME.png:
    picture, classes, overlay and heat with titles, legend and colour bar. overlay/NAME.mp4: the
    overlays of a video's frames, overlay/NAME/000000.png and on.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder, self.info = folder, info

    def check(self, sources: Sequence[Source], *, overwrite: bool) -> None:
        """Whether the results of `sources` would cost the user a file; changes nothing.

        Raises:
            PansError: a result would take the place of a picture or video that is to be read;
                or, without `overwrite`, the folder holds other things than earlier results.
        """
        inputs = {source.path.resolve() for source in sources}
        for source in sources:
            for place in self._places(source):
                if place in inputs or (source.is_video and _inside(place, inputs)):
                    raise PansError(
                        f"--out {self.folder}: the results of {source.path} would overwrite "
                        f"{place}, which is to be read; name another folder"
                    )
        if overwrite or not self.folder.is_dir():
            return
        names = {path.name for path in self.folder.iterdir() if not is_hidden(Path(path.name))}
        earlier = self._earlier_summary()
        known = {*_KINDS, _SUMMARY, *self._sheets(earlier)} if earlier else set()
        foreign = {name for name in names - known if not earlier or name.startswith(_SHEET)}
        if foreign:
            raise PansError(
                f"--out {self.folder} holds {min(foreign)}, which is no earlier result of "
                "--predict; name an empty folder, or allow it with --overwrite"
            )

    def begin(self) -> None:
        """Mark the folder as one of results, so that it is known after an interruption too.

        Raises:
            PansError: as `write`.
        """
        if self._earlier_summary() is None:
            self.write_summary({"checkpoint": None, "score": None, "pictures": []})

    def _places(self, source: Source) -> Iterator[Path]:
        """Where results of a picture go, or the folders for those of a video's frames."""
        for kind in _KINDS:
            suffix = "" if source.is_video else ".npy" if kind == "score" else ".png"
            yield (self.folder / kind / f"{source.name}{suffix}").resolve()
        if source.is_video:
            yield self._video(source.name).resolve()

    def _video(self, name: str) -> Path:
        return self.folder / "overlay" / f"{name}.mp4"

    def _earlier_summary(self) -> dict[str, Any] | None:
        """The folder's predictions.json, if it is one."""
        path = self.folder / _SUMMARY
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError, RecursionError):
            return None
        match found:
            case {"checkpoint": _, "score": _, "pictures": list()}:
                return {**found}
        return None

    @staticmethod
    def _sheets(summary: Mapping[str, Any]) -> list[str]:
        """The names of the contact sheets of a summary's pictures."""
        count = -(-len(summary["pictures"]) // _PICTURES_PER_SHEET)
        return [f"{_SHEET}{number:03d}.png" for number in range(1, count + 1)]

    def write(
        self,
        name: str,
        picture: Picture,
        prediction: NDArray[np.uint8],
        score: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
        scale: HeatScale,
    ) -> tuple[float, float]:
        """Write the results of one picture.

        Args:
            picture: (H, W, 3) RGB.
            prediction, score, mask: (H, W).
            scale: of the heat map.

        Returns:
            The scores of the heat map's first and last colour.

        Raises:
            PansError: the folder cannot be written to, or the disk is full.
        """
        limits = scale.limits(score)
        heat, overlaid = heat_map(score, limits), overlay(picture, score, limits, mask)
        panel = prediction_panel(
            picture, prediction, overlaid, heat, limits, self.info, scale.threshold
        )
        classes = Image.fromarray(prediction, mode="P")
        classes.putpalette(self.info.palette.tobytes())
        pictures = {
            "classes": classes,
            "heat": Image.fromarray(heat),
            "overlay": Image.fromarray(overlaid),
            "panel": Image.fromarray(panel),
        }
        if mask is not None:
            pictures["mask"] = Image.fromarray(mask.astype(np.uint8) * 255)
        try:
            for kind, image in pictures.items():
                self._save(self._place(kind, name, ".png"), image)
            self._save(self._place("score", name, ".npy"), score)
        except OSError as error:
            raise _not_written(self.folder, error) from error
        return limits

    def write_video(self, name: str, pictures: Sequence[str], rate: Fraction) -> None:
        """Write the overlays of a video's frames as overlay/NAME.mp4, if there are any.

        Args:
            name: of the video.
            pictures: the names of all pictures, in any order, of which the frames are some.
            rate: frames a second.

        Raises:
            NoVideo: it cannot be encoded, or the folder cannot be written to.
        """
        numbers = [
            int(path.name) for path in map(PurePosixPath, pictures) if str(path.parent) == name
        ]
        frames = [self.folder / f"overlay/{name}/{number:06d}.png" for number in sorted(numbers)]
        if frames:
            write_video(self._video(name), frames, rate)

    def _place(self, kind: str, name: str, suffix: str) -> Path:
        path = self.folder / kind / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write predictions.json, and contact_sheet_001.png and on, of 16 pictures each.

        Sheets of an earlier summary that has more of them are deleted.

        Args:
            summary: with "checkpoint", "score", "threshold" and "pictures", each with its "name"
                and "heat_limits".

        Raises:
            PansError: as `write`.
        """
        stale = self._sheets(self._earlier_summary() or {"pictures": []})
        self.write_summary(summary)
        sheets = self._sheets(summary)
        try:
            for name in set(stale) - set(sheets):
                (self.folder / name).unlink(missing_ok=True)
            for number, sheet in enumerate(sheets):
                page = summary["pictures"][number * _PICTURES_PER_SHEET :][:_PICTURES_PER_SHEET]
                entries = [self._sheet_entry(one["name"], one["heat_limits"]) for one in page]
                drawn = contact_sheet(entries, self.info, summary["threshold"])
                self._save(self.folder / sheet, Image.fromarray(drawn))
        except OSError as error:
            raise _not_written(self.folder, error) from error

    def _sheet_entry(self, name: str, limits: tuple[float, float]) -> SheetEntry:
        overlaid, classes, heat = (
            np.asarray(Image.open(self.folder / kind / f"{name}.png").convert("RGB"))
            for kind in ("overlay", "classes", "heat")
        )
        return SheetEntry(name, overlaid, classes, heat, limits)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """predictions.json.

        Raises:
            PansError: as `write`.
        """
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save(self.folder / _SUMMARY, text)
        except OSError as error:
            raise _not_written(self.folder, error) from error

    @staticmethod
    def _save(path: Path, content: Image.Image | NDArray[Any] | str) -> None:
        """Write a file whole or not at all; a link there is replaced, not what it points to."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                if isinstance(content, str):
                    file.write(content.encode())
                elif isinstance(content, Image.Image):
                    content.save(file, format="PNG")
                else:
                    np.save(file, content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _inside(folder: Path, paths: set[Path]) -> set[Path]:
    return {path for path in paths if path.is_relative_to(folder)}


def _not_written(folder: Path, error: OSError) -> PansError:
    return PansError(
        f"{folder} could not be written to ({error}); name a folder with space by --out"
    )
