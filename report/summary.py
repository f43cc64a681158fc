"""A test's results on the terminal, in at most fifteen lines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from metrics.anomaly import PER_IMAGE

SHOWN_SCORES = 9
PERCENT = ("AUPR", "AUROC", "FPR95")
FRACTIONS = ("Mean IoU", "Overall Acc", "Mean Acc")


def summary(results: Mapping[str, Any], dataset: str, folder: Path) -> list[str]:
    """The lines at the end of a test, in percent.

    Args:
        results: as in results.json.
        folder: the run's log folder.
    """
    images, scored = results["images"], results["images_scored"]
    lines = [
        f"test of {dataset}: {images} images, {scored} with anomalies, {results['checkpoint']}",
        _segmentation(results),
    ]
    if scored:
        lines += _scores(results)
    files = ["results.json", "per_image.csv"]
    if (folder / "pictures").is_dir():
        files.append("pictures/")
    return [*lines, f"{', '.join(files)} in {folder}", f"curves: tensorboard --logdir {folder}"]


def warnings(results: Mapping[str, Any]) -> list[str]:
    """One sentence per reason why the metrics of a test are meaningless."""
    found = []
    constant = results["constant_score_maps"]
    if constant:
        found.append(
            f"the anomaly score is constant over {len(constant)} of {results['images']} images, "
            f"such as {constant[0]}: their AUROC is 50 by definition, and the score is useless"
        )
    if not results["images_scored"]:
        found.append("no image has both normal and anomalous pixels: no anomaly metrics")
    return found


def is_known(value: float | None) -> bool:
    """Whether a metric has a value."""
    return value is not None and not math.isnan(value)


def _segmentation(results: Mapping[str, Any]) -> str:
    known = [name for name in FRACTIONS if is_known(results[name])]
    if not known:
        return "no IoU and no accuracy: the labels contain none of the trained classes"
    return "   ".join(f"{name} {100 * results[name]:.2f} %" for name in known)


def _scores(results: Mapping[str, Any]) -> list[str]:
    names = list(results["scores"])[:SHOWN_SCORES]
    hidden = len(results["scores"]) - len(names)
    width = max(map(len, [*names, "score"]))
    lines = [_row(width, "score", *PERCENT) + "   %, mean over the images with anomalies"]
    for name in names:
        lines.append(_row(width, name, *(f"{results['scores'][name][key]:.2f}" for key in PERCENT)))
    if hidden:
        lines[-1] += f"   {hidden} more in results.json"
    chance = 100 * results["anomaly_base_rate"], 50.0, 95.0
    times = results["AUPR"] / chance[0]
    lines.append(_row(width, "chance", *(f"{value:.2f}" for value in chance)))
    lines[-1] += f"   AUPR is {times:.1f} times the anomaly base rate"
    return lines


def _row(width: int, name: str, *cells: str) -> str:
    return f"{name:{width}}" + "".join(f"{cell:>8}" for cell in cells)


def per_image_rows(records: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The rows of per_image.csv: its header, then one per image and score, in percent.

    Args:
        records: `ImageRecord`s by score; metrics of images with only one kind of pixel stay empty.
    """
    rows: list[tuple[Any, ...]] = [
        ("index", "image", "score", "anomalous_percent", *PER_IMAGE.values())
    ]
    for score, images in records.items():
        for one in sorted(images, key=lambda record: record.index):
            found = one.metrics
            metrics = [100 * value for value in astuple(found)] if found else [""] * len(PER_IMAGE)
            rows.append((one.index, one.name, score, 100 * one.base_rate, *metrics))
    return rows
