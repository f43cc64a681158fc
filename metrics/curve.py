"""Pooled metrics from counted scores, with error bounds."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

LARGEST_ERROR = 1e-4
"""A pooled metric with a larger error bound is counted again with finer bins."""

_MOST_PIECES = 1 << 16  # per bin


@dataclass(frozen=True)
class PooledMetrics:
    """Pooled metrics as fractions; a `_bound` is the largest possible error of its value.

    fpr95: at the recall nearest 0.95, the rule of `image_anomaly_metrics`.
    fpr_at_recall_95: at the highest threshold whose recall is at least 0.95.
    recall_95_threshold: that threshold; best_f1_threshold: the highest one of the best pixel F1.
        Both are scores of anomalous pixels, and a pixel counts where score >= threshold. Their
        bounds are differences of scores.
    """

    auroc: float
    aupr: float
    fpr95: float
    fpr_at_recall_95: float
    auroc_bound: float
    aupr_bound: float
    fpr95_bound: float
    fpr_at_recall_95_bound: float
    recall_95_threshold: float
    best_f1_threshold: float
    recall_95_threshold_bound: float
    best_f1_threshold_bound: float

    @property
    def largest_bound(self) -> float:
        """The largest of the four metrics' bounds."""
        return max(self.auroc_bound, self.aupr_bound, self.fpr95_bound, self.fpr_at_recall_95_bound)

    @property
    def is_sharp(self) -> bool:
        """Whether no metric's error exceeds `LARGEST_ERROR` and all thresholds are exact."""
        thresholds = self.recall_95_threshold_bound, self.best_f1_threshold_bound
        return self.largest_bound <= LARGEST_ERROR and not any(thresholds)


@dataclass(frozen=True)
class ThresholdCurve:
    """The true and false positives at K descending thresholds.

    true_positives, false_positives: (K,) int64, ascending; the last are all pixels of their kind.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """(K,) true positive rate."""
        return self.true_positives / self.true_positives[-1]

    @property
    def precision(self) -> np.ndarray:
        """(K,) share of true positives among all positives."""
        return self.true_positives / (self.true_positives + self.false_positives)

    @property
    def false_positive_rate(self) -> np.ndarray:
        """(K,) share of the normal pixels that are false positives."""
        return self.false_positives / self.false_positives[-1]


@dataclass(frozen=True)
class BinCurve:
    """The threshold curve at every bin with an anomalous score, in descending order.

    step, tied: (K,) anomalous and normal pixels in the bin. true_positives, false_positives: those
    at or above it. negatives: all normal pixels. is_exact: (K,) whether all scores in the bin are
    equal.
    """

    step: np.ndarray
    tied: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    negatives: int
    is_exact: np.ndarray

    @property
    def positives(self) -> int:
        """All anomalous pixels."""
        return int(self.true_positives[-1])

    def auroc(self) -> float:
        """A tied pair counts 1/2."""
        lost = self.step.astype(float) @ (2 * self.false_positives - self.tied)
        return float(1 - lost / (2 * self.positives * self.negatives))

    def aupr(self) -> float:
        """Average precision (step rule)."""
        return self._weighted(self._precision(self.true_positives, self.false_positives))

    @cached_property
    def first_at_recall_95(self) -> int:
        """The highest bin whose recall is at least 0.95."""
        return int(np.searchsorted(20 * self.true_positives, 19 * self.positives))

    @cached_property
    def nearest_recall_95(self) -> int:
        """The bin whose recall is nearest 0.95; ties go to the higher recall."""
        after = self.first_at_recall_95
        return min(
            (index for index in (after, after - 1) if index >= 0),
            key=lambda index: abs(self.true_positives[index] / self.positives - 0.95),
        )

    def fpr95(self) -> float:
        """The false positive rate at the recall nearest 0.95, as for one image."""
        nearest, last = self.nearest_recall_95, len(self.step) - 1
        if nearest == last:
            return float(self.false_positives[last] / self.negatives)
        lower = nearest + 1
        return float((self.false_positives[lower] - self.tied[lower]) / self.negatives)

    def fpr_at_recall_95(self) -> float:
        """The false positive rate at the highest threshold of recall >= 0.95."""
        return float(self.false_positives[self.first_at_recall_95] / self.negatives)

    def best_f1_candidates(self) -> np.ndarray:
        """The bins that can contain the threshold of the best F1 = 2 TP / (P + TP + FP). If each
        bin has a single score, it is the first.

        Inside a bin of several scores, F1 is at most that of all its anomalous pixels without its
        normal ones. A bin with a single score is a candidate only if no higher one is as good.
        """
        called = self.positives + self.true_positives + self.false_positives
        reached = self.true_positives / called
        possible = self.true_positives / (called - self._unsure)
        is_candidate = (possible >= reached.max()) & ~self.is_exact
        is_candidate[reached.argmax()] = True
        return is_candidate.nonzero()[0]

    def best_f1(self) -> int:
        """The bin at whose lower end F1 is best; the highest among equals."""
        called = self.positives + self.true_positives + self.false_positives
        return int((self.true_positives / called).argmax())

    def auroc_bound(self) -> float:
        """A pair in one bin counts 1/2 and may really count 0 or 1, unless the bin is exact."""
        return float(self._auroc_errors().sum())

    def aupr_bound(self) -> float:
        """The largest error of average precision over all orders of the pixels in each bin."""
        highest, lowest = self._aupr_limits()
        aupr = self.aupr()
        return max(self._weighted(highest) - aupr, aupr - self._weighted(lowest))

    def fpr_at_recall_95_bound(self) -> float:
        """The exact threshold lies in the bin that reaches recall 0.95."""
        return float(self._unsure[self.first_at_recall_95] / self.negatives)

    def fpr95_bound(self) -> float:
        """The largest error of FPR95.

        If no recall lies inside the bin that reaches recall 0.95, the exact recall is known, and
        with it the threshold's bin: the next one with an anomalous pixel, if there is one.
        Otherwise the threshold lies in the bin that reaches recall 0.95 or in the next one.
        """
        first, last = self.first_at_recall_95, len(self.step) - 1
        lowest = min(first + 1, last)
        if self.is_exact[first] or self.step[first] == 1:
            first = lowest = min(self.nearest_recall_95 + 1, last)
            if self.is_exact[first]:
                return 0.0
        fewest = (self.false_positives[first] - self.tied[first]) / self.negatives
        most = self.false_positives[lowest] / self.negatives
        return float(max(self.fpr95() - fewest, most - self.fpr95()))

    def pieces(self, most: int) -> np.ndarray:
        """(K,) number of pieces into which to split each bin to bring the bounds below their goals.

        For AUROC and AUPR, splitting a bin of error e into m equal pieces leaves an error of about
        e / m; m proportional to sqrt(e) needs the fewest pieces. The bins that may contain a
        threshold share the remaining pieces.

        Args:
            most: approximate limit of the pieces, not counting bins that are not split.
        """
        errors = np.zeros(len(self.step))
        if self.auroc_bound() > LARGEST_ERROR:
            errors += self._auroc_errors()
        if self.aupr_bound() > LARGEST_ERROR:
            errors += self.step * np.subtract(*self._aupr_limits()) / self.positives
        roots = np.sqrt(errors.clip(0))
        total = max(roots.sum(), 1e-300)
        wanted = roots * min(4 * total / LARGEST_ERROR, most / 2 / total)
        pieces = np.ceil(wanted).clip(1, _MOST_PIECES).astype(np.int64)
        pieces[wanted <= 1] = 1
        decisive = self._decisive()
        if len(decisive) > most // 4:
            decisive = decisive[self.tied[decisive].argsort()[-(most // 4) :]]
        share = most // 2 // max(len(decisive), 1)
        pieces[decisive] = np.maximum(pieces[decisive], min(share, _MOST_PIECES))
        return pieces

    def _decisive(self) -> np.ndarray:
        """The bins of several scores that may contain a threshold."""
        first, last = self.first_at_recall_95, len(self.step) - 1
        around = np.arange(max(first - 1, 0), min(first + 1, last) + 1)
        bins = np.union1d(around, self.best_f1_candidates())
        return bins[~self.is_exact[bins]]

    @cached_property
    def _unsure(self) -> np.ndarray:
        """(K,) normal pixels that may or may not tie with the anomalous ones of their bin."""
        return np.where(self.is_exact, 0, self.tied)

    def _auroc_errors(self) -> np.ndarray:
        return self.step * (self._unsure / (2 * self.positives * self.negatives))

    def _aupr_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) upper and lower bound of the mean precision of each bin's pixels.

        An anomalous pixel's precision is at most that of the whole bin without its normal pixels.
        If all of these rank above it, the k-th has (T + k) / (T + k + F), concave in k, so the mean
        is at least the midpoint of the chord.
        """
        own = self._precision(self.true_positives, self.false_positives)
        before = np.where(self.is_exact, 0, self.step - 1)
        first = self._precision(self.true_positives - before, self.false_positives)
        highest = self._precision(self.true_positives, self.false_positives - self._unsure)
        return highest, (first + own) / 2

    def _weighted(self, precision: np.ndarray) -> float:
        return float(self.step @ precision / self.positives)

    @staticmethod
    def _precision(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
        return true_positives / (true_positives + false_positives)
