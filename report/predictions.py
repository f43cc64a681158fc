"""The files that `--predict` writes for every picture, and their summary."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset.description import DatasetInfo
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
from utils.files import replacing
from utils.reading import is_hidden

_PICTURES_PER_SHEET = 16
_KINDS = ("classes", "heat", "overlay", "score", "mask", "panel")
_SUMMARY, _SHEET = "predictions.json", "contact_sheet_"
_JOURNAL = ".predictions_"
"""Start of the name of a process's list of what it has done, while predictions.json is away."""


class PredictionFolder:
    """The output folder of --predict, with one folder per kind of result.

    classes/NAME.png: class indices in the palette's colours. heat/NAME.png: the anomaly score, from
    black to bright yellow between the limits of `report.visualize.HeatScale`. overlay/NAME.png:
    that over the picture, with the mask's outline. score/NAME.npy: (H, W) float32. mask/NAME.png:
    255 where the score reaches the threshold, 0 elsewhere, if there is one. panel/NAME.png:
    picture, classes, overlay and heat with titles, legend and colour bar. overlay/NAME.mp4: the
    overlays of a video's frames, overlay/NAME/000000.png and on.

    predictions.json lists the pictures that are done, and is away while that changes. Every file
    is written atomically, and replaces a link instead of the link's target.

    Args:
        rank: of this process among all that write to the folder.
    """

    def __init__(self, folder: Path, info: DatasetInfo, rank: int = 0) -> None:
        self.folder, self.info, self.rank = folder, info, rank
        self._outdated: list[Path] = []  # as soon as a picture changes
        self._masks: set[Any] = set()

    def check(self, sources: Sequence[Source], *, overwrite: bool) -> None:
        """Check that the results of `sources` overwrite no file of the user's; writes nothing.

        Raises:
            PansError: a result would take the place of a picture or video that is to be read;
                or, without `overwrite`, the folder holds other things than earlier results.
        """
        inputs = {source.path.resolve() for source in sources}
        for source in sources:
            for place in self._places(source):
                if place in inputs or (
                    source.is_video and any(path.is_relative_to(place) for path in inputs)
                ):
                    raise PansError(
                        f"--out {self.folder}: the results of {source.path} would overwrite "
                        f"{place}, which is to be read; name another folder"
                    )
        if overwrite or not self.folder.is_dir():
            return
        foreign = {path.name for path in self.folder.iterdir() if not is_hidden(Path(path.name))}
        earlier = self._earlier_summary()
        if earlier or self._journals():
            sheets = {name for name in foreign if name.startswith(_SHEET)}
            foreign = sheets - set(_sheets(earlier))
        if foreign:
            raise PansError(
                f"--out {self.folder} holds {min(foreign)}, which is no earlier result of "
                "--predict; name an empty folder, or allow it with --overwrite"
            )

    def begin(self) -> None:
        """Forget what earlier runs have noted; the main process calls it before all others write.

        Raises:
            PansError: as `write`.
        """
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal(0).write_text("")  # marks the folder as ours, however this run ends
            for rank, journal in self._journals().items():
                if rank:
                    journal.unlink()

    @contextmanager
    def predicting(self, sources: Sequence[Source], heading: Mapping[str, Any]) -> Iterator[None]:
        """The body writes this process's share of the results of `sources`.

        If it raises, predictions.json lists, below `heading`, what all processes have done.
        """
        earlier = self._earlier_summary()
        if earlier.get("threshold") is not None:
            self._masks = {one.get("name") for one in earlier["pictures"] if isinstance(one, dict)}
        videos = [self._video(source.name) for source in sources if source.is_video]
        self._outdated = [*(self.folder / name for name in _sheets(earlier)), *videos]
        self._outdated.append(self.folder / _SUMMARY)
        try:
            yield
        except BaseException:
            if not self._outdated:
                with suppress(OSError):
                    self._tell_of_the_done(heading)
            raise

    def _change(self) -> None:
        """Delete what describes all results, before the first of them changes."""
        for path in self._outdated:
            path.unlink(missing_ok=True)
        self._outdated = []

    def tell(self, done: Mapping[str, Any] | str) -> None:
        """Note a picture whose results are written, or what is wrong with one.

        Raises:
            PansError: as `write`.
        """
        with _writing(self.folder), self._journal(self.rank).open("a", encoding="utf-8") as file:
            file.write(json.dumps(done) + "\n")

    def _tell_of_the_done(self, heading: Mapping[str, Any]) -> None:
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # the last process tells of all of them
            journals = self._journals().values()
            if not journals:  # all is told already
                return
            done = list(chain.from_iterable(map(_entries, journals)))
            pictures = [entry for entry in done if isinstance(entry, dict)]
            unread = [entry for entry in done if isinstance(entry, str)]
            self._write_summary(_summary(heading, pictures, unread, complete=False))
        finally:
            os.close(folder)

    def _journal(self, rank: int) -> Path:
        return self.folder / f"{_JOURNAL}{rank}.jsonl"

    def _journals(self) -> dict[int, Path]:
        """{rank: what that process has done}, of earlier runs that were stopped too."""
        found = {
            path.stem[len(_JOURNAL) :]: path for path in self.folder.glob(f"{_JOURNAL}*.jsonl")
        }
        return {int(rank): path for rank, path in sorted(found.items()) if rank.isdecimal()}

    def _place(self, kind: str, name: str, suffix: str) -> Path:
        return self.folder / kind / f"{name}{suffix}"

    def _places(self, source: Source) -> Iterator[Path]:
        """Where results of a picture go, or the folders for those of a video's frames."""
        for kind in _KINDS:
            suffix = "" if source.is_video else ".npy" if kind == "score" else ".png"
            yield self._place(kind, source.name, suffix).resolve()
        if source.is_video:
            yield self._video(source.name).resolve()

    def _video(self, name: str) -> Path:
        return self._place("overlay", name, ".mp4")

    def _earlier_summary(self) -> dict[str, Any]:
        """The folder's predictions.json; empty if there is none."""
        path = self.folder / _SUMMARY
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError, RecursionError):
            return {}
        match found:
            case {"checkpoint": _, "score": _, "pictures": list()}:
                return {**found}
        return {}

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
        maps = prediction, overlaid, heat
        panel = prediction_panel(picture, *maps, limits, self.info, scale.threshold)
        classes = Image.fromarray(prediction, mode="P")
        classes.putpalette(self.info.palette.tobytes())
        with _writing(self.folder):
            self._change()
            self._save(self._place("classes", name, ".png"), classes)
            for kind, drawn in (("heat", heat), ("overlay", overlaid), ("panel", panel)):
                self._save(self._place(kind, name, ".png"), Image.fromarray(drawn))
            if mask is not None:
                white = Image.fromarray(mask.astype(np.uint8) * 255)
                self._save(self._place("mask", name, ".png"), white)
            elif name in self._masks:
                self._place("mask", name, ".png").unlink(missing_ok=True)
            self._save(self._place("score", name, ".npy"), score)
        return limits

    def write_video(self, name: str, pictures: Sequence[str], rate: Fraction) -> None:
        """Write the overlays of a video's frames as overlay/NAME.mp4, if there are any.

        Args:
            name: of the video.
            pictures: the names of all pictures, in any order, of which the frames are some.
            rate: frames per second.

        Raises:
            NoVideo: it cannot be encoded, or the folder cannot be written to.
        """
        numbers = [
            int(path.name) for path in map(PurePosixPath, pictures) if str(path.parent) == name
        ]
        frames = [self.folder / f"overlay/{name}/{number:06d}.png" for number in sorted(numbers)]
        if frames:
            write_video(self._video(name), frames, rate)

    def finish(
        self,
        heading: Mapping[str, Any],
        pictures: Sequence[Mapping[str, Any]],
        unreadable: Sequence[str],
    ) -> None:
        """Write predictions.json, and contact_sheet_001.png and on, of 16 pictures each.

        Args:
            heading: what holds for all pictures, with "threshold".
            pictures: each with its "name" and "heat_limits".
            unreadable: a line for each file that could not be read.

        Raises:
            PansError: as `write`.
        """
        summary = _summary(heading, pictures, unreadable, complete=True)
        with _writing(self.folder):
            self._change()
            self._write_summary(summary)
            for journal in self._journals().values():
                journal.unlink()
            for number, sheet in enumerate(_sheets(summary)):
                page = summary["pictures"][number * _PICTURES_PER_SHEET :][:_PICTURES_PER_SHEET]
                entries = [self._sheet_entry(one["name"], one["heat_limits"]) for one in page]
                drawn = contact_sheet(entries, self.info, summary["threshold"])
                self._save(self.folder / sheet, Image.fromarray(drawn))

    def _sheet_entry(self, name: str, limits: tuple[float, float]) -> SheetEntry:
        overlaid, classes, heat = (
            np.asarray(Image.open(self._place(kind, name, ".png")).convert("RGB"))
            for kind in ("overlay", "classes", "heat")
        )
        return SheetEntry(name, overlaid, classes, heat, limits)

    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        with replacing(self.folder / _SUMMARY, follow_link=False) as file:
            file.write(text.encode())

    @staticmethod
    def _save(path: Path, content: Image.Image | NDArray[Any]) -> None:
        # Unsynced: six files per picture would wait for the disk longer than for the network.
        with replacing(path, follow_link=False, synced=False) as file:
            if isinstance(content, Image.Image):
                content.save(file, format="PNG")
            else:
                np.save(file, content)


def _summary(
    heading: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any]],
    unreadable: Sequence[str],
    *,
    complete: bool,
) -> dict[str, Any]:
    named = sorted(pictures, key=lambda one: one["name"])
    listed = {"pictures": named, "unreadable": sorted(set(unreadable))}
    return {**heading, "complete": complete, **listed}


def _sheets(summary: Mapping[str, Any]) -> list[str]:
    """The names of the contact sheets of a summary's pictures."""
    count = -(-len(summary.get("pictures", ())) // _PICTURES_PER_SHEET)
    return [f"{_SHEET}{number:03d}.png" for number in range(1, count + 1)]


def _entries(journal: Path) -> Iterator[Any]:
    """What a process has noted; a last line that was cut off is left out."""
    for line in journal.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn an OSError into a PansError that names the folder."""
    try:
        yield
    except OSError as error:
        raise PansError(
            f"{folder} could not be written to ({error}); name a folder with space by --out"
        ) from error
