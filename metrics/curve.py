"""Pooled metrics from counted scores, and how far off each can be."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

LARGEST_ERROR = 1e-4
"""A pooled metric that may be farther off than this is counted once more, with better bins."""

_MOST_PIECES = 1 << 16  # of one bin


@dataclass(frozen=True)
class PooledMetrics:
    """Pooled metrics as fractions; a `_bound` is the most by which its value can be off.

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
        """Whether no metric can be off by more than `LARGEST_ERROR` and no threshold at all."""
        thresholds = self.recall_95_threshold_bound, self.best_f1_threshold_bound
        return self.largest_bound <= LARGEST_ERROR and not any(thresholds)


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
class BinCurve:
    """The threshold curve at every bin that holds an anomalous score, from the highest down.

    step, tied: (K,) anomalous and normal pixels in the bin. true_positives, false_positives: those
    at or above it. negatives: all normal pixels. is_exact: (K,) whether the bin holds one score
    only.
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
        """Average precision, the step rule."""
        return self._weighted(self._precision(self.true_positives, self.false_positives))

    @cached_property
    def first_at_recall_95(self) -> int:
        """The highest bin whose recall is at least 0.95."""
        return int(np.searchsorted(20 * self.true_positives, 19 * self.positives))

    @cached_property
    def nearest_recall_95(self) -> int:
        """The bin whose recall is nearest 0.95, the higher recall of two."""
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
        """Where the threshold of the best F1 = 2 TP / (P + TP + FP) can lie; the first is it if
        the bins hold one score each.

        Inside a bin of several scores F1 is at most that of all its anomalous pixels without its
        normal ones. A bin of one score is a candidate only if no higher one is as good.
        """
        called = self.positives + self.true_positives + self.false_positives
        reached = self.true_positives / called
        possible = self.true_positives / (called - self._unsure)
        is_candidate = (possible >= reached.max()) & ~self.is_exact
        is_candidate[reached.argmax()] = True
        return is_candidate.nonzero()[0]

    def best_f1(self) -> int:
        """The bin at whose lower end F1 is best; the highest of equals."""
        called = self.positives + self.true_positives + self.false_positives
        return int((self.true_positives / called).argmax())

    def auroc_bound(self) -> float:
        """A tied pair counts 1/2 and should count 0 or 1; in a bin of one score it is a tie."""
        return float(self._auroc_errors().sum())

    def aupr_bound(self) -> float:
        """The most by which average precision can be off, over all orders of each bin's pixels."""
        highest, lowest = self._aupr_limits()
        aupr = self.aupr()
        return max(self._weighted(highest) - aupr, aupr - self._weighted(lowest))

    def fpr_at_recall_95_bound(self) -> float:
        """The exact threshold lies in the bin that reaches recall 0.95."""
        return float(self._unsure[self.first_at_recall_95] / self.negatives)

    def fpr95_bound(self) -> float:
        """How far the exact FPR95 can be off.

        Where the bin that reaches recall 0.95 has no recall inside, the exact recall is known, and
        so the bin of the threshold: the next one with an anomalous pixel, if there is one. Else
        the threshold lies in the bin that reaches recall 0.95 or in the next one.
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
        """(K,) into how many pieces to cut each bin so that the bounds shrink below their targets.

        AUROC and AUPR: cutting a bin of error e into m even pieces leaves about e / m; with m in
        proportion to sqrt(e) the least pieces do. The bins in which a threshold may lie get as many
        as there is room for.

        Args:
            most: about how many pieces there may be, but for bins that stay whole.
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
        """The bins of several scores in which a threshold may lie."""
        first, last = self.first_at_recall_95, len(self.step) - 1
        around = np.arange(max(first - 1, 0), min(first + 1, last) + 1)
        bins = np.union1d(around, self.best_f1_candidates())
        return bins[~self.is_exact[bins]]

    @cached_property
    def _unsure(self) -> np.ndarray:
        """(K,) normal pixels of which it is not known whether they tie with the anomalous ones."""
        return np.where(self.is_exact, 0, self.tied)

    def _auroc_errors(self) -> np.ndarray:
        return self.step * (self._unsure / (2 * self.positives * self.negatives))

    def _aupr_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) the highest and the lowest that the mean precision of each bin's pixels can be.

        An anomalous pixel's precision is at most that of the whole bin without its normal pixels.
        With all of them above it, the k-th has (T + k) / (T + k + F), concave in k, so the mean is
        not below the chord's middle.
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
