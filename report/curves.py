"""The results of one anomaly score in TensorBoard: metrics, curves and histograms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from metrics import PooledMetrics, ScoreHistogram, ThresholdCurve
from metrics.pooled import BinnedScores
from metrics.report import markdown_table
from report.visualize import class_matrix_figure
from utils.logger import Logger

_PR_PLUGIN_POINTS = 127  # the maximum of the plugin's own summaries
_FONT_SIZE = 15
_NORMAL, _ANOMALOUS = "tab:blue", "tab:red"


def log_anomaly_metrics(
    logger: Logger, tag: str, results: Mapping[str, Any], pooled: BinnedScores, step: int
) -> None:
    """Log the table of every protocol's metrics, and curves and histograms of all pixels.

    Args:
        tag: prefix of all tags, such as "test", or "test msp" if several scores are logged.
        results: as returned by `AnomalyEvaluation.results`.
        pooled: the counts of all processes.
    """
    logger.text(f"{tag}/table", markdown_table(results), step)
    metrics, curve, histogram = pooled.metrics(), pooled.curve(), pooled.histogram()
    points = pooled.curve(_PR_PLUGIN_POINTS)
    if metrics is None or curve is None or histogram is None or points is None:
        return
    logger.pr_curve(f"{tag}/pooled", points.true_positives, points.false_positives, step)
    logger.histogram(f"{tag}/scores_normal", histogram.edges, histogram.normal, step)
    logger.histogram(f"{tag}/scores_anomalous", histogram.edges, histogram.anomalous, step)
    logger.figure(f"{tag}/precision_recall", precision_recall_figure(curve, metrics), step)
    logger.figure(f"{tag}/roc", roc_figure(curve, metrics), step)
    logger.figure(f"{tag}/scores", score_histogram_figure(histogram), step)


def log_prototypes(
    logger: Logger, tag: str, prototypes: Tensor, names: Sequence[str], step: int
) -> None:
    """Log the cosines between the prototypes (C, channels, 1, 1) of the cosine classifier."""
    cosines = prototype_cosines(prototypes).cpu().numpy()
    logger.figure(f"{tag}/cosines", prototypes_figure(cosines, names), step)


def precision_recall_figure(curve: ThresholdCurve, metrics: PooledMetrics) -> Figure:
    """Plot precision over recall of all pixels as one set, and chance."""
    base_rate = float(curve.precision[-1])
    recall, precision = np.append(0, curve.recall), np.append(curve.precision[0], curve.precision)
    figure, axes = _unit_square("recall", "precision")
    axes.step(recall, precision, where="pre", color=_ANOMALOUS, linewidth=2, label="score")
    axes.axhline(base_rate, color="grey", linestyle="--", label=f"chance {100 * base_rate:.2f} %")
    axes.set_title(f"All pixels: AUPR {100 * metrics.aupr:.2f} %", fontsize=_FONT_SIZE)
    axes.legend(fontsize=_FONT_SIZE)
    return figure


def roc_figure(curve: ThresholdCurve, metrics: PooledMetrics) -> Figure:
    """Plot recall over the false positive rate of all pixels as one set, with FPR95 marked."""
    rates = np.append(0, curve.false_positive_rate), np.append(0, curve.recall)
    label = f"FPR95 {100 * metrics.fpr95:.2f} %"
    figure, axes = _unit_square("false positive rate", "recall")
    axes.plot(*rates, color=_ANOMALOUS, linewidth=2, label="score")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="chance")
    axes.plot(metrics.fpr95, 0.95, "o", color="black", clip_on=False, label=label)
    axes.set_title(f"All pixels: AUROC {100 * metrics.auroc:.2f} %", fontsize=_FONT_SIZE)
    axes.legend(fontsize=_FONT_SIZE)
    return figure


def score_histogram_figure(histogram: ScoreHistogram) -> Figure:
    """Plot histograms of the scores of normal and of anomalous pixels, each in percent."""
    figure, axes = _axes("anomaly score (beyond: in the outer buckets)", "share of pixels, %")
    kinds = {"normal": (histogram.normal, _NORMAL), "anomalous": (histogram.anomalous, _ANOMALOUS)}
    for name, (pixels, colour) in kinds.items():
        percent = 100 * pixels / pixels.sum()
        label = f"{name}, {pixels.sum():,} pixels"
        axes.stairs(percent, histogram.edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(percent, histogram.edges, color=colour, linewidth=1.5, label=label)
    axes.set_yscale("log")
    axes.set_xlim(histogram.edges[0], histogram.edges[-1])
    axes.set_title("Scores of all pixels, in percent of their kind", fontsize=_FONT_SIZE)
    axes.legend(fontsize=_FONT_SIZE)
    return figure


def prototype_cosines(prototypes: Tensor) -> Tensor:
    """Cosines in [-1, 1] of each pair of prototypes: (C, channels, 1, 1) -> (C, C)."""
    directions = F.normalize(prototypes.detach().flatten(1).double(), dim=1)
    return (directions @ directions.T).to(torch.float32)


def prototypes_figure(cosines: np.ndarray, names: Sequence[str]) -> Figure:
    """Plot the (C, C) cosines between prototypes, red for similar and blue for opposite ones."""
    return class_matrix_figure(
        cosines,
        names,
        colours="RdBu_r",
        limits=(-1, 1),
        number="{:.2f}",
        title="Cosines between the classes' prototypes",
    )


def _unit_square(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure, axes = _axes(x_label, y_label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return figure, axes


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Empty axes, with text that is readable in a card of half the size."""
    figure = Figure((7, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, fontsize=_FONT_SIZE)
    axes.set_ylabel(y_label, fontsize=_FONT_SIZE)
    axes.tick_params(labelsize=_FONT_SIZE)
    axes.grid(alpha=0.3)
    return figure, axes
