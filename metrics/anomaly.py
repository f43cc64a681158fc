"""Exact AUROC, AUPR and FPR95 of one anomaly score map."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from utils.errors import PansError

Array = np.ndarray | torch.Tensor

_CELL_BITS = 18


class InvalidScores(PansError):
    """Scores that are NaN or infinite, and so cannot be ranked."""


@dataclass(frozen=True)
class Ranks:
    """The curve of one score map, which changes only at its P anomalous scores a_1 <= a_2 <= ...

    Each of them gives the threshold "score >= a_i", its true positives and its false positives.

    anomalous: (P,) sorted scores. below, not_above: (P,) how many normal scores lie below, and not
    above, each. negatives: how many normal scores there are.
    """

    anomalous: Array
    below: Array
    not_above: Array
    negatives: int


def _auroc(ranks: Ranks) -> float:
    """P(anomalous > normal) + P(anomalous = normal) / 2 for a random pair of pixels."""
    wins = int((ranks.below + ranks.not_above).sum())
    return wins / (2 * len(ranks.anomalous) * ranks.negatives)


def _average_precision(ranks: Ranks) -> float:
    """The sum over thresholds of (recall step) x precision."""
    backend, anomalous = _backend(ranks.anomalous), ranks.anomalous
    first_of_tie = backend.searchsorted(anomalous, anomalous, side="left")
    true_positives = backend.asarray(len(anomalous) - first_of_tie, dtype=backend.float64)
    false_positives = ranks.negatives - ranks.below
    return float((true_positives / (true_positives + false_positives)).mean())


def _fpr_at_nearest_recall(ranks: Ranks) -> float:
    """The false positive rate where |recall - 0.95| is smallest; ties go to the higher recall.

    Among thresholds with equal recall, the lowest is taken (most false positives); at full recall
    the highest.
    """
    anomalous, negatives = ranks.anomalous, ranks.negatives
    positives = len(anomalous)
    at_95 = anomalous[positives // 20 : positives // 20 + 1]
    missed = [
        int(_backend(anomalous).searchsorted(anomalous, at_95, side=side)[0])
        for side in ("left", "right")
    ]
    # The distance stays in float64, as in the published code, so that ties are resolved alike.
    nearest = min(
        (count for count in missed if count < positives),
        key=lambda count: abs((positives - count) / positives - 0.95),
    )
    above = negatives - int(ranks.not_above[nearest - 1] if nearest else ranks.below[0])
    return above / negatives


def _per_image(name: str, function: Callable[[Ranks], float]) -> Any:
    """A metric by its name in results.json; a fraction of `Ranks`."""
    return field(metadata={"name": name, "function": function})


@dataclass(frozen=True)
class AnomalyMetrics:
    """Threshold-free metrics of one score map as fractions in [0, 1], each with its function.

    What is reported of each image follows from these rows: results.json, tables, per_image.csv.
    """

    auroc: float = _per_image("AUROC", _auroc)
    aupr: float = _per_image("AUPR", _average_precision)
    fpr95: float = _per_image("FPR95", _fpr_at_nearest_recall)


PER_IMAGE = {one.metadata["name"]: one.name for one in fields(AnomalyMetrics)}
"""Name in results.json -> field of `AnomalyMetrics`."""


def image_anomaly_metrics(
    scores: Array, is_anomaly: Array, valid: Array | None = None
) -> AnomalyMetrics:
    """Exact metrics of one score map; equal scores share one threshold.

    Args:
        scores: any shape, floats of up to 64 bits or integers, ranked in their own precision;
            higher = more anomalous. A CUDA tensor of floats is evaluated on its device.
        is_anomaly: bool, the shape of `scores`.
        valid: bool, the shape of `scores`; pixels where it is False are ignored.

    Raises:
        InvalidScores: the score of a valid pixel is NaN or infinite.
        PansError: there is no valid anomalous or no valid normal pixel.

    >>> scores = np.array([[0.9, 0.8, 0.8], [0.4, 0.1, 0.8]])
    >>> is_anomaly = np.array([[True, True, False], [True, False, False]])
    >>> metrics = image_anomaly_metrics(scores, is_anomaly)
    >>> round(metrics.auroc, 4), round(metrics.aupr, 4), round(metrics.fpr95, 4)
    (0.6667, 0.7, 0.6667)
    """
    return ranking_metrics(*populations(scores, is_anomaly, valid))


def populations(
    scores: Array, is_anomaly: Array, valid: Array | None = None
) -> tuple[Array, Array]:
    """The scores of valid pixels as (anomalous, normal), both 1-D: arrays, or CUDA tensors.

    Raises:
        InvalidScores: the score of a valid pixel is NaN or infinite.
        ValueError: the shapes differ.

    >>> populations(np.array([0.1, 0.9, 0.5]), np.array([False, True, False]))
    (array([0.9]), array([0.1, 0.5]))
    """
    scores = _on_backend(scores)
    masks = [_mask_like(scores, mask) for mask in (is_anomaly, valid) if mask is not None]
    anomalous, normal = masks[0], ~masks[0]
    if valid is not None:
        anomalous, normal = anomalous & masks[1], normal & masks[1]
    kinds = scores[anomalous], scores[normal]
    backend = _backend(scores)
    invalid = sum(int((~backend.isfinite(kind)).sum()) for kind in kinds)
    if invalid:
        total = len(kinds[0]) + len(kinds[1])
        raise InvalidScores(
            f"{invalid} of {total} anomaly scores are NaN or infinite; "
            "look for a diverged model or an overflow in half precision"
        )
    return kinds


def ranking_metrics(anomalous: Array, normal: Array) -> AnomalyMetrics:
    """Exact metrics of two 1-D populations of finite scores, as `populations` returns them.

    Raises:
        PansError: a population is empty.
    """
    positives, negatives = len(anomalous), len(normal)
    if not positives or not negatives:
        raise PansError(
            f"{positives} anomalous and {negatives} normal pixels are counted; "
            "per-image metrics need both kinds"
        )
    anomalous = _sorted(anomalous)
    ranks = Ranks(anomalous, *_normal_ranks(normal, anomalous), negatives)
    return AnomalyMetrics(
        **{one.name: one.metadata["function"](ranks) for one in fields(AnomalyMetrics)}
    )


def _normal_ranks(normal: Array, anomalous: Array) -> tuple[Array, Array]:
    """For each of the sorted `anomalous` scores: how many normal scores are below it, and how many
    are not above it.

    Sorting all normal scores would take most of the time. They are binned into cells instead: of a
    cell without an anomalous score only the count is needed, so only the other cells are sorted.
    Cells are monotone in the score, and equal scores share one, so the ranks are exact.
    """
    backend = _backend(normal)
    anomalous_cells, normal_cells = _cells(anomalous, normal)
    last = int(anomalous_cells[-1]) + 2  # the cells above need no distinction
    normal_cells = backend.clip(normal_cells, 0, last)
    is_mixed = backend.bincount(anomalous_cells, minlength=last + 1) > 0
    unmixed = backend.bincount(normal_cells, minlength=last + 1)
    unmixed[is_mixed] = 0
    counted = unmixed.cumsum(0)[anomalous_cells]
    rest = _sorted(normal[is_mixed[normal_cells]])
    below, not_above = (
        counted + backend.searchsorted(rest, anomalous, side=side) for side in ("left", "right")
    )
    return below, not_above


def _cells(anomalous: Array, normal: Array) -> tuple[Array, Array]:
    """int64 cells of the sorted anomalous and of the normal scores; 0 is below all anomalous ones.

    Cells widen with the distance from one end of the anomalous scores, like the bit patterns of
    floats: this suits uniform scores and scores concentrated at this end, say at 0 or 1. Every
    step is monotone including its rounding; a logarithm would not be.
    """
    backend = _backend(normal)
    count = len(anomalous)
    # Halves, since the difference of two large scores may overflow.
    low, middle, high = (float(anomalous[index]) / 2 for index in (0, count // 2, count - 1))
    orientation = 1 if middle - low <= high - middle else -1
    anchor, near = (low, count // 100) if orientation > 0 else (high, count - 1 - count // 100)
    half_unit = max(abs(float(anomalous[near]) / 2 - anchor), (high - low) * 2.0**-40)
    scale = min(0.5 / half_unit, 1e30) if half_unit else 1e30

    def bit_pattern(scores: Array) -> Array:
        with np.errstate(over="ignore"):
            position = (scores - 2 * anchor) * (orientation * scale) + 1
            position = backend.clip(backend.asarray(position, dtype=backend.float32), 0.5, None)
        return position.view(backend.int32) * orientation

    patterns = bit_pattern(anomalous)
    first = int(patterns[0])
    shift = max((int(patterns[-1]) - first).bit_length() - _CELL_BITS, 0)

    def cells(patterns: Array) -> Array:
        cells = (patterns >> shift) - (first >> shift) + 1
        return backend.asarray(backend.clip(cells, 0, None), dtype=backend.int64)

    return cells(patterns), cells(bit_pattern(normal))


def to_numpy(array: Array) -> np.ndarray:
    """Convert a tensor on any device to an array, without a copy if it is on the CPU.

    bfloat16, which NumPy lacks, becomes float32.
    """
    if not isinstance(array, torch.Tensor):
        return array
    array = array.detach().cpu()
    return (array.float() if array.dtype == torch.bfloat16 else array).numpy()


def _backend(array: Array) -> Any:
    """The module, numpy or torch, whose functions accept `array`."""
    return torch if isinstance(array, torch.Tensor) else np


def _on_backend(array: Array) -> Array:
    """CUDA floats are kept; anything else becomes a NumPy array, whose sort is faster."""
    if isinstance(array, torch.Tensor) and array.is_cuda and array.dtype.is_floating_point:
        return array.detach().double() if array.element_size() < 4 else array.detach()
    return with_all_digits(array)


def with_all_digits(scores: Array) -> np.ndarray:
    """Convert scores of any real type losslessly, to float32 or float64 on the CPU.

    Integers that float64 cannot distinguish become int64. No copy is made if none is needed.

    Raises:
        InvalidScores: floats of more than 64 bits, or integers from 2^63 on.
    """
    scores = np.asarray(to_numpy(scores))
    kind, size = scores.dtype.kind, scores.dtype.itemsize
    if scores.dtype in (np.float32, np.float64):
        return scores
    if size <= 2:
        return scores.astype(np.float32)
    if kind in "iu" and size == 8 and scores.size:
        least, greatest = int(scores.min()), int(scores.max())
        if greatest >= 2**63:
            raise InvalidScores(f"the anomaly scores go up to {greatest}; the limit is 2^63 - 1")
        if max(-least, greatest) > 2**53:
            return scores.astype(np.int64)
    if kind not in "iuf" or size > 8:
        raise InvalidScores(f"anomaly scores are {scores.dtype}; convert them to float64")
    return scores.astype(np.float64)


def _mask_like(scores: Array, mask: Array) -> Array:
    """`mask` as bool on the device of `scores`."""
    if scores.shape != mask.shape:
        raise ValueError(f"scores are {tuple(scores.shape)}, a mask is {tuple(mask.shape)}")
    if isinstance(scores, torch.Tensor):
        return torch.as_tensor(mask, dtype=torch.bool, device=scores.device)
    return np.asarray(to_numpy(mask), dtype=bool)


def _sorted(array: Array) -> Array:
    return array.sort().values if isinstance(array, torch.Tensor) else np.sort(array)
