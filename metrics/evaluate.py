"""Every metric of this repository from any model's saved score maps.

`python -m metrics.evaluate --scores DIR --labels DIR` prints the table of all protocols.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from metrics.evaluation import AnomalyEvaluation, Maps
from metrics.maps import SUFFIXES, Entry, match_files, read_scores
from metrics.report import markdown_table, write_results
from utils.errors import PansError, exit_code
from utils.pictures import read_label
from utils.reading import Unreadable

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


@dataclass(frozen=True)
class Values:
    """The label values of a data set, as defaults of this program's flags.

    labelled: prefix of the names of all images with public labels; other score maps are ignored.
    left_out: prefixes of names that the benchmark leaves out.
    """

    label_offset: int = 0
    num_classes: int = 1
    anomaly_index: int = 1
    min_predicted_size: int = 500
    min_true_size: int = 100
    labelled: str = ""
    left_out: tuple[str, ...] = ()


# 0 normal, 1 (2 in RoadAnomaly) anomaly, 255 ignored; StreetHazards' files hold class index + 1.
DATASETS = {
    "streethazards": Values(label_offset=1, num_classes=13, anomaly_index=13),
    "fishyscapes_lostandfound": Values(),
    "road_anomaly": Values(),
    "road_anomaly_21": Values(labelled="validation"),
    "road_obstacle_21": Values(
        min_predicted_size=50,
        min_true_size=10,
        labelled="validation",
        left_out=tuple(f"validation_{number}" for number in (19, *range(21, 30))),
    ),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; those that are not passed come from `DATASETS`."""
    options = _parser().parse_args(arguments)
    for name, value in asdict(DATASETS[options.dataset]).items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m metrics.evaluate", description=__doc__)
    add = parser.add_argument
    add("--scores", type=Path, required=True, help="folder of score maps, higher = more anomalous")
    add(
        "--labels",
        type=Path,
        required=True,
        help="folder of label PNGs, named like the score maps or by their official names",
    )
    add("--predictions", type=Path, help="folder of PNGs of predicted class indices, for the IoUs")
    add(
        "--format",
        choices=SUFFIXES,
        help="format of the score maps; by default the one found in the folder",
    )
    add(
        "--dataset",
        choices=DATASETS,
        default="streethazards",
        help="data set of the labels: sets the flags below that are not passed (%(default)s)",
    )
    add(
        "--label_offset",
        type=int,
        help="subtracted from the labels in the files; those below it and 255 are ignored. 1 is "
        "for StreetHazards' own files (class index + 1, 0 = ignored); 0 changes nothing",
    )
    add("--num_classes", type=int, help="number of known classes")
    add("--anomaly_index", type=int, help="labels from here to 254 are anomalies")
    add("--class_names", default=",".join(CLASS_NAMES), help="comma-separated, by index")
    add(
        "--ignore_classes",
        default="",
        help="comma-separated names or indices of classes to exclude from the anomaly metrics, "
        "such as other,unlabeled",
    )
    add("--min_predicted_size", type=int, help="minimum size of a predicted component, in pixels")
    add("--min_true_size", type=int, help="minimum size of a true component, in pixels")
    add("--out", type=Path, help="also write the results to this file, as JSON")
    return parser


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate all score maps of a folder; returns `AnomalyEvaluation.results`.

    Raises:
        PansError: files do not match, or there is nothing to measure.
        Unreadable: a file cannot be read exactly.
        InvalidScores: a map contains NaN or infinite scores.
    """
    entries = _entries(options)
    class_names = options.class_names.split(",")
    bar = tqdm(total=2 * len(entries), desc="score maps, read twice or more")

    def read(index: int) -> Maps:
        if bar.n == bar.total:  # a further pass for the pooled metrics
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
    if results["protocols"]["pooled"]["figures"]["AUROC"] is None:
        raise PansError(
            f"the {len(entries)} images in {options.labels} hold only one of normal and anomalous "
            f"pixels, with --label_offset {options.label_offset} and --anomaly_index "
            f"{options.anomaly_index}; see --help"
        )
    return results


def _entries(options: argparse.Namespace) -> list[Entry]:
    entries = match_files(
        options.scores,
        options.labels,
        options.predictions,
        options.format,
        labelled=options.labelled,
        left_out=options.left_out,
    )
    inputs = {path for one in entries for path in (one.scores, one.label, one.prediction) if path}
    if options.out and options.out.resolve() in {path.resolve() for path in inputs}:
        raise PansError(f"--out: {options.out} is one of the files to read; name another")
    return entries


def read_maps(entry: Entry, options: argparse.Namespace) -> Maps:
    """Read (scores, label, prediction) of one image and check that their sizes match.

    Scores keep the file's type; labels and predictions are uint8.

    Raises:
        PansError, Unreadable: see `evaluate`.
    """
    scores = read_scores(entry.scores)
    values = _read_classes(entry.label, ("L", "I;16"), scores, 255)
    is_ignored = (values == IGNORE_INDEX) | (values < options.label_offset)
    label = np.where(is_ignored, IGNORE_INDEX, values - options.label_offset).astype(np.uint8)
    if entry.prediction is None:
        return scores, label, None
    largest = options.num_classes - 1
    prediction = _read_classes(entry.prediction, ("L", "I;16", "P"), scores, largest)
    return scores, label, prediction.astype(np.uint8)


def _read_classes(
    path: Path, modes: tuple[str, ...], scores: np.ndarray, largest: int
) -> np.ndarray:
    """Read a label map or predicted classes as integers of the shape of the scores."""
    values = np.asarray(read_label(path, modes)).astype(np.int64)
    if values.shape != scores.shape:
        raise Unreadable(
            f"{path} is {values.shape[1]}x{values.shape[0]} but its score map is "
            f"{scores.shape[1]}x{scores.shape[0]}; make them one size"
        )
    if values.max() > largest:
        raise Unreadable(f"{path} goes up to {values.max()}; at most {largest} is possible")
    return values


def _class_indices(text: str, class_names: Sequence[str]) -> list[int]:
    """Parse comma-separated class names or indices to indices."""
    indices = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name not in class_names and not name.isdecimal():
            raise PansError(
                f"--ignore_classes: there is no class {name!r}; known: {', '.join(class_names)}"
            )
        indices.append(class_names.index(name) if name in class_names else int(name))
    return indices


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the results and write them to --out; returns the exit code."""
    options = parse_arguments(arguments)
    return exit_code(lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    _check_options(options)
    results = evaluate(options)
    if options.out:
        write_results(options.out, results)
    print(markdown_table(results), end="")


def _check_options(options: argparse.Namespace) -> None:
    """Raise PansError for errors that would only show after the last image, or never."""
    if options.out and not options.out.parent.is_dir():
        raise PansError(f"--out: the folder {options.out.parent} is missing; make it first")
    ranges = {"num_classes": (1, 255), "anomaly_index": (1, 254), "label_offset": (0, 254)}
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if not least <= value <= most:
            raise PansError(f"--{name}: should be {least} to {most}, got {value}")
    if options.anomaly_index < options.num_classes:
        raise PansError(
            f"--anomaly_index: {options.anomaly_index} is one of the {options.num_classes} known "
            "classes; pass the first index after them, or another --num_classes"
        )


if __name__ == "__main__":
    sys.exit(main())
