"""What a validation or a test found: to TensorBoard, results.json and the terminal."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dataset import DatasetInfo
from metrics.report import markdown_run, write_results
from report.logger import Logger

CHARTS = {
    "training": {
        "loss": ["train/loss", "validation/Loss"],
        "learning rate": ["train/lr"],
        "images per second": ["train/images_per_second"],
    },
    "validation": {
        "IoU and accuracies": [
            "validation/Mean IoU",
            "validation/Overall Acc",
            "validation/Mean Acc",
        ],
        "IoU of every class": ["validation_iou/.*"],
    },
}
"""TensorBoard's charts that show several tags together."""

_FRACTIONS = ("Mean IoU", "Overall Acc", "Mean Acc", "FreqW Acc")
_PERCENT = ("AUROC", "AUPR", "FPR95")


def log_start(logger: Logger, options: Mapping[str, Any]) -> None:
    """The run's options and charts, once a run."""
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
    """Segmentation scores, IoU of every class and the confusion matrix, to TensorBoard.

    Of labels that tell no class there is nothing to log.
    """
    if not matrix.any():
        return
    values = {name: scores[name] for name in ("Loss", *_FRACTIONS) if name in scores}
    logger.scalars({f"{tag}/{name}": value for name, value in values.items()}, step)
    logger.class_iou(f"{tag}_iou", scores["Class IoU"], info, step)
    logger.confusion_matrix(f"{tag}/confusion_matrix", matrix.cpu().numpy(), info.class_names, step)


def report_results(
    logger: Logger,
    folder: Path,
    results: Mapping[str, Any],
    matrix: Tensor,
    info: DatasetInfo,
    step: int,
) -> None:
    """Write FOLDER/results.json, print the figures, and log both with the options."""
    write_results(folder / "results.json", results)
    metrics = {name: results[name] for name in (*_PERCENT, *_FRACTIONS)}
    found = {f"test/{name}": value for name, value in metrics.items() if _is_known(value)}
    log_segmentation(logger, "test", results, matrix, info, step)
    for score, figures in results["scores"].items():
        values = {f"scores/{name}/{score}": figures[name] for name in _PERCENT}
        logger.scalars({tag: value for tag, value in values.items() if value is not None}, step)
    logger.hparams(results["options"], found, step)
    logger.flush()
    print(markdown_run(results))
    for line in _summary(results):
        print(line)
    for warning in _warnings(results):
        print(f"WARNING: {warning}", file=sys.stderr)
    print(f"results: {folder / 'results.json'}   TensorBoard: tensorboard --logdir {folder}")


def _summary(results: Mapping[str, Any]) -> list[str]:
    lines = [f"{name:12} {results[name]:8.4f}" for name in _FRACTIONS if _is_known(results[name])]
    if not lines:
        lines.append("no IoU and no accuracy: the labels hold none of the classes that are trained")
    if results["images_scored"]:
        base_rate = 100 * results["anomaly_base_rate"]
        chance = {"AUROC": 50.0, "AUPR": base_rate, "FPR95": 95.0}
        lines += [
            f"{name:12} {results[name]:8.2f} %   (chance {chance[name]:.2f} %)" for name in _PERCENT
        ]
        lines.append(f"AUPR is {results['AUPR'] / base_rate:.1f} times the anomaly base rate")
    lines.append(f"{results['images_scored']} of {results['images']} images have anomalies")
    return lines


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _warnings(results: Mapping[str, Any]) -> list[str]:
    warnings = []
    constant = results["constant_score_maps"]
    if constant:
        warnings.append(
            f"the anomaly score is constant over {len(constant)} of {results['images']} images, "
            f"such as {constant[0]}: their AUROC is 50 by definition, the score says nothing"
        )
    if not results["images_scored"]:
        warnings.append("no image holds both normal and anomalous pixels: no anomaly metrics")
    return warnings
