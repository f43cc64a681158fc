"""The protocols under which anomaly segmentation is published, each with its figures and rule."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import stdev

from metrics.anomaly import AnomalyMetrics
from metrics.components import F1_LEVELS, ComponentMatch, component_scores
from metrics.pooled import PooledMetrics
from metrics.segmentation import SegmentationScores

Figures = dict[str, float | None]

NEAREST_RECALL = "FPR95 at the recall nearest 0.95"


@dataclass(frozen=True)
class Protocol:
    """Figures and what they mean.

    figures: by name; None where there is nothing to measure.
    unit: "percent" or "fraction", of the figures and of the three below.
    rule: one sentence.
    ignored_classes: names of the classes whose pixels are left out.
    standard_error: of the mean over images. chance: what random scores would give.
    largest_error: the most that a figure can be off, where it isn't exact.
    """

    figures: Figures
    unit: str
    rule: str
    ignored_classes: Sequence[str] = ()
    standard_error: Figures = field(default_factory=dict)
    chance: Figures = field(default_factory=dict)
    largest_error: Figures = field(default_factory=dict)


def per_image(
    metrics: Sequence[AnomalyMetrics], base_rate: float | None, ignored_classes: Sequence[str]
) -> Protocol:
    """The published protocol: the mean over images. `base_rate` is the mean over them, too."""
    columns = {
        "AUROC": [100 * one.auroc for one in metrics],
        "AUPR": [100 * one.aupr for one in metrics],
        "FPR95": [100 * one.fpr95 for one in metrics],
    }
    return Protocol(
        {name: mean(values) for name, values in columns.items()},
        "percent",
        ("" if metrics else "nothing, for no image holds both kinds of pixel: ")
        + "mean over the images that hold both normal and anomalous pixels; AUPR is average "
        f"precision (step rule); {NEAREST_RECALL}",
        ignored_classes,
        standard_error={name: standard_error(values) for name, values in columns.items()},
        chance=_chance(base_rate),
    )


def pooled(
    metrics: PooledMetrics | None, base_rate: float | None, ignored_classes: Sequence[str]
) -> Protocol:
    """All pixels of all images as one set."""
    figures: Figures = dict.fromkeys(("AUROC", "AUPR", "FPR95", "FPR at recall >= 0.95"))
    largest_error: Figures = {}
    if metrics is not None:
        values = metrics.auroc, metrics.aupr, metrics.fpr95, metrics.fpr_at_recall_95
        figures = {name: 100 * value for name, value in zip(figures, values, strict=True)}
        bounds = metrics.auroc_bound, metrics.aupr_bound, metrics.fpr95_bound
        largest_error = {name: 100 * bound for name, bound in zip(figures, bounds, strict=False)}
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
    threshold: float | None,
    sizes: tuple[int, int],
    ignored_classes: Sequence[str],
    errors: Sequence[str] = (),
) -> Protocol:
    """SegmentMeIfYouCan's; `sizes` are the least ones of a predicted and of a true component.

    Any of `errors` says why there is nothing to measure, and becomes the rule.
    """
    scores = component_scores(matches)
    figures = {"sIoU": scores.siou, "PPV": scores.ppv, "mean F1": scores.f1}
    return Protocol(
        {name: None if value is None else 100 * value for name, value in figures.items()},
        "percent",
        "; ".join(errors)
        or "SegmentMeIfYouCan, on 8-connected components of scores >= "
        f"{_number(threshold)}, the threshold of the best pooled pixel F1; predicted components "
        f"under {sizes[0]} pixels are dropped, true ones under {sizes[1]} ignored; F1 is the mean "
        f"over {len(F1_LEVELS)} levels, {F1_LEVELS[0]} to {F1_LEVELS[-1]}",
        ignored_classes,
    )


def segmentation(scores: SegmentationScores) -> Protocol:
    """The closed set: anomalous and ignored pixels are outside."""
    return Protocol(
        {
            "Mean IoU": _none_if_nan(scores["Mean IoU"]),
            "Overall Acc": _none_if_nan(scores["Overall Acc"]),
            "Mean Acc": _none_if_nan(scores["Mean Acc"]),
            "FreqW Acc": _none_if_nan(scores["FreqW Acc"]),
        },
        "fraction",
        "one confusion matrix of all images, without anomalous and ignored pixels; means over the "
        f"{scores['Classes present']} classes that the ground truth holds",
    )


def open_set(mean_iou: float, threshold: float | None, errors: Sequence[str] = ()) -> Protocol:
    """open-mIoU of DenseHybrid; `errors` as for `components`."""
    return Protocol(
        {"open-mIoU": _none_if_nan(mean_iou)},
        "fraction",
        "; ".join(errors)
        or f"DenseHybrid, if every image has a prediction: scores >= {_number(threshold)}, the "
        "threshold of pooled recall 0.95, reject a pixel; IoU counts rejected pixels as missed and "
        "anomalous ones called a class as false",
    )


def measured_size(sizes: Collection[tuple[int, int]], at_input_size: bool) -> str:
    """At which size a test was measured, in words; `sizes` are the (height, width) of its maps."""
    whose = "the network's input, labels resized (nearest)" if at_input_size else "the label"
    if len(sizes) != 1:
        return f"each image's size of {whose}"
    ((height, width),) = sizes
    return f"{height}x{width}, the size of {whose}"


def mean(values: Sequence[float]) -> float | None:
    """The mean, the same in whatever order the values come; None without any."""
    return math.fsum(values) / len(values) if values else None


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean; None for fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _chance(base_rate: float | None) -> Figures:
    """What random scores give in percent."""
    return {
        "AUROC": 50.0,
        "AUPR": None if base_rate is None else 100 * base_rate,
        "FPR95": 95.0,
    }


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(threshold: float | None) -> str:
    return "(none)" if threshold is None else f"{threshold:.6g}"
