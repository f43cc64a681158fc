"""Every metric of this repository from saved score maps, whichever model made them.

`python -m metrics.evaluate --scores DIR --labels DIR` prints the table of all protocols.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from metrics.evaluation import AnomalyEvaluation, Maps
from metrics.report import markdown_table, write_results
from utils.errors import PansError, exit_code

# StreetHazards' classes, in the order of their index.
CLASS_NAMES = (
    "unlabeled",
    "building",
    "fence",
    "other",
    "pedestrian",
    "pole",
    "road line",
    "road",
    "sidewalk",
    "vegetation",
    "car",
    "wall",
    "traffic sign",
)
IGNORE_INDEX = 255
SUFFIXES = {"npy": (".npy",), "png": (".png",), "tif": (".tif", ".tiff")}


class BadScoreMaps(PansError):
    """Files that are missing, unreadable or don't fit together."""


@dataclass(frozen=True)
class Entry:
    """The files of one image."""

    name: str
    scores: Path
    label: Path
    prediction: Path | None


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m metrics.evaluate", description=__doc__)
    add = parser.add_argument
    add("--scores", type=Path, required=True, help="folder of score maps, higher = more anomalous")
    add(
        "--labels",
        type=Path,
        required=True,
        help="folder of label PNGs, each of the relative path and name of its score map",
    )
    add("--predictions", type=Path, help="folder of PNGs of predicted class indices, for the IoUs")
    add("--format", choices=SUFFIXES, default="npy", help="of the score maps; PNG in 8 or 16 bits")
    add(
        "--label_offset",
        type=int,
        default=1,
        help="subtracted from the labels in the files; those below it are ignored. The default 1 "
        "is for StreetHazards' own files (class index + 1, 0 = nothing); 0 takes them as they are",
    )
    add("--num_classes", type=int, default=13, help="known classes, 0 to this less one")
    add("--anomaly_index", type=int, default=13, help="labels from here to 254 are anomalies")
    add("--class_names", default=",".join(CLASS_NAMES), help="comma-separated, by index")
    add(
        "--ignore_classes",
        default="",
        help="comma-separated names or indices of classes that the anomaly metrics leave out, "
        "such as other,unlabeled",
    )
    add("--min_predicted_size", type=int, default=500, help="smallest predicted component, pixels")
    add("--min_true_size", type=int, default=100, help="smallest true component, pixels")
    add("--out", type=Path, help="also write the results there, as JSON")
    return parser.parse_args(arguments)


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """The results of all score maps of a folder, as `AnomalyEvaluation` gives them.

    Raises:
        BadScoreMaps: a file is missing, unreadable or of the wrong shape or range.
        InvalidScores: a map holds NaN or infinite scores.
    """
    entries = match_files(options)
    class_names = options.class_names.split(",")
    bar = tqdm(total=2 * len(entries), desc="score maps, read twice or more")

    def read(index: int) -> Maps:
        if bar.n == bar.total:  # the pooled figures ask for a look more
            bar.total += len(entries)
        bar.update()
        return read_maps(entries[index], options)

    evaluation = AnomalyEvaluation(
        options.num_classes,
        options.anomaly_index,
        ignore_classes=_class_indices(options.ignore_classes, class_names),
        class_names=class_names,
        min_predicted_size=options.min_predicted_size,
        min_true_size=options.min_true_size,
        reread=read,
    )
    with bar:
        for index, entry in enumerate(entries):
            scores, label, prediction = read(index)
            evaluation.update(index, entry.name, scores, prediction, label)
        results = evaluation.results()
    if not results["images_scored"]:
        raise BadScoreMaps(
            f"none of the {len(entries)} images in {options.labels} holds both normal and "
            f"anomalous pixels, with --label_offset {options.label_offset} and --anomaly_index "
            f"{options.anomaly_index}; see --help"
        )
    return results


def match_files(options: argparse.Namespace) -> list[Entry]:
    """The score maps in the order of their names, each with what belongs to it.

    Raises:
        BadScoreMaps: there are no score maps, or a file has no counterpart.
    """
    scores = _files(options.scores, SUFFIXES[options.format])
    if not scores:
        raise BadScoreMaps(
            f"no {options.format} file in {options.scores}; name the folder with --scores and the "
            "kind of file with --format"
        )
    labels = _files(options.labels, SUFFIXES["png"])
    predictions = _files(options.predictions, SUFFIXES["png"]) if options.predictions else scores
    problems = [
        f"{len(names)} {problem}: {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
        for names, problem in (
            (
                sorted(scores.keys() - labels.keys()),
                f"score maps without a label in {options.labels}",
            ),
            (
                sorted(labels.keys() - scores.keys()),
                f"labels without a score map in {options.scores}",
            ),
            (
                sorted(scores.keys() ^ predictions.keys()),
                f"names with only a score map or only a prediction in {options.predictions}",
            ),
        )
        if names
    ]
    if problems:
        raise BadScoreMaps(f"{'; '.join(problems)}; files are matched by relative path and name")
    has_predictions = options.predictions is not None
    return [
        Entry(name, path, labels[name], predictions[name] if has_predictions else None)
        for name, path in sorted(scores.items())
    ]


def read_maps(entry: Entry, options: argparse.Namespace) -> Maps:
    """(scores, label, prediction) of one image, checked against each other.

    Raises:
        BadScoreMaps: as `evaluate`.
    """
    scores = _read(entry.scores)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32)
    label = _read(entry.label).astype(np.int64) - options.label_offset
    _check(entry.label, label, scores, 255 - options.label_offset)
    label = np.where(label < 0, IGNORE_INDEX, label).astype(np.uint8)
    if entry.prediction is None:
        return scores, label, None
    prediction = _read(entry.prediction)
    _check(entry.prediction, prediction, scores, options.num_classes - 1)
    return scores, label, prediction.astype(np.uint8)


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """{relative path without suffix: path} of the files below a folder."""
    if not folder.is_dir():
        raise BadScoreMaps(f"{folder} is no folder; see --help for what goes where")
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
    }


def _read(path: Path) -> np.ndarray:
    """A 2-D array of numbers from an NPY, PNG or TIFF file."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with Image.open(path, formats=("PNG", "TIFF")) as image:
                array = np.asarray(image)
    except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadScoreMaps(f"{path} can't be read ({error}); write it again") from error
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise BadScoreMaps(
            f"{path} holds {array.dtype} of shape {array.shape}; make it one number a pixel, (H, W)"
        )
    return array


def _check(path: Path, values: np.ndarray, scores: np.ndarray, largest: int) -> None:
    if values.shape != scores.shape:
        raise BadScoreMaps(
            f"{path} is {values.shape[1]}x{values.shape[0]} but its score map is "
            f"{scores.shape[1]}x{scores.shape[0]}; make them one size"
        )
    if values.max() > largest:
        raise BadScoreMaps(f"{path} goes up to {values.max()}; at most {largest} is possible")


def _class_indices(text: str, class_names: Sequence[str]) -> list[int]:
    """Class names or indices, separated by commas -> indices."""
    indices = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name not in class_names and not name.isdecimal():
            raise BadScoreMaps(
                f"--ignore_classes: there is no class {name!r}; known: {', '.join(class_names)}"
            )
        indices.append(class_names.index(name) if name in class_names else int(name))
    return indices


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the results and writes them where --out says; returns the exit code."""
    options = parse_arguments(arguments)
    return exit_code(lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    _check_options(options)
    results = evaluate(options)
    if options.out:
        write_results(options.out, results)
    print(markdown_table(results), end="")


def _check_options(options: argparse.Namespace) -> None:
    """Raises BadScoreMaps on what would only be found after the last image, or never."""
    if options.out and not options.out.parent.is_dir():
        raise BadScoreMaps(f"--out: the folder {options.out.parent} is missing; make it first")
    ranges = {"num_classes": (1, 255), "anomaly_index": (1, 254), "label_offset": (0, 254)}
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if not least <= value <= most:
            raise BadScoreMaps(f"--{name}: should be {least} to {most}, got {value}")
    if options.anomaly_index < options.num_classes:
        raise BadScoreMaps(
            f"--anomaly_index: {options.anomaly_index} is one of the {options.num_classes} known "
            "classes; give the first index after them, or other --num_classes"
        )


if __name__ == "__main__":
    sys.exit(main())
