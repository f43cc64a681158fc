"""`python -m dataset.look`: check a data set's labels by eye before training.

Writes a sheet of pictures beside their labels, with a legend, and prints each class's share of the
pixels in each split. Labels that are shifted by one or encoded differently show at once: the sky
is called road, or a class is missing.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dataset.base import DatasetNotFound, SegmentationDataset, evenly
from dataset.description import IGNORE_INDEX, NORMAL_INDEX, DatasetInfo
from dataset.loaders import in_workers
from dataset.pictures import read_label
from dataset.registry import DATASETS, describe, open_dataset
from utils.errors import PansError, exit_code
from utils.files import replacing
from utils.reading import Unreadable

# Pixels: a sheet is as wide as a slide.
TILE_WIDTH, TILES, MARGIN, TEXT, LINE = 472, 4, 8, 20, 30
SHEET_WIDTH = TILES * (TILE_WIDTH + MARGIN) + MARGIN
LEGEND_COLUMNS = 5
SAMPLES = 6
SIGNATURE = "PAnS dataset.look"

Pixels = NDArray[np.uint8]


class Row(NamedTuple):
    """A row of the table and of the legend: its text, and the label indices it counts."""

    words: str
    indices: tuple[int, ...]


def rows_of(info: DatasetInfo) -> list[Row]:
    """The classes by index, anomalies, and ignored pixels last."""
    anomaly = Row("anomaly", tuple(range(info.anomaly_index, IGNORE_INDEX)))
    ignored = Row("ignored", (IGNORE_INDEX,))
    if not info.has_class_labels:
        return [Row("normal", (NORMAL_INDEX,)), anomaly, ignored]
    classes = [Row(f"{index} {name}", (index,)) for index, name in enumerate(info.class_names)]
    return [*classes, anomaly, ignored]


# Counting


class SplitCounts(NamedTuple):
    """Counts of a split: `pixels` by label index, and problems of labels."""

    pictures: SegmentationDataset
    pixels: NDArray[np.int64]
    problems: list[str]


def count(pictures: SegmentationDataset) -> SplitCounts:
    """Read every label of a split."""
    pixels = np.zeros(256, dtype=np.int64)
    problems = []
    name = f"labels of {pictures.split}"
    for counts in in_workers(partial(_counts_of, pictures), len(pictures), name):
        if isinstance(counts, str):
            problems.append(counts)
        else:
            pixels += np.asarray(counts)
    return SplitCounts(pictures, pixels, problems)


def _counts_of(pictures: SegmentationDataset, index: int) -> list[int] | str:
    """The pixels of a label by index, or why it cannot be read."""
    path = pictures.folder / pictures.label_names[index]
    try:
        label = read_label(path, pictures.info, with_anomalies=pictures.split == "test")
    except Unreadable as error:
        return str(error)
    return label.histogram()


def table(splits: Sequence[SplitCounts]) -> str:
    """Share of all pixels per class, in percent, with one column per split."""
    info = splits[0].pictures.info
    lines = [
        ["% of the pixels", *(split.pictures.split for split in splits)],
        ["images", *(str(len(split.pictures)) for split in splits)],
    ]
    if any(split.problems for split in splits):
        lines.append(["unreadable", *(str(len(split.problems)) for split in splits)])
    for row in rows_of(info):
        lines.append([row.words, *(_share(split.pixels, row.indices) for split in splits)])
    width = max(len(line[0]) for line in lines) + 2
    return "\n".join(
        f"{line[0]:{width}}" + "".join(f"{cell:>12}" for cell in line[1:]) for line in lines
    )


def _share(pixels: NDArray[np.int64], indices: tuple[int, ...]) -> str:
    found = pixels[list(indices)].sum()
    return f"{100 * found / pixels.sum():.3f}" if found else "-"


# Drawing


def colours_of(label: Pixels, info: DatasetInfo) -> Pixels:
    """Label indices (H, W) -> colours (H, W, 3); ignored pixels are striped."""
    colours = info.palette[label]
    height, width = label.shape
    # Stripes, because a class of StreetHazards is black.
    stripes = (np.add.outer(np.arange(height), np.arange(width)) // 6 % 2).astype(bool)
    ignored = label == IGNORE_INDEX
    colours[ignored] = np.where(stripes[ignored, None], 150, 40)
    return colours


def draw_sheet(splits: Sequence[SegmentationDataset]) -> Image.Image:
    """Draw some samples of every split, picture beside label, and a legend of all colours."""
    info = splits[0].info
    strips = [strip for split in splits for strip in _strips(split, SAMPLES // len(splits))]
    strips.append(_legend(info))
    sheet = Image.new("RGB", (SHEET_WIDTH, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _strips(pictures: SegmentationDataset, samples: int) -> Iterator[Image.Image]:
    """Rows of two samples, with their names."""
    tiles: list[tuple[str, Image.Image, Pixels]] = []
    for index in evenly(range(len(pictures)), max(samples, 2)):
        try:
            image, label = pictures[index]
        except Unreadable:
            continue  # the table counts them
        small = label.resize(_tile_size(image), Image.Resampling.NEAREST)
        name = f"{pictures.split}: {pictures.names[index]}"
        tiles.append((name, image.resize(small.size), np.asarray(small)))
    for start in range(0, len(tiles), TILES // 2):
        some = tiles[start : start + TILES // 2]
        height = max(image.height for _, image, _ in some)
        strip = Image.new("RGB", (SHEET_WIDTH, height + LINE + MARGIN), "white")
        for number, (name, image, label) in enumerate(some):
            left = MARGIN + 2 * number * (TILE_WIDTH + MARGIN)
            _write(strip, (left, 2), name, 2 * TILE_WIDTH)
            strip.paste(image, (left, LINE))
            colours = Image.fromarray(colours_of(label, pictures.info))
            strip.paste(colours, (left + TILE_WIDTH + MARGIN, LINE))
        yield strip


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Size of an image whose longer side is as long as a tile is wide."""
    scale = TILE_WIDTH / max(image.size)
    return max(round(image.width * scale), 1), max(round(image.height * scale), 1)


def _legend(info: DatasetInfo) -> Image.Image:
    rows = rows_of(info)
    lines = -(-len(rows) // LEGEND_COLUMNS)
    strip = Image.new("RGB", (SHEET_WIDTH, lines * LINE + 2 * MARGIN), "white")
    column = (SHEET_WIDTH - MARGIN) // LEGEND_COLUMNS
    for number, row in enumerate(rows):
        left = MARGIN + number // lines * column
        top = MARGIN + number % lines * LINE
        swatch = np.full((LINE - 8, 2 * LINE), row.indices[0], dtype=np.uint8)
        strip.paste(Image.fromarray(colours_of(swatch, info)), (left, top + 4))
        box = (left, top + 4, left + 2 * LINE - 1, top + LINE - 5)
        ImageDraw.Draw(strip).rectangle(box, outline="black")
        beside = left + 2 * LINE + MARGIN
        _write(strip, (beside, top + 2), row.words, left + column - MARGIN - beside)
    return strip


def _write(picture: Image.Image, place: tuple[int, int], text: str, width: int) -> None:
    """Write a line of at most `width` pixels, shortened on the left."""
    font = ImageFont.load_default(TEXT)
    cut = text
    while font.getlength(cut) > width and len(text) > 1:
        text = text[1:]
        cut = f"...{text}"
    ImageDraw.Draw(picture).text(place, cut, fill="black", font=font)


# The command


def look(name: str, root: Path, out: Path) -> None:
    """Write the sheet, print the table.

    Raises:
        PansError: `out` is another program's.
        Unreadable: some labels cannot be read, after all else is done.
        DatasetNotFound: not one split is there.
    """
    if out.exists() and not _is_ours(out):
        raise PansError(f"{out} is there and is no sheet of this program; name another --out")
    splits = _splits_there(name, root)
    counts = [count(pictures) for pictures in splits]
    print(table(counts))
    signature = PngInfo()
    signature.add_text("Software", SIGNATURE)
    with replacing(out) as file:
        draw_sheet(splits).save(file, format="PNG", pnginfo=signature)
    print(f"{out}: pictures, labels and legend")
    problems = [problem for split in counts for problem in split.problems]
    if problems:
        raise Unreadable(f"{len(problems)} labels cannot be read, the first: {problems[0]}")


def _splits_there(name: str, root: Path) -> list[SegmentationDataset]:
    splits: list[SegmentationDataset] = []
    missing: list[DatasetNotFound] = []
    for split in describe(name, root).splits:
        try:
            splits.append(open_dataset(name, root, split))
        except DatasetNotFound as error:
            missing.append(error)
    if missing and not splits:
        raise missing[0]
    for note in missing:
        print(f"note: {note}")
    return splits


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get("Software") == SIGNATURE
    except (OSError, ValueError, SyntaxError):
        return False


def _named_png(out: Path | None, dataset: str) -> Path:
    """Where the sheet goes: in a folder under its usual name; .png is appended where it lacks."""
    usual = f"look_{dataset}.png"
    if out is None or out.is_dir():
        return Path(usual) if out is None else out / usual
    return out if out.suffix.lower() == ".png" else out.with_name(f"{out.name}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.look",
        description="Draw some pictures of a data set beside their labels, and count its classes.",
    )
    parser.add_argument(
        "--dataset", choices=DATASETS, default="streethazards", help="default: streethazards"
    )
    parser.add_argument(
        "--data_root", type=Path, default=Path("data"), help="folder of the data (default: data)"
    )
    parser.add_argument("--out", type=Path, help="the sheet, a PNG (default: look_DATASET.png)")
    options = parser.parse_args(arguments)
    out = _named_png(options.out, options.dataset)
    return exit_code(lambda: look(options.dataset, options.data_root, out))


if __name__ == "__main__":
    sys.exit(main())
