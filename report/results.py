"""Report the results of a validation or a test: TensorBoard, results.json and terminal."""

import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dataset.description import DatasetInfo
from metrics.evaluation import ImageRecord
from metrics.report import markdown_scores, write_results
from report.summary import FRACTIONS, PERCENT, is_known, per_image_rows, summary, warnings
from report.visualize import class_iou_figure, confusion_matrix_figure
from utils.files import write_text
from utils.logger import Logger

CHARTS = {
    "training": {
        "loss": ["train/loss", "validation/Loss"],
        "learning rate": ["train/lr"],
        "images per second": ["train/images_per_second"],
    },
    "validation": {"IoU and accuracies": [f"validation/{name}" for name in FRACTIONS]},
}
"""TensorBoard charts with several tags."""

COMPARED_OPTIONS = (
    *("dataset", "backbone", "classifier", "norm_act", "output_stride", "epochs", "batch_size"),
    *("crop_size", "lr", "random_seed", "precision", "multi_scala"),
)
"""The options in the HPARAMS tab; the table of options has all of them."""

_FRACTIONS = (*FRACTIONS, "FreqW Acc")


def log_start(logger: Logger, options: Mapping[str, Any]) -> None:
    """Log the run's options and charts; to be called once per run."""
    logger.table("options", options)
    logger.layout(CHARTS)


def log_segmentation(
    logger: Logger,
    tag: str,
    scores: Mapping[str, Any],
    matrix: Tensor,
    info: DatasetInfo,
    step: int,
) -> None:
    """Log segmentation scores, IoU per class and the confusion matrix.

    For labels without classes there is nothing to log.
    """
    if not matrix.any():
        return
    values = {name: scores[name] for name in ("Loss", *_FRACTIONS) if name in scores}
    logger.scalars({f"{tag}/{name}": value for name, value in values.items()}, step)
    if not logger.is_on:
        return
    present = {i: value for i, value in scores["Class IoU"].items() if math.isfinite(value)}
    names = info.class_names
    logger.scalars({f"{tag}_iou/{names[i]}": value for i, value in present.items()}, step)
    logger.figure(f"{tag}_iou/bars", class_iou_figure(scores["Class IoU"], info), step)
    shares = confusion_matrix_figure(matrix.cpu().numpy(), names)
    logger.figure(f"{tag}/confusion_matrix", shares, step)


def report_results(
    logger: Logger,
    folder: Path,
    results: Mapping[str, Any],
    records: Mapping[str, Sequence[ImageRecord]],
    matrix: Tensor,
    info: DatasetInfo,
    step: int,
) -> None:
    """Write FOLDER/results.json and per_image.csv, print a summary, and log it with the options.

    Args:
        records: image records by score.
        matrix: (C, C) confusion matrix.
    """
    # Print first: a full disk cannot prevent that.
    for line in summary(results, info.name, folder):
        print(line)
    for warning in warnings(results):
        print(f"WARNING: {warning}", file=sys.stderr)
    write_results(folder / "results.json", results)
    table = io.StringIO()
    csv.writer(table).writerows(per_image_rows(records))
    write_text(folder / "per_image.csv", table.getvalue())
    metrics = {name: results[name] for name in (*PERCENT, *_FRACTIONS)}
    found = {f"test/{name}": value for name, value in metrics.items() if is_known(value)}
    log_segmentation(logger, "test", results, matrix, info, step)
    if len(results["scores"]) > 1:
        logger.text("test/all_scores", markdown_scores(results), step)
    options = {name: results["options"][name] for name in COMPARED_OPTIONS}
    logger.hparams(options | {"score": results["score"]}, found, step)
    logger.flush()
