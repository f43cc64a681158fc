"""The published protocols of anomaly segmentation, each with its metrics and rule."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

from torch import Tensor

from metrics.anomaly import PER_IMAGE, AnomalyMetrics
from metrics.components import F1_LEVELS, ComponentMatch, component_scores
from metrics.curve import PooledMetrics
from metrics.segmentation import open_mean_iou

Figures = dict[str, float | None]

ABSENT_TOO = "Mean IoU, absent classes too"
NEAREST_RECALL = "FPR95 at the recall nearest 0.95"


@dataclass(frozen=True)
class Protocol:
    """The metrics of a protocol and how they were measured.

    figures: metrics by name; None if undefined.
    unit: "percent" or "fraction", of the metrics and of the next three.
    rule: one sentence.
    ignored_classes: names of the classes whose pixels are excluded.
    standard_error: of the mean over images. chance: the value for random scores.
    largest_error: bound of the error of each metric that is not exact.
    threshold: score threshold of the protocol, if any, with its bound threshold_largest_error.
    """

    figures: Figures
    unit: str
    rule: str
    ignored_classes: Sequence[str] = ()
    standard_error: Figures = field(default_factory=dict)
    chance: Figures = field(default_factory=dict)
    largest_error: Figures = field(default_factory=dict)
    threshold: float | None = None
    threshold_largest_error: float = 0.0


def per_image(
    metrics: Sequence[AnomalyMetrics], base_rate: float | None, ignored_classes: Sequence[str]
) -> Protocol:
    """The published protocol: the mean over images. `base_rate` is the mean over them, too."""
    columns = {
        name: [100 * getattr(one, key) for one in metrics] for name, key in PER_IMAGE.items()
    }
    return Protocol(
        {name: mean(values) for name, values in columns.items()},
        "percent",
        ("" if metrics else "nothing, for no image holds both kinds of pixel: ")
        + "mean over the images that have both normal and anomalous pixels; AUPR is average "
        f"precision (step rule); {NEAREST_RECALL}",
        ignored_classes,
        standard_error={name: standard_error(values) for name, values in columns.items()},
        chance=_chance(base_rate),
    )


def pooled(
    metrics: PooledMetrics | None, base_rate: float | None, ignored_classes: Sequence[str]
) -> Protocol:
    """All pixels of all images as one set."""
    names = "AUROC", "AUPR", "FPR95", "FPR at recall >= 0.95"
    fields = "auroc", "aupr", "fpr95", "fpr_at_recall_95"
    figures: Figures = dict.fromkeys(names)
    largest_error: Figures = {}
    if metrics is not None:
        for name, key in zip(names, fields, strict=True):
            figures[name] = 100 * getattr(metrics, key)
            largest_error[name] = 100 * getattr(metrics, f"{key}_bound")
    return Protocol(
        figures,
        "percent",
        "all pixels of all images as one set; AUPR is average precision (step rule); "
        f"{NEAREST_RECALL}, and beside it at the highest threshold of recall >= 0.95",
        ignored_classes,
        chance=_chance(base_rate),
        largest_error=largest_error,
    )


def components(
    matches: Sequence[ComponentMatch],
    metrics: PooledMetrics | None,
    sizes: tuple[int, int],
    ignored_classes: Sequence[str],
    errors: Sequence[str] = (),
) -> Protocol:
    """SegmentMeIfYouCan's protocol; `sizes` are the minimum sizes of predicted and true components.

    An entry of `errors` is the reason why there is nothing to measure, and becomes the rule.
    """
    scores = component_scores(matches)
    figures = {"sIoU": scores.siou, "PPV": scores.ppv, "mean F1": scores.f1}
    threshold, bound = (
        (metrics.best_f1_threshold, metrics.best_f1_threshold_bound) if metrics else (None, 0)
    )
    return Protocol(
        {name: None if value is None else 100 * value for name, value in figures.items()},
        "percent",
        "; ".join(errors)
        or f"SegmentMeIfYouCan, on 8-connected components of scores > {_number(threshold, bound)}, "
        f"the threshold of the best pooled pixel F1; predicted components under {sizes[0]} pixels "
        f"are dropped, true ones under {sizes[1]} ignored; F1 is the mean over {len(F1_LEVELS)} "
        f"levels, {F1_LEVELS[0]} to {F1_LEVELS[-1]}",
        ignored_classes,
        threshold=threshold,
        threshold_largest_error=bound,
    )


def segmentation(scores: Mapping[str, Any]) -> Protocol:
    """Closed-set segmentation from `segmentation_scores`, without anomalous and ignored pixels."""
    names = "Mean IoU", ABSENT_TOO, "Overall Acc", "Mean Acc", "FreqW Acc"
    return Protocol(
        {name: _none_if_nan(scores[name]) for name in names},
        "fraction",
        "one confusion matrix of all images, without anomalous and ignored pixels; means over the "
        f"{scores['Classes present']} classes that the ground truth holds; with absent classes "
        "too, IoU is 0 for a class that is predicted and absent",
    )


def open_set(
    counts: Tensor | None, metrics: PooledMetrics | None, errors: Sequence[str] = ()
) -> Protocol:
    """DenseHybrid's open-mIoU from `open_set_counts`; `errors`: see `components`."""
    threshold, bound = (
        (metrics.recall_95_threshold, metrics.recall_95_threshold_bound) if metrics else (None, 0)
    )
    figures: Figures = dict.fromkeys(("open-mIoU", "open-mIoU, absent classes too"))
    if counts is not None:
        found = open_mean_iou(counts), open_mean_iou(counts, absent_classes_too=True)
        figures = dict(zip(figures, map(_none_if_nan, found), strict=True))
    return Protocol(
        figures,
        "fraction",
        "; ".join(errors)
        or f"DenseHybrid, if every image has a prediction: scores >= {_number(threshold, bound)}, "
        "the threshold of pooled recall 0.95, reject a pixel; IoU counts rejected pixels as missed "
        "and anomalous ones called a class as false",
        threshold=threshold,
        threshold_largest_error=bound,
    )


def measured_size(sizes: Collection[tuple[int, int]], at_input_size: bool) -> str:
    """Describe the size at which a test was measured; `sizes`: (height, width) of its maps."""
    whose = "the network's input, labels resized (nearest)" if at_input_size else "the label"
    if len(sizes) != 1:
        return f"each image's size of {whose}"
    ((height, width),) = sizes
    return f"{height}x{width}, the size of {whose}"


def mean(values: Sequence[float]) -> float | None:
    """The mean, independent of the order of the values; None without values."""
    return math.fsum(values) / len(values) if values else None


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean; None for fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def standard_deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1), the spread over runs; None for fewer than two."""
    return stdev(values) if len(values) > 1 else None


def _chance(base_rate: float | None) -> Figures:
    """The metrics of random scores, in percent."""
    return {
        "AUROC": 50.0,
        "AUPR": None if base_rate is None else 100 * base_rate,
        "FPR95": 95.0,
    }


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(threshold: float | None, bound: float) -> str:
    if threshold is None:
        return "(none)"
    return f"{threshold:.6g}{f' (known to {bound:.1g})' if bound else ''}"
