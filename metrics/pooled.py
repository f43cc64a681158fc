"""AUROC, AUPR and FPR95 over all pixels of a data set, in fixed memory.

Two histograms (normal, anomalous) over the ordered float32 values. The axis of all float32 values
is split into 65,536 pages. Only pages that contain a score get bins: the same power of two for each
page, as large as memory allows. So the resolution adapts to the scores, whatever their range:
scores within one octave, say [0.25, 0.5), are distinguished to 1e-6 of their value, scores all over
[0, 1] to 3e-5 of their distance from the nearer end.

The counts depend on the scores alone, not on their order or on the number of processes. Scores in
one bin count as tied. That is the only error, and `PooledMetrics` bounds it for the given data.
Where a bound is too wide, `sharpened` counts again with these bins split into pieces, in the
scores' own precision.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from metrics.anomaly import Array, with_all_digits
from metrics.curve import LARGEST_ERROR, BinCurve, PooledMetrics, ThresholdCurve
from metrics.float_keys import KEY_OF_LARGEST, lowest_scores, ordered_keys
from utils.distributed import reduce_over_processes

_PAGE_BITS = 16
_PAGES = 1 << 16
_NO_BIN = -_PAGES  # negative, also with a place in the page added
_BLOCK = 1 << 16  # pixels processed at a time, to fit into the cache
_MOST_PIECES = 1 << 19  # of all split bins, per further pass
_FURTHER_PASSES = 3
_ALL_BUT_SIGN = np.int64(2**63 - 1)


@dataclass(frozen=True)
class ScoreHistogram:
    """A histogram with equal buckets. Scores beyond the edges are in the first and last bucket.

    edges: (B+1,) float64, rising. normal, anomalous: (B,) int64 pixels.
    """

    edges: np.ndarray
    normal: np.ndarray
    anomalous: np.ndarray


class BinnedScores(ABC):
    """Counts of normal and anomalous scores in bins, and the metrics computed from them.

    Bins are numbered by rising score, from 0.
    """

    has_wide_integers: bool
    """Whether there are integers that float64 can't tell apart; then scores are int64."""

    @abstractmethod
    def update(self, anomalous: Array, normal: Array) -> None:
        """Count finite scores of both kinds, 1-D, as returned by `populations`."""

    @abstractmethod
    def all_reduce(self) -> None:
        """Adds up the counts of all processes. Every process calls it, once, after its updates."""

    @abstractmethod
    def counts(self) -> np.ndarray:
        """(2, bins) normal and anomalous pixels."""

    @abstractmethod
    def intervals(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest score of each bin: float64, or int64."""

    @abstractmethod
    def is_exact(self, bins: np.ndarray) -> np.ndarray:
        """Whether each bin is known to have a single score."""

    @abstractmethod
    def locate(self, scores: np.ndarray) -> np.ndarray:
        """The bin of each score, after all scores were counted."""

    @abstractmethod
    def next_above(self, score: float) -> float:
        """The smallest score above `score` in the precision of the scores."""

    @property
    def normal(self) -> int:
        """How many normal pixels were counted."""
        return int(self.counts()[0].sum())

    @property
    def anomalous(self) -> int:
        """How many anomalous pixels were counted."""
        return int(self.counts()[1].sum())

    @property
    def base_rate(self) -> float | None:
        """The share of anomalous pixels, which is the AUPR at chance level; None without pixels."""
        normal, anomalous = self.counts().sum(axis=1).tolist()
        return anomalous / (anomalous + normal) if anomalous + normal else None

    def metrics(self) -> PooledMetrics | None:
        """The metrics of the counted pixels; None until there are both kinds."""
        bins, curve = self._curve()
        if curve is None:
            return None
        at_recall_95 = curve.first_at_recall_95
        recall_95 = [value.item() for value in self._interval(bins[[at_recall_95]])]
        best_f1 = self._interval(bins[[curve.best_f1()]])[0].item()
        lowest, highest = self._interval(bins[curve.best_f1_candidates()])
        return PooledMetrics(
            auroc=curve.auroc(),
            aupr=curve.aupr(),
            fpr95=curve.fpr95(),
            fpr_at_recall_95=curve.fpr_at_recall_95(),
            auroc_bound=curve.auroc_bound(),
            aupr_bound=curve.aupr_bound(),
            fpr95_bound=curve.fpr95_bound(),
            fpr_at_recall_95_bound=curve.fpr_at_recall_95_bound(),
            recall_95_threshold=recall_95[0],
            best_f1_threshold=best_f1,
            recall_95_threshold_bound=recall_95[1] - recall_95[0],
            best_f1_threshold_bound=max(highest.item() - best_f1, best_f1 - lowest.item()),
        )

    def threshold_at_fpr(self, fpr: float) -> float | None:
        """The lowest threshold that at most a share `fpr` of the normal pixels reach.

        The actual share is below `fpr` by at most the pixels of one bin. None without normal
        pixels.
        """
        held, included = self._bins_within(fpr)
        if not len(held):
            return None
        below, above = held[included : included + 1], held[included - 1 : included]
        lowest: list[float] = [self.intervals(above)[0].item()] if included else []
        if len(below) and not (included and self.is_exact(above)[0]):
            lowest.append(self.next_above(self.intervals(below)[1].item()))
        return max(lowest)

    def refined(self, fpr: float | None = None) -> "RefinedCounts":
        """Empty counts for a further pass over the same scores, with the uncertain bins split.

        To be called by every process, after `all_reduce`.

        Args:
            fpr: refine `threshold_at_fpr` for this rate instead of the metrics.
        """
        pieces = np.ones(self.counts().shape[1], np.int64)
        if fpr is not None:
            pieces[self._unsure_at_fpr(fpr)] = _PAGES
            return RefinedCounts(self, pieces)
        bins, curve = self._curve()
        if curve is not None:
            pieces[bins] = curve.pieces(_MOST_PIECES)
        return RefinedCounts(self, pieces)

    def is_sharp(self, fpr: float | None = None) -> bool:
        """Whether no further pass is needed; `fpr`: see `refined`."""
        if fpr is not None:
            return not len(self._unsure_at_fpr(fpr))
        metrics = self.metrics()
        return metrics is None or metrics.is_sharp

    def curve(self, points: int = 1000) -> ThresholdCurve | None:
        """The curve of precision, recall and false positive rate; None as for `metrics`.

        Thresholds are selected evenly in recall + false positive rate.
        """
        false_positives, true_positives = (kind[::-1].cumsum() for kind in self.counts())
        if not false_positives[-1:].any() or not true_positives[-1:].any():
            return None
        way = true_positives / true_positives[-1] + false_positives / false_positives[-1]
        kept = np.unique(np.searchsorted(way, np.linspace(way[way > 0][0], way[-1], points)))
        return ThresholdCurve(true_positives[kept], false_positives[kept])

    def histogram(self, buckets: int = 64) -> ScoreHistogram | None:
        """Equal buckets from the lowest to the highest score; None as for `metrics`.

        Up to a thousandth of each kind may lie beyond either end, so that a single outlier does
        not squeeze all others into one bucket.
        """
        counts = self.counts()
        if not self.normal or not self.anomalous:
            return None
        held = counts.sum(axis=0).nonzero()[0]
        below = [np.append(0, kind[held].cumsum()) for kind in counts]
        outer = [np.searchsorted(kind[1:], kind[-1] * np.array([0.001, 0.999])) for kind in below]
        lowest = self.intervals(held)[0].astype(np.float64)
        first, last = lowest[np.min(outer, axis=0)[0]], lowest[np.max(outer, axis=0)[1]]
        if first == last:
            first, last = first - 0.5, last + 0.5
        edges = np.linspace(first, last, buckets + 1)
        cuts = np.searchsorted(lowest, edges[1:-1])
        normal, anomalous = (np.diff(kind[np.r_[0, cuts, -1]]) for kind in below)
        return ScoreHistogram(edges, normal, anomalous)

    def _curve(self) -> tuple[np.ndarray, BinCurve | None]:
        """The bins with anomalous scores, in descending order, and the curve at them."""
        counts = self.counts()
        normal, anomalous = counts[:, ::-1]
        held = anomalous.nonzero()[0]
        bins = counts.shape[1] - 1 - held
        negatives = int(normal.sum())
        if not len(held) or not negatives:
            return bins, None
        return bins, BinCurve(
            step=anomalous[held],
            tied=normal[held],
            true_positives=anomalous[held].cumsum(),
            false_positives=normal.cumsum()[held],
            negatives=negatives,
            is_exact=self.is_exact(bins),
        )

    def _interval(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest score of all bins."""
        lowest, highest = self.intervals(bins)
        return lowest.min(), highest.max()

    def _bins_within(self, fpr: float) -> tuple[np.ndarray, int]:
        """The bins with normal scores, descending, and how many fit into the share `fpr`."""
        normal = self.counts()[0]
        held = normal.nonzero()[0][::-1]
        reached = normal[held].cumsum()
        return held, int(np.searchsorted(reached, fpr * normal.sum(), side="right"))

    def _unsure_at_fpr(self, fpr: float) -> np.ndarray:
        """The bin, if any, in which `threshold_at_fpr` could still be much lower."""
        held, included = self._bins_within(fpr)
        bins = held[included : included + 1]
        normal = self.counts()[0]
        return bins[~self.is_exact(bins) & (normal[bins] > LARGEST_ERROR * normal.sum())]


class PooledCounts(BinnedScores):
    """Streaming counts of normal and anomalous scores, merged over processes by `all_reduce`.

    Args:
        max_bins: bins per kind, at least 65,536. The default takes 21 MB, and under 100 MB with
            the temporary memory of `all_reduce` and `metrics`.

    >>> counts = PooledCounts()
    >>> counts.update(np.array([90, 80, 40], np.uint8), np.array([80, 10], np.uint8))
    >>> counts.update(np.zeros(0), np.array([80], np.uint8))
    >>> metrics = counts.metrics()
    >>> round(metrics.auroc, 4), round(metrics.aupr, 4), round(metrics.fpr95, 4)
    (0.6667, 0.7, 0.6667)
    >>> metrics.best_f1_threshold, metrics.largest_bound
    (40.0, 0.0)
    """

    def __init__(self, max_bins: int = 5 << 18) -> None:
        self._counts = np.zeros((2, max_bins), np.int64)
        self._pages = np.zeros(0, np.int64)  # in the order of their bins
        self._first_bin = np.full(_PAGES, _NO_BIN, np.int64)
        self._bits = _PAGE_BITS  # a page has 2^bits bins
        self._key_bits = 0  # the OR of all keys: the bits that the scores use
        self._is_float32 = True  # whether each score is a float32
        self.has_wide_integers = False

    def update(self, anomalous: Array, normal: Array) -> None:
        # Scores that round to one float32 share a bin, and so do those above 2^100.
        for row, scores in _blocks(anomalous, normal):
            keys = self._keys(scores)
            bins = self._bins(keys)
            if bins.min() < 0:
                self._add_pages(np.bincount((keys >> _PAGE_BITS) + _PAGES // 2).nonzero()[0])
                bins = self._bins(keys)
            np.add.at(self._counts[row], bins, 1)

    def all_reduce(self) -> None:
        # The pages in use are reduced first, so that all processes have the same bins.
        key_bits = self._key_bits >> np.arange(_PAGE_BITS) & 1
        facts = np.array([not self._is_float32, self.has_wide_integers])
        flags = np.concatenate([self._first_bin >= 0, key_bits, facts]).astype(np.int32)
        flags = reduce_over_processes(torch.from_numpy(flags), "MAX").numpy()
        self._add_pages(flags[:_PAGES].nonzero()[0])
        self._key_bits = int(flags[_PAGES:-2] @ (1 << np.arange(_PAGE_BITS)))
        self._is_float32, self.has_wide_integers = not flags[-2], bool(flags[-1])
        self._sort_pages()
        self._counts = reduce_over_processes(torch.from_numpy(self._counts)).numpy()

    def counts(self) -> np.ndarray:
        self._sort_pages()
        return self._counts[:, : len(self._pages) << self._bits]

    def intervals(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = self._first_keys(bins)
        last = first + (self._key_bits & (self._width - 1))
        lowest, next_lowest = lowest_scores(first), lowest_scores(last + 1)
        below, highest = (_next_below(scores) for scores in (lowest, next_lowest))
        if not self._is_float32:  # all that is rounded to these
            lowest, highest = (below + lowest) / 2, (highest + next_lowest) / 2
        highest = np.where(highest == -np.inf, next_lowest, highest)
        highest[last >= KEY_OF_LARGEST] = np.inf
        largest = np.finfo(np.float64).max
        ends = lowest.astype(np.float64).clip(-largest), highest.clip(max=largest)
        return (_integers(ends[0]), _integers(ends[1])) if self.has_wide_integers else ends

    def is_exact(self, bins: np.ndarray) -> np.ndarray:
        # Exact if no score uses the bits below a bin's resolution.
        is_exact = self._is_float32 and not self._key_bits & (self._width - 1)
        return is_exact & (self._first_keys(bins) < KEY_OF_LARGEST)

    def locate(self, scores: np.ndarray) -> np.ndarray:
        bins = self._bins(ordered_keys(_rounded(scores)))
        if bins.size and bins.min() < 0:
            raise ValueError("got a score that the first pass did not count")
        return bins

    def next_above(self, score: float) -> float:
        if self.has_wide_integers:
            return score + 1
        kind = np.float32 if self._is_float32 else np.float64
        return float(np.nextafter(kind(score), kind(np.inf)))

    @property
    def _width(self) -> int:
        """The keys of a bin."""
        return 1 << (_PAGE_BITS - self._bits)

    def _keys(self, scores: np.ndarray) -> np.ndarray:
        rounded = _rounded(scores)
        if scores.dtype == np.int64:
            # NumPy would compare them as float64, which cannot distinguish neighbours above 2^53.
            self._is_float32 &= bool((_integers(rounded.astype(np.float64)) == scores).all())
            self.has_wide_integers = True
        elif scores.dtype != np.float32:
            self._is_float32 &= bool((rounded == scores).all())
        keys = ordered_keys(rounded)
        self._key_bits |= int(np.bitwise_or.reduce(keys)) & (_PAGES - 1)
        return keys

    def _first_keys(self, bins: np.ndarray) -> np.ndarray:
        """The lowest key of each bin, after the bins were sorted."""
        pages = self._pages[bins >> self._bits] - _PAGES // 2
        within = bins & ((1 << self._bits) - 1)
        return (pages << _PAGE_BITS) + (within << (_PAGE_BITS - self._bits))

    def _bins(self, keys: np.ndarray) -> np.ndarray:
        """The bin of each key; negative if its page has none."""
        bins = self._first_bin.take((keys >> _PAGE_BITS) + _PAGES // 2)
        bins += (keys & (_PAGES - 1)) >> (_PAGE_BITS - self._bits)
        return bins

    def _add_pages(self, pages: np.ndarray) -> None:
        """Add bins for the new `pages`, halving the resolution until there is room."""
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
        """Sort the bins by score."""
        order = self._pages.argsort()
        if (np.diff(order) == 1).all():
            return
        used = len(order) << self._bits
        for counts in self._counts:
            counts[:used] = counts[:used].reshape(-1, 1 << self._bits)[order].ravel()
        self._pages = self._pages[order]
        self._place_pages()

    def _place_pages(self) -> None:
        self._first_bin[self._pages] = np.arange(len(self._pages)) << self._bits


class RefinedCounts(BinnedScores):
    """Counts of the same scores again, with some bins split into equal pieces.

    Each piece keeps its smallest and largest score, so that ties are known; a piece of several
    scores can be split again. Scores in other bins are not counted again.

    Args:
        coarse: complete counts of the same scores.
        pieces: (bins of `coarse`,) int64, number of pieces of each bin.
    """

    def __init__(self, coarse: BinnedScores, pieces: np.ndarray) -> None:
        self.has_wide_integers = coarse.has_wide_integers
        self._coarse = coarse
        self._is_cut = pieces > 1
        self._first = pieces.cumsum() - pieces  # of the pieces of each bin of `coarse`
        self._size = int(pieces.sum())
        cut = self._is_cut.nonzero()[0]
        self._number = np.full(len(pieces), -1, np.int32)
        self._number[cut] = np.arange(len(cut))
        self._sizes = pieces[cut]
        self._starts = self._sizes.cumsum() - self._sizes
        self._lowest, self._highest = coarse.intervals(cut)
        self._low = self._ranks(self._lowest)
        self._scale = self._sizes / (self._ranks(self._highest) - self._low + 1.0)
        self._counts = np.zeros((2, int(self._sizes.sum())), np.int64)
        limits = np.iinfo(np.int64)
        self._least = np.full(self._counts.shape[1], limits.max)
        self._greatest = np.full(self._counts.shape[1], limits.min)

    def update(self, anomalous: Array, normal: Array) -> None:
        if not len(self._sizes):
            return
        lowest, highest = self._lowest.min(), self._highest.max()
        for row, scores in _blocks(anomalous, normal):
            inside = scores[(scores >= lowest) & (scores <= highest)]
            numbers = self._number.take(self._coarse.locate(inside))
            is_cut = numbers >= 0
            inside, numbers = inside[is_cut], numbers[is_cut]
            ranks = self._ranks(inside)
            pieces = self._pieces(ranks, numbers)
            np.add.at(self._counts[row], pieces, 1)
            np.minimum.at(self._least, pieces, ranks)
            np.maximum.at(self._greatest, pieces, ranks)

    def all_reduce(self) -> None:
        self._counts = reduce_over_processes(torch.from_numpy(self._counts)).numpy()
        self._least = reduce_over_processes(torch.from_numpy(self._least), "MIN").numpy()
        self._greatest = reduce_over_processes(torch.from_numpy(self._greatest), "MAX").numpy()
        counted = np.add.reduceat(self._counts, self._starts, axis=1) if len(self._sizes) else 0
        if not np.array_equal(counted + 0 * self._sizes, self._coarse.counts()[:, self._is_cut]):
            raise ValueError("the scores differ from those that the first pass counted")

    def counts(self) -> np.ndarray:
        return self._all_counts

    @cached_property
    def _all_counts(self) -> np.ndarray:
        """(2, bins), after all pixels were counted."""
        is_piece = np.repeat(self._is_cut, np.diff(np.append(self._first, self._size)))
        counts = np.empty((2, self._size), np.int64)
        counts[:, is_piece] = self._counts
        counts[:, ~is_piece] = self._coarse.counts()[:, ~self._is_cut]
        return counts

    def intervals(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        owners, pieces = self._owners_and_pieces(bins)
        lowest, highest = self._coarse.intervals(owners)
        is_piece = pieces >= 0
        lowest[is_piece] = self._scores(self._least[pieces[is_piece]])
        highest[is_piece] = self._scores(self._greatest[pieces[is_piece]])
        return lowest, highest

    def is_exact(self, bins: np.ndarray) -> np.ndarray:
        owners, pieces = self._owners_and_pieces(bins)
        is_exact = self._coarse.is_exact(owners)
        is_piece = pieces >= 0
        pieces = pieces[is_piece]
        is_exact[is_piece] = self._least[pieces] == self._greatest[pieces]
        return is_exact

    def locate(self, scores: np.ndarray) -> np.ndarray:
        owners = self._coarse.locate(scores)
        bins = self._first.take(owners)
        numbers = self._number.take(owners)
        is_cut = numbers >= 0
        numbers = numbers[is_cut]
        bins[is_cut] += self._pieces(self._ranks(scores[is_cut]), numbers) - self._starts[numbers]
        return bins

    def next_above(self, score: float) -> float:
        return self._coarse.next_above(score)

    def _ranks(self, scores: np.ndarray) -> np.ndarray:
        """An int64 per score, in the order of the scores: for a float64 its bit pattern.

        Differences within a bin do not overflow: only the bin of 0 has both signs.
        """
        if self.has_wide_integers:
            ranks = scores.astype(np.int64)
            if not np.array_equal(ranks, scores):
                raise ValueError(
                    "integer scores beyond 2^53 and fractions can't be ranked together"
                )
            return ranks
        bits = (scores.astype(np.float64) + 0.0).view(np.int64)  # + 0.0 turns -0.0 into 0.0
        return bits ^ (bits >> 63 & _ALL_BUT_SIGN)

    def _scores(self, ranks: np.ndarray) -> np.ndarray:
        """The scores of these ranks."""
        if self.has_wide_integers:
            return ranks
        return (ranks ^ (ranks >> 63 & _ALL_BUT_SIGN)).view(np.float64)

    def _pieces(self, ranks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The piece, among all pieces, of each score of the split bin of this number."""
        steps = ((ranks - self._low[numbers]) * self._scale[numbers]).astype(np.int64)
        return np.clip(steps, 0, self._sizes[numbers] - 1) + self._starts[numbers]

    def _owners_and_pieces(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bin of `coarse` of each bin, and its number among all pieces, or -1."""
        owners = np.searchsorted(self._first, bins, side="right") - 1
        numbers = self._number[owners]
        pieces = np.full(len(bins), -1)
        is_cut = numbers >= 0
        first = self._starts[numbers[is_cut]]
        pieces[is_cut] = first + bins[is_cut] - self._first[owners[is_cut]]
        return owners, pieces


def sharpened(
    counts: BinnedScores,
    look_again: Callable[[], Iterable[tuple[Array, Array]]],
    *,
    fpr: float | None = None,
) -> BinnedScores:
    """Refine `counts` by further passes over the same scores while a bound is too wide.

    To be called by every process, after `all_reduce`; all make the same number of passes.

    Args:
        look_again: yields this process's (anomalous, normal) scores again, image by image.
        fpr: see `PooledCounts.refined`.
    """
    for _ in range(_FURTHER_PASSES):
        if counts.is_sharp(fpr):
            break
        refined = counts.refined(fpr)
        for anomalous, normal in look_again():
            refined.update(anomalous, normal)
        refined.all_reduce()
        counts = refined
    return counts


def _blocks(anomalous: Array, normal: Array) -> Iterator[tuple[int, np.ndarray]]:
    """(0, normal scores) and (1, anomalous scores) in blocks that fit into the cache."""
    for row, scores in enumerate((normal, anomalous)):
        scores = with_all_digits(scores)
        for start in range(0, len(scores), _BLOCK):
            yield row, scores[start : start + _BLOCK]


def _rounded(scores: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(scores, dtype=np.float32)


def _next_below(scores: np.ndarray) -> np.ndarray:
    """The next float32 below each score, as float64."""
    with np.errstate(over="ignore"):
        return np.nextafter(scores, np.float32(-np.inf)).astype(np.float64)


def _integers(scores: np.ndarray) -> np.ndarray:
    """Convert float64 values to int64, clipped to its range."""
    largest = np.iinfo(np.int64).max
    inside = np.where(scores < 2.0**63, scores, 0).clip(-(2.0**63)).astype(np.int64)
    return np.where(scores < 2.0**63, inside, largest)
