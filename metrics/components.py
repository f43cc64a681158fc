"""Component metrics of SegmentMeIfYouCan: sIoU, PPV and the mean F1.

Source: Chan et al., SegmentMeIfYouCan, NeurIPS 2021 Datasets and Benchmarks, section 4 (arXiv
2104.14812); where it leaves a comparison open, the benchmark's own code decides. The sIoU is their
adjusted form of the IoU of Rottmann et al., IJCNN 2020. Components are 8-connected.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

F1_LEVELS = np.linspace(0.25, 0.75, 11)


@dataclass(frozen=True)
class ComponentMatch:
    """The components of one image, as float64 fractions.

    siou: one per true component. ppv: one per predicted component.
    """

    siou: np.ndarray
    ppv: np.ndarray


@dataclass(frozen=True)
class ComponentScores:
    """Means over all components of a data set, as fractions; None if there is no component.

    f1: 2 TP / (2 TP + FN + FP), mean over `F1_LEVELS`. At level t a true component is found (TP)
    when its sIoU is at least t and missed (FN) otherwise; a predicted one is false (FP) when its
    PPV is below t.
    """

    siou: float | None
    ppv: float | None
    f1: float | None


def match_components(
    is_predicted: np.ndarray,
    is_anomaly: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    min_predicted_size: int = 0,
    min_true_size: int = 0,
    true_components: tuple[np.ndarray, np.ndarray] | None = None,
) -> ComponentMatch:
    """Match the predicted with the true anomalous components of one image.

    For a true component k, with K the union of the predicted components that touch k and A the
    pixels of other true components: sIoU(k) = |k and K| / |(k or K) without A|. For a predicted
    component p: PPV(p) = share of p's pixels that are anomalous.

    Args:
        is_predicted: (H, W) bool; in the benchmark score > the threshold of the best pixel F1.
        is_anomaly: (H, W) bool.
        valid: (H, W) bool; pixels where it is False belong to no component.
        min_predicted_size: smaller predicted components are dropped as noise.
        min_true_size: smaller true components are ignored along with their pixels.
        true_components: `connected_components(is_anomaly & valid)`, if already computed.

    >>> predicted = np.array([[1, 1, 1, 0, 0, 1]], dtype=bool)
    >>> anomaly = np.array([[0, 1, 1, 1, 0, 0]], dtype=bool)
    >>> match = match_components(predicted, anomaly)
    >>> match.siou, match.ppv.round(4)
    (array([0.5]), array([0.6667, 0.    ]))
    """
    valid = np.ones(is_anomaly.shape, dtype=bool) if valid is None else valid
    true, true_sizes = true_components or connected_components(is_anomaly & valid)
    predicted, predicted_sizes = connected_components(is_predicted & valid)
    is_true, is_kept = true_sizes >= min_true_size, predicted_sizes >= min_predicted_size

    of_true, of_predicted, pixels = _overlaps(true, predicted, len(predicted_sizes))
    ignored = ~is_true[of_true]
    sizes = predicted_sizes - _sums(of_predicted[ignored], pixels[ignored], len(predicted_sizes))
    matched = is_true[of_true] & is_kept[of_predicted]
    of_true, of_predicted, pixels = of_true[matched], of_predicted[matched], pixels[matched]

    inside = _sums(of_predicted, pixels, len(sizes))
    covered = _sums(of_true, pixels, len(true_sizes))
    union = true_sizes + _sums(of_true, (sizes - inside)[of_predicted], len(true_sizes))
    is_kept &= sizes > 0
    return ComponentMatch(
        siou=covered[is_true] / union[is_true], ppv=inside[is_kept] / sizes[is_kept]
    )


def _overlaps(
    true: np.ndarray, predicted: np.ndarray, predicted_count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every overlapping pair of true and predicted components, from 0, and their shared pixels."""
    both = (true > 0) & (predicted > 0)
    pairs = (true[both] - np.int64(1)) * predicted_count + predicted[both] - 1
    pairs, pixels = np.unique(pairs, return_counts=True)
    of_true, of_predicted = np.divmod(pairs, max(predicted_count, 1))
    return of_true, of_predicted, pixels


def component_scores(matches: Sequence[ComponentMatch]) -> ComponentScores:
    """The scores of a data set from the matches of its images, in order.

    >>> match = ComponentMatch(siou=np.array([0.5]), ppv=np.array([0.75, 0.0]))
    >>> scores = component_scores([match])
    >>> scores.siou, scores.ppv, round(scores.f1, 4)
    (0.5, 0.375, 0.3636)
    """
    siou = np.concatenate([match.siou for match in matches]) if matches else np.zeros(0)
    ppv = np.concatenate([match.ppv for match in matches]) if matches else np.zeros(0)
    found = (siou[:, None] >= F1_LEVELS).sum(axis=0)
    false = (ppv[:, None] < F1_LEVELS).sum(axis=0)
    has_any = len(siou) + len(ppv) > 0
    return ComponentScores(
        siou=float(siou.mean()) if len(siou) else None,
        ppv=float(ppv.mean()) if len(ppv) else None,
        f1=float((2 * found / (found + len(siou) + false)).mean()) if has_any else None,
    )


def connected_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the 8-connected components of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        labels: (H, W) int32, 0 outside the mask, 1..K inside, in the order of first pixels.
        sizes: (K,) pixels of the components 1..K.

    >>> labels, sizes = connected_components(np.array([[1, 0, 0, 1], [0, 1, 0, 1]], dtype=bool))
    >>> labels
    array([[1, 0, 0, 2],
           [0, 1, 0, 2]], dtype=int32)
    >>> sizes
    array([2, 2])
    """
    starts, ends, stride = _runs(mask)
    # A run touches the runs of the next row that end at or after its start and begin by its end.
    first = np.searchsorted(ends, starts + stride, side="left")
    last = np.searchsorted(starts, ends + stride, side="right")
    touching = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), touching)
    lower = np.arange(len(upper)) + np.repeat(first - touching.cumsum() + touching, touching)

    roots = _roots(len(starts), upper, lower)
    _, run_labels = np.unique(roots, return_inverse=True)
    lengths = ends - starts
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(run_labels + 1, lengths)
    return labels, _sums(run_labels, lengths, 0)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Start and end (exclusive) of every horizontal run, as positions in rows of `stride` pixels.

    Rows are padded by an empty column on either side, so that runs never wrap around.
    """
    height, width = mask.shape
    framed = np.zeros((height, width + 2), dtype=bool)
    framed[:, 1:-1] = mask
    edges = np.flatnonzero(framed.ravel()[1:] != framed.ravel()[:-1]) + 1
    return edges[0::2], edges[1::2], width + 2


def _roots(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The smallest member of each element's set, where `first[i]` and `second[i]` share a set."""
    roots = np.arange(count)
    while True:
        least = np.minimum(roots[first], roots[second])
        joined = roots.copy()
        np.minimum.at(joined, roots[first], least)
        np.minimum.at(joined, roots[second], least)
        while not np.array_equal(joined, joined[joined]):
            joined = joined[joined]
        if np.array_equal(joined, roots):
            return roots
        roots = joined


def _sums(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The sum of the values of each group 0..count-1."""
    return np.bincount(groups, weights=values, minlength=count).astype(np.int64)
