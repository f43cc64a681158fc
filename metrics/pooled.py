"""AUROC, AUPR and FPR95 over all pixels of a data set, in fixed memory.

Two histograms (normal, anomalous) over the order of float32 scores. The axis of all float32 values
is cut into 65,536 pages; only pages that hold a score get bins, all of them the same power of two,
as many as there is room for. So the resolution goes where the scores are, whatever their range:
scores within one octave, say [0.25, 0.5), are told apart to 1e-6 of their value, scores all over
[0, 1] to 3e-5 of their distance from the nearer end.

The counts depend on the scores alone, not on their order nor on the number of processes. Scores in
one bin count as tied. That is the only error, and `PooledMetrics` bounds it for the data at hand.
Where the bound is too wide, `PooledCounts.refined` lays out the bins anew for a second pass.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metrics.anomaly import Array, to_numpy
from metrics.reduction import all_reduce

_PAGE_BITS = 16
_PAGES = 1 << 16
_BITS_OF_HALF, _BITS_OF_ONE = 0x3F000000, 0x3F800000
_BITS_OF_LEAST_GAP = 0x33000000  # 2^-25: half the least distance of a float32 below 1 from 1
_KEY_OF_ONE = 2 * _BITS_OF_HALF - _BITS_OF_LEAST_GAP
_LARGEST = np.float32(2.0**100)
_KEY_OF_LARGEST = _KEY_OF_ONE + int(_LARGEST.view(np.int32)) - _BITS_OF_ONE
_BLOCK = 1 << 16  # pixels that are worked on while they are in the cache


@dataclass(frozen=True)
class PooledMetrics:
    """Pooled metrics as fractions; a `_bound` is the most by which its figure can be off.

    fpr95: at the recall nearest 0.95, the rule of `image_anomaly_metrics`.
    fpr_at_recall_95: at the highest threshold whose recall is at least 0.95.
    recall_95_threshold: that threshold; best_f1_threshold: the one of the best pixel F1. A pixel
        is called anomalous where score >= threshold.
    """

    auroc: float
    aupr: float
    fpr95: float
    fpr_at_recall_95: float
    auroc_bound: float
    aupr_bound: float
    fpr95_bound: float
    recall_95_threshold: float
    best_f1_threshold: float

    @property
    def largest_bound(self) -> float:
        """The largest of the three bounds."""
        return max(self.auroc_bound, self.aupr_bound, self.fpr95_bound)


@dataclass(frozen=True)
class ThresholdCurve:
    """The pixels called anomalous at falling thresholds, at most as many as were asked for.

    true_positives, false_positives: (K,) int64, rising; the last are all pixels of their kind.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """(K,) share of the anomalous pixels that are found; the true positive rate."""
        return self.true_positives / self.true_positives[-1]

    @property
    def precision(self) -> np.ndarray:
        """(K,) share of anomalous pixels among those called so."""
        return self.true_positives / (self.true_positives + self.false_positives)

    @property
    def false_positive_rate(self) -> np.ndarray:
        """(K,) share of the normal pixels that are called anomalous."""
        return self.false_positives / self.false_positives[-1]


@dataclass(frozen=True)
class ScoreHistogram:
    """Even buckets of scores. Pixels beyond the edges are in the first and the last bucket.

    edges: (B+1,) float64, rising. normal, anomalous: (B,) int64 pixels.
    """

    edges: np.ndarray
    normal: np.ndarray
    anomalous: np.ndarray


class PooledCounts:
    """Streaming counts of normal and anomalous scores, merged over processes by `all_reduce`.

    Args:
        max_bins: bins for each of the two kinds, at least 65,536. The default takes 21 MB, and
            under 100 MB with what `all_reduce` and `metrics` need for a moment.
    """

    def __init__(self, max_bins: int = 5 << 18) -> None:
        self._counts = np.zeros((2, max_bins), np.int64)
        self._pages = np.zeros(0, np.int64)  # in the order in which their bins lie
        self._first_bin = np.full(_PAGES, -1, np.int64)
        self._bits = _PAGE_BITS  # a page has 2^bits bins
        self._key_bits = 0  # the OR of all keys: which bits the scores make use of

    @property
    def normal(self) -> int:
        """How many normal pixels were counted."""
        return int(self._counts[0].sum())

    @property
    def anomalous(self) -> int:
        """How many anomalous pixels were counted."""
        return int(self._counts[1].sum())

    @property
    def base_rate(self) -> float | None:
        """The share of anomalous pixels, which is the AUPR of chance; None before any pixel."""
        total = self.anomalous + self.normal
        return self.anomalous / total if total else None

    def update(self, anomalous: Array, normal: Array) -> None:
        """Counts finite scores of both kinds, 1-D, as `populations` returns them.

        They are rounded to float32; those above 2^100 share a bin. The work is done on the CPU.
        """
        for row, scores in enumerate((to_numpy(normal), to_numpy(anomalous))):
            for start in range(0, len(scores), _BLOCK):
                keys = _ordered_keys(scores[start : start + _BLOCK])
                bins = self._bins(keys)  # may move the counts, so it comes first
                np.add.at(self._counts[row], bins, 1)

    def all_reduce(self, group: Any = None) -> None:
        """Adds up the counts of all processes. Every process calls it, once, after its updates.

        One small all_reduce says which pages are in use, so that the bins lie alike everywhere;
        one adds the counts.
        """
        key_bits = self._key_bits >> np.arange(_PAGE_BITS) & 1
        flags = torch.from_numpy(np.concatenate([self._first_bin >= 0, key_bits]).astype(np.int32))
        flags = all_reduce(flags, "MAX", group)
        self._add_pages(flags[:_PAGES].numpy().nonzero()[0])
        self._key_bits = int(flags[_PAGES:].numpy() @ (1 << np.arange(_PAGE_BITS)))
        self._sort_pages()
        self._counts = all_reduce(torch.from_numpy(self._counts), "SUM", group).numpy()

    def metrics(self) -> PooledMetrics | None:
        """The metrics of all that was counted; None until both kinds of pixel were."""
        if not self.anomalous or not self.normal:
            return None
        normal, anomalous = self._falling_counts()
        # The curve changes only at bins that hold an anomalous score.
        held = anomalous.nonzero()[0]
        bins = normal.size - 1 - held
        curve = _Curve(
            step=anomalous[held],
            tied=normal[held],
            true_positives=anomalous[held].cumsum(),
            false_positives=normal.cumsum()[held],
            negatives=self.normal,
            is_exact=self._is_exact(bins),
        )
        at_recall_95, at_best_f1 = curve.first_at_recall_95(), curve.best_f1()
        lowest_keys = self._first_keys(bins[[at_recall_95, at_best_f1]])
        recall_95_threshold, best_f1_threshold = map(_lowest_score, lowest_keys.tolist())
        auroc_bound, aupr_bound, fpr95_bound = curve.bounds()
        return PooledMetrics(
            auroc=curve.auroc(),
            aupr=curve.aupr(),
            fpr95=curve.fpr95(),
            fpr_at_recall_95=float(curve.false_positives[at_recall_95] / curve.negatives),
            auroc_bound=auroc_bound,
            aupr_bound=aupr_bound,
            fpr95_bound=fpr95_bound,
            recall_95_threshold=recall_95_threshold,
            best_f1_threshold=best_f1_threshold,
        )

    def threshold_at_fpr(self, fpr: float) -> float | None:
        """The lowest threshold that at most a share `fpr` of the normal pixels reaches.

        Its own share falls short of `fpr` by no more than the pixels tied, in one bin, below it.
        None before any normal pixel.
        """
        if not self.normal:
            return None
        reached = self._falling_counts()[0].cumsum()
        bins = int(np.searchsorted(reached, fpr * self.normal, side="right"))
        key = int(self._first_keys(np.array([len(reached) - max(bins, 1)]))[0])
        return _lowest_score(key if bins else key + (1 << (_PAGE_BITS - self._bits)))

    def refined(self) -> "RefinedCounts":
        """Empty counts for a second pass over the same scores, with bins where the pixels are.

        Call it after `all_reduce`, on every process: the bins follow from the counts.
        """
        counts = self._rising_counts()
        normal, anomalous = np.add.reduceat(counts, self._first_bin[self._pages], axis=1)
        share = normal / max(self.normal, 1) + anomalous / max(self.anomalous, 1)
        return RefinedCounts(self._pages, share / 2, self._counts.shape[1])

    def curve(self, points: int = 1000) -> ThresholdCurve | None:
        """The curve of precision, recall and false positive rate; None as for `metrics`.

        Of the thresholds those are kept that lie evenly on recall + false positive rate.
        """
        if not self.anomalous or not self.normal:
            return None
        false_positives, true_positives = (kind.cumsum() for kind in self._falling_counts())
        way = true_positives / true_positives[-1] + false_positives / false_positives[-1]
        kept = np.unique(np.searchsorted(way, np.linspace(way[way > 0][0], way[-1], points)))
        return ThresholdCurve(true_positives[kept], false_positives[kept])

    def histogram(self, buckets: int = 64) -> ScoreHistogram | None:
        """Even buckets from the lowest to the highest score; None as for `metrics`.

        A thousandth of either kind at either end may lie beyond, so that one far score does not
        squeeze all others into one bucket.
        """
        if not self.anomalous or not self.normal:
            return None
        below = [np.append(0, counts.cumsum()) for counts in self._rising_counts()]
        outer = [np.searchsorted(kind[1:], kind[-1] * np.array([0.001, 0.999])) for kind in below]
        ends = np.array([np.min(outer, axis=0)[0], np.max(outer, axis=0)[1]])
        first, last = map(_lowest_score, self._first_keys(ends).tolist())
        if first == last:
            first, last = first - 0.5, last + 0.5
        edges = np.linspace(first, last, buckets + 1)
        keys = _ordered_keys(edges[1:-1])
        cuts = np.searchsorted(self._first_keys(np.arange(below[0].size - 1)), keys)
        normal, anomalous = (np.diff(kind[np.r_[0, cuts, -1]]) for kind in below)
        return ScoreHistogram(edges, normal, anomalous)

    def _rising_counts(self) -> np.ndarray:
        """(2, bins) pixels of both kinds, by rising score."""
        self._sort_pages()
        return self._counts[:, : len(self._pages) << self._bits]

    def _falling_counts(self) -> np.ndarray:
        """(2, bins) pixels of both kinds, by falling score."""
        return self._rising_counts()[:, ::-1]

    def _first_keys(self, bins: np.ndarray) -> np.ndarray:
        """The lowest key of each bin, once the bins are in order."""
        pages = self._pages[bins >> self._bits] - _PAGES // 2
        within = bins & ((1 << self._bits) - 1)
        return (pages << _PAGE_BITS) + (within << (_PAGE_BITS - self._bits))

    def _is_exact(self, bins: np.ndarray) -> np.ndarray:
        """Whether each bin holds one score only.

        It does where all scores leave the bits below a bin unused: then a tie is a tie.
        """
        is_exact = not self._key_bits & ((1 << (_PAGE_BITS - self._bits)) - 1)
        return is_exact & (self._first_keys(bins) < _KEY_OF_LARGEST)

    def _bins(self, keys: np.ndarray) -> np.ndarray:
        """The bin of each key; pages seen for the first time get theirs."""
        self._key_bits |= int(np.bitwise_or.reduce(keys)) & (_PAGES - 1)
        pages = keys >> _PAGE_BITS
        pages += _PAGES // 2
        bins = self._first_bin.take(pages)
        if bins.size and bins.min() < 0:
            self._add_pages(np.bincount(pages).nonzero()[0])
            bins = self._first_bin.take(pages)
        bins += (keys & (_PAGES - 1)) >> (_PAGE_BITS - self._bits)
        return bins

    def _add_pages(self, pages: np.ndarray) -> None:
        """Gives bins to the new ones among `pages`, at half the resolution until there is room."""
        old_pages, old_bits = len(self._pages), self._bits
        self._pages = np.concatenate([self._pages, pages[self._first_bin[pages] < 0]])
        while len(self._pages) << self._bits > self._counts.shape[1]:
            self._bits -= 1
        if self._bits < old_bits and old_pages:
            used = old_pages << old_bits
            for counts in self._counts:
                merged = counts[:used].reshape(old_pages << self._bits, -1).sum(axis=1)
                counts[:used] = 0
                counts[: len(merged)] = merged
        self._place_pages()

    def _sort_pages(self) -> None:
        """Brings the bins into the order of the scores."""
        order = self._pages.argsort()
        used = len(order) << self._bits
        for counts in self._counts:
            counts[:used] = counts[:used].reshape(-1, 1 << self._bits)[order].ravel()
        self._pages = self._pages[order]
        self._place_pages()

    def _place_pages(self) -> None:
        self._first_bin[self._pages] = np.arange(len(self._pages)) << self._bits


class RefinedCounts(PooledCounts):
    """Counts whose bins were laid out for scores that were counted once already.

    A page with many pixels has more bins than one with few; those with the most pixels have a bin
    for each float32. Each bin keeps its least and its greatest score, so that ties are known.

    Args:
        pages: (K,) int64, rising: the pages of all the scores that will come.
        share: (K,) float64, each page's share of the pixels.
        max_bins: as for `PooledCounts`.
    """

    def __init__(self, pages: np.ndarray, share: np.ndarray, max_bins: int) -> None:
        page_bits = _bits_by_share(share, max_bins)
        sizes = 1 << page_bits
        super().__init__(int(sizes.sum()))
        self._pages = pages
        self._first_bin[pages] = sizes.cumsum() - sizes
        self._least = np.full(sizes.sum(), _PAGES, np.int32)
        self._greatest = np.full(sizes.sum(), -1, np.int32)
        self._shift = np.zeros(_PAGES, np.int32)
        self._shift[pages] = _PAGE_BITS - page_bits

    def all_reduce(self, group: Any = None) -> None:
        """Adds up the counts of all processes. Every process calls it, once, after its updates."""
        self._counts = all_reduce(torch.from_numpy(self._counts), "SUM", group).numpy()
        self._least = all_reduce(torch.from_numpy(self._least), "MIN", group).numpy()
        self._greatest = all_reduce(torch.from_numpy(self._greatest), "MAX", group).numpy()

    def _rising_counts(self) -> np.ndarray:
        return self._counts

    def _first_keys(self, bins: np.ndarray) -> np.ndarray:
        first_bins = self._first_bin[self._pages]
        numbers = np.searchsorted(first_bins, bins, side="right") - 1
        pages = self._pages[numbers]
        within = (bins - first_bins[numbers]) << self._shift[pages]
        return ((pages - _PAGES // 2) << _PAGE_BITS) + within

    def _is_exact(self, bins: np.ndarray) -> np.ndarray:
        is_one_score = self._least[bins] == self._greatest[bins]
        return is_one_score & (self._first_keys(bins) < _KEY_OF_LARGEST)

    def _bins(self, keys: np.ndarray) -> np.ndarray:
        pages = (keys >> _PAGE_BITS) + _PAGES // 2
        bins = self._first_bin.take(pages)
        if bins.size and bins.min() < 0:
            raise ValueError("a score came that the first pass did not count")
        within_page = keys & (_PAGES - 1)
        bins += within_page >> self._shift.take(pages)
        np.minimum.at(self._least, bins, within_page)
        np.maximum.at(self._greatest, bins, within_page)
        return bins


def _bits_by_share(share: np.ndarray, max_bins: int) -> np.ndarray:
    """(K,) int64: page k gets 2^bits bins, about in proportion to its share, as many as fit."""
    scale = float(max_bins << _PAGE_BITS)
    while True:
        bits = np.log2(np.maximum(share * scale, 1)).astype(np.int64).clip(0, _PAGE_BITS)
        if (1 << bits).sum() <= max_bins:
            return bits
        scale /= 2


@dataclass(frozen=True)
class _Curve:
    """The threshold curve at every bin that holds an anomalous score, from the highest down.

    step, tied: anomalous and normal pixels in the bin. true_positives, false_positives: those at
    or above it. negatives: all normal pixels. is_exact: whether the bin holds one score only.
    """

    step: np.ndarray
    tied: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    negatives: int
    is_exact: np.ndarray

    @property
    def positives(self) -> int:
        return int(self.true_positives[-1])

    def auroc(self) -> float:
        lost = self.step.astype(float) @ (2 * self.false_positives - self.tied)
        return float(1 - lost / (2 * self.positives * self.negatives))

    def aupr(self) -> float:
        return self._weighted(self._precision(self.true_positives, self.false_positives))

    def first_at_recall_95(self) -> int:
        """The highest bin whose recall is at least 0.95."""
        return int(np.searchsorted(20 * self.true_positives, 19 * self.positives))

    def best_f1(self) -> int:
        """The bin of the best F1, 2 TP / (P + TP + FP); the highest of equals."""
        called = self.true_positives + self.false_positives
        return int((self.true_positives / (self.positives + called)).argmax())

    def nearest_recall_95(self) -> int:
        """The bin whose recall is nearest 0.95, the higher recall of two."""
        after = self.first_at_recall_95()
        return min(
            (index for index in (after, after - 1) if index >= 0),
            key=lambda index: abs(self.true_positives[index] / self.positives - 0.95),
        )

    def fpr95(self) -> float:
        """The false positive rate at the recall nearest 0.95, as for one image."""
        nearest, last = self.nearest_recall_95(), len(self.step) - 1
        if nearest == last:
            return float(self.false_positives[last] / self.negatives)
        lower = nearest + 1
        return float((self.false_positives[lower] - self.tied[lower]) / self.negatives)

    def bounds(self) -> tuple[float, float, float]:
        """The largest errors of (auroc, aupr, fpr95) over all orders of the pixels in each bin.

        A bin with one score adds none. AUROC: a tied pair counts 1/2 and should count 0 or 1.
        AUPR: an anomalous pixel's precision is at most that of the whole bin without its normal
        pixels. With all of them above it, the k-th has (T + k) / (T + k + F), concave in k, so the
        mean is not below the chord's middle.
        """
        unsure = np.where(self.is_exact, 0, self.tied)
        auroc = self.step.astype(float) @ unsure / (2 * self.positives * self.negatives)
        aupr = self.aupr()
        highest = self._weighted(
            self._precision(self.true_positives, self.false_positives - unsure)
        )
        before = np.where(self.is_exact, 0, self.step - 1)
        first = self._precision(self.true_positives - before, self.false_positives)
        lowest = (self._weighted(first) + aupr) / 2
        return float(auroc), max(highest - aupr, aupr - lowest), self._fpr95_bound()

    def _fpr95_bound(self) -> float:
        """How far the exact FPR95 can be off.

        Where the bin that reaches recall 0.95 has no recall inside, the exact recall is known, and
        so the bin of the threshold: the next one with an anomalous pixel, if there is one. Else
        the threshold lies in the bin that reaches recall 0.95 or in the next one.
        """
        first, last = self.first_at_recall_95(), len(self.step) - 1
        lowest = min(first + 1, last)
        if self.is_exact[first] or self.step[first] == 1:
            first = lowest = min(self.nearest_recall_95() + 1, last)
            if self.is_exact[first]:
                return 0.0
        fewest = (self.false_positives[first] - self.tied[first]) / self.negatives
        most = self.false_positives[lowest] / self.negatives
        return float(max(self.fpr95() - fewest, most - self.fpr95()))

    def _weighted(self, precision: np.ndarray) -> float:
        return float(self.step @ precision / self.positives)

    @staticmethod
    def _precision(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
        return true_positives / (true_positives + false_positives)


def _ordered_keys(scores: np.ndarray) -> np.ndarray:
    """int32 keys in the order of the float32 scores, one for each distinct score up to 2^100.

    Up to 0.5 the key is the bit pattern (its negative for negative scores), which is fine near 0.
    Scores that are probabilities crowd at 1 too, where floats are even; so between 0.5 and 1 the
    key grows as the bit pattern of the distance from 1 falls, and beyond 1 as that of the score.
    """
    with np.errstate(over="ignore"):
        scores = np.ascontiguousarray(scores, dtype=np.float32)
    keys = np.minimum(scores, np.float32(0.5)).view(np.int32)
    sign = keys >> 31  # a sum of pieces without a branch is five times as fast as np.where
    keys &= 0x7FFFFFFF
    keys ^= sign
    keys -= sign
    gaps = 1 - scores.clip(0.5, 1)
    keys += _BITS_OF_HALF - np.maximum(gaps.view(np.int32), _BITS_OF_LEAST_GAP)
    keys += scores.clip(1, _LARGEST).view(np.int32) - _BITS_OF_ONE
    return keys


def _lowest_score(key: int) -> float:
    """The lowest float32 score whose key is at least `key`."""
    if key <= _BITS_OF_HALF:
        return float(np.copysign(_float_of_bits(abs(key)), key))
    if key > _KEY_OF_ONE:
        return _float_of_bits(key - _KEY_OF_ONE + _BITS_OF_ONE)
    exact = 1 - _float_of_bits(2 * _BITS_OF_HALF - key)
    rounded = np.float32(exact)
    return float(rounded if float(rounded) >= exact else np.nextafter(rounded, np.float32(1)))


def _float_of_bits(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))
