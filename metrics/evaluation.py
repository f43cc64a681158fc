"""The state that a test fills image by image, and its results under every protocol."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics import protocols
from metrics.anomaly import (
    AnomalyMetrics,
    Array,
    InvalidScores,
    populations,
    ranking_metrics,
    to_numpy,
)
from metrics.components import ComponentMatch, match_components
from metrics.pooled import PooledCounts
from metrics.reduction import all_gather
from metrics.segmentation import (
    ConfusionMatrix,
    open_mean_iou,
    open_set_counts,
    segmentation_scores,
)
from metrics.spool import Spool

LARGEST_ERROR = 1e-4
"""Pooled figures that may be farther off than this are counted once more, with better bins."""

# (scores, label, prediction or None), all (H, W)
Maps = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class ImageRecord:
    """What is kept of one image; `metrics` is None where it holds one kind of pixel only.

    size: (height, width) of its label, at which it was measured.
    """

    index: int
    name: str
    metrics: AnomalyMetrics | None
    base_rate: float
    is_constant: bool
    size: tuple[int, int]


@dataclass(frozen=True)
class SecondLook:
    """What only the final thresholds can tell of one image.

    open_counts: (C+1, C+1) int64, see `open_set_counts`; None without a prediction.
    """

    index: int
    components: ComponentMatch
    open_counts: torch.Tensor | None


class AnomalyEvaluation:
    """Anomaly metrics and segmentation of a test split, under every protocol, from one pass.

    Component metrics and open-mIoU need a threshold that is known after the last image only, and
    so the maps again: from `reread`, else from a temporary file (3.7 MB for 720x1280). Where that
    file can't be written these two are None, with the reason as their rule; the rest stands.

    Args:
        num_classes: C, the classes of the confusion matrix.
        anomaly_index: labels from here on, but for the ignore index, are anomalies.
        ignore_index: the label of pixels that count nowhere.
        ignore_classes: class indices whose pixels count as neither normal nor anomalous. They
            stay in the confusion matrix.
        device: where predictions are counted.
        class_names: for the results; a class without a name goes by its index.
        min_predicted_size, min_true_size: see `match_components`; the defaults are those of
            SegmentMeIfYouCan's anomaly track.
        at_input_size: labels and maps have the size of the network's input, not of the label file;
            for the rules of the protocols.
        reread: gives the maps of the image of an index once more.
        spool_folder: where the temporary file goes; the system's place for such files if None.
    """

    def __init__(
        self,
        num_classes: int,
        anomaly_index: int = 13,
        ignore_index: int = 255,
        ignore_classes: Sequence[int] = (),
        device: torch.device | str = "cpu",
        *,
        class_names: Sequence[str] = (),
        min_predicted_size: int = 500,
        min_true_size: int = 100,
        at_input_size: bool = False,
        reread: Callable[[int], Maps] | None = None,
        spool_folder: Path | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.anomaly_index, self.ignore_index = anomaly_index, ignore_index
        names = dict(enumerate(class_names))
        self.ignored_classes = [names.get(index, str(index)) for index in ignore_classes]
        self.min_sizes = min_predicted_size, min_true_size
        self.at_input_size = at_input_size
        labels = np.arange(256)
        self._is_valid = (labels != ignore_index) & ~np.isin(labels, ignore_classes)
        self._is_anomaly = (labels >= anomaly_index) & self._is_valid
        self.confusion = ConfusionMatrix(num_classes, device)
        self.pooled: PooledCounts = PooledCounts()
        self.records: list[ImageRecord] = []
        self._reread = reread
        self._spool = None if reread else Spool(spool_folder)
        self._spool_errors: list[str] = []
        self._second_looks: list[SecondLook] | None = None

    def update(
        self, index: int, name: str, scores: Array, prediction: Array | None, label: Array
    ) -> None:
        """Adds one image.

        Args:
            index: its place in the split.
            name: what errors and results call it.
            scores: (H, W) float, higher = more anomalous.
            prediction: (H, W) class indices in 0..C-1; None where only scores are known.
            label: (H, W) uint8.

        Raises:
            InvalidScores: a score that counts is NaN or infinite.
        """
        label = to_numpy(label)
        try:
            kinds = populations(scores, *self._masks(label))
        except InvalidScores as error:
            raise InvalidScores(f"{name}: {error}") from error
        anomalous, normal = len(kinds[0]), len(kinds[1])
        metrics = ranking_metrics(*kinds) if anomalous and normal else None
        base_rate = anomalous / max(anomalous + normal, 1)
        height, width = label.shape
        self.records.append(
            ImageRecord(index, name, metrics, base_rate, _is_constant(kinds), (height, width))
        )
        self.pooled.update(*kinds)
        if prediction is not None:
            device = self.confusion.matrix.device
            self.confusion.update(
                torch.as_tensor(prediction).to(device), torch.from_numpy(label).to(device)
            )
        self._keep(scores, label, prediction)

    def all_reduce(self, group: Any = None) -> None:
        """Brings together the images of all processes; afterwards each holds all of them.

        Every process calls it, once, after its last image. Counts are added up and images put in
        the order of their index, so the number of processes changes no bit of the results.
        """
        self.pooled.all_reduce(group)
        self.confusion.all_reduce(group)
        self._spool_errors = all_gather(self._spool_errors, group)
        self._refine_pooled(group)
        self._second_looks = all_gather(self._look_again(), group)
        self.records = all_gather(self.records, group)

    def results(self) -> dict[str, Any]:
        """All figures: AUROC, AUPR and FPR95 in percent, segmentation scores as fractions.

        The headline is the mean over images; "protocols" holds every protocol's figures with
        their unit and rule. What can't be measured is None (NaN in the segmentation scores).

        Raises:
            ValueError: an index was given twice.
        """
        if self._second_looks is None:
            self._refine_pooled()
            self._second_looks = self._look_again()
        records = sorted(self.records, key=lambda record: record.index)
        if len({record.index for record in records}) < len(records):
            raise ValueError("an image was counted twice: every index may come once")
        scored = [record for record in records if record.metrics is not None]
        base_rate = protocols.mean([record.base_rate for record in scored])
        size = protocols.measured_size({record.size for record in records}, self.at_input_size)
        all_protocols = {
            name: replace(protocol, rule=f"{protocol.rule}; measured at {size}")
            for name, protocol in self._protocols(records, base_rate).items()
        }
        headline = all_protocols["per image"]
        ignored = ", ".join(self.ignored_classes) or "none"
        return {
            **headline.figures,
            **segmentation_scores(self.confusion.matrix),
            "images": len(records),
            "images_scored": len(scored),
            "images_skipped": len(records) - len(scored),
            "anomaly_base_rate": base_rate,
            "anomaly_base_rate_pooled": self.pooled.base_rate,
            "measured_at": size,
            "constant_score_maps": [record.name for record in records if record.is_constant],
            "protocol": f"per image: {headline.rule}; ignored classes: {ignored}",
            "protocols": {name: asdict(protocol) for name, protocol in all_protocols.items()},
        }

    def _protocols(
        self, records: Sequence[ImageRecord], base_rate: float | None
    ) -> dict[str, protocols.Protocol]:
        ignored, pooled = self.ignored_classes, self.pooled.metrics()
        looks = sorted(self._second_looks or [], key=lambda look: look.index)
        counts = [look.open_counts for look in looks if look.open_counts is not None]
        has_open_set = looks and len(counts) == len(records)
        return {
            "per image": protocols.per_image(
                [record.metrics for record in records if record.metrics], base_rate, ignored
            ),
            "pooled": protocols.pooled(pooled, self.pooled.base_rate, ignored),
            "components": protocols.components(
                [look.components for look in looks],
                pooled.best_f1_threshold if pooled else None,
                self.min_sizes,
                ignored,
                self._spool_errors,
            ),
            "segmentation": protocols.segmentation(segmentation_scores(self.confusion.matrix)),
            "open set": protocols.open_set(
                open_mean_iou(torch.stack(counts).sum(0)) if has_open_set else math.nan,
                pooled.recall_95_threshold if pooled else None,
                self._spool_errors,
            ),
        }

    def _keep(self, scores: Array, label: np.ndarray, prediction: Array | None) -> None:
        """Puts the maps aside for the second look."""
        if self._spool is None:
            return
        maps = [to_numpy(torch.as_tensor(scores).float()), label]
        if prediction is not None:
            maps.append(to_numpy(prediction).astype(np.uint8))
        try:
            self._spool.append(*maps)
        except OSError as error:
            self._spool = None
            self._spool_errors.append(f"the maps could not be kept for a second look: {error}")

    def _maps(self, number: int, index: int) -> Maps:
        if self._spool is None:
            assert self._reread is not None
            return self._reread(index)
        scores, label, *predictions = self._spool[number]
        return scores, label, predictions[0] if predictions else None

    def _refine_pooled(self, group: Any = None) -> None:
        """Counts all maps once more where the pooled figures' bounds are too wide."""
        pooled = self.pooled.metrics()
        if pooled is None or pooled.largest_bound <= LARGEST_ERROR or self._spool_errors:
            return
        refined = self.pooled.refined()
        for number, record in enumerate(self.records):
            scores, label, _ = self._maps(number, record.index)
            refined.update(*populations(scores, *self._masks(label)))
        refined.all_reduce(group)
        self.pooled = refined

    def _masks(self, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(is_anomaly, valid), both (H, W) bool."""
        return self._is_anomaly.take(label), self._is_valid.take(label)

    def _look_again(self) -> list[SecondLook]:
        """The second look at the images of this process, once the pooled counts are complete."""
        pooled = self.pooled.metrics()
        if pooled is None or self._spool_errors:
            return []
        looks = []
        for number, record in enumerate(self.records):
            scores, label, prediction = self._maps(number, record.index)
            scores = scores.astype(np.float32, copy=False)
            components = match_components(
                scores >= pooled.best_f1_threshold,
                *self._masks(label),
                min_predicted_size=self.min_sizes[0],
                min_true_size=self.min_sizes[1],
            )
            open_counts = None
            if prediction is not None:
                open_counts = open_set_counts(
                    torch.from_numpy(prediction),
                    torch.from_numpy(label),
                    torch.from_numpy(scores >= pooled.recall_95_threshold),
                    self.num_classes,
                    self.anomaly_index,
                    self.ignore_index,
                )
            looks.append(SecondLook(record.index, components, open_counts))
        return looks


def _is_constant(kinds: Sequence[Array]) -> bool:
    kinds = [kind for kind in kinds if len(kind)]
    return bool(kinds) and bool(min(k.min() for k in kinds) == max(k.max() for k in kinds))
