"""Accumulates a test image by image and computes the results of every protocol."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics import protocols
from metrics.anomaly import (
    PER_IMAGE,
    AnomalyMetrics,
    Array,
    InvalidScores,
    populations,
    ranking_metrics,
    to_numpy,
    with_all_digits,
)
from metrics.components import ComponentMatch, connected_components, match_components
from metrics.curve import PooledMetrics
from metrics.pooled import BinnedScores, PooledCounts, sharpened
from metrics.segmentation import (
    ConfusionMatrix,
    open_set_counts,
    segmentation_scores,
)
from metrics.spool import Spool
from utils.distributed import gather_lists, reduce_over_processes

ONLY_SCORE = "score"
"""The name of a score that has none."""

# (scores, label, prediction or None), all (H, W)
Maps = tuple[np.ndarray, np.ndarray, np.ndarray | None]

# name of a score, its parts, (H, W) -> its map
MapOf = Callable[[str, Sequence[torch.Tensor], tuple[int, ...]], Array]

# (index, maps of some scores, label, prediction or None) of one image
_Kept = tuple[int, dict[str, Array], np.ndarray, np.ndarray | None]

_OF_A_SCORE = (*PER_IMAGE, "constant_score_maps", "protocols")


@dataclass(frozen=True)
class ImageRecord:
    """The record of one image; `metrics` is None if it has only one kind of pixel.

    size: (height, width) of its label, at which it was measured.
    """

    index: int
    name: str
    metrics: AnomalyMetrics | None
    base_rate: float
    is_constant: bool
    size: tuple[int, int]


@dataclass
class _Thresholded:
    """Counts that depend on the final thresholds of a score.

    matches: (index of the image, its components). open_counts: (C+1, C+1) int64 of all images,
    see `open_set_counts`.
    """

    open_counts: torch.Tensor
    matches: list[tuple[int, ComponentMatch]] = field(default_factory=list)


class AnomalyEvaluation:
    """Anomaly metrics and segmentation of a test split, under every protocol, from one pass.

    Exact thresholds, component metrics and open-mIoU need the maps again after the last image,
    from `reread` or else from a temporary file. It takes at most 4 bytes per pixel and float32
    map (3.7 MB for 1280x720), and far less if `update` receives parts. If the file cannot be
    written, component metrics and open-mIoU are None with the reason as their rule.

    Args:
        num_classes: C, the classes of the confusion matrix.
        anomaly_index: labels >= this, except for the ignore index, are anomalies.
        ignore_index: the label of ignored pixels.
        ignore_classes: class indices whose pixels count as neither normal nor anomalous. They
            stay in the confusion matrix.
        scores: names of several scores of one model; the first is the headline score.
        class_names: for the results; by default the indices.
        min_predicted_size, min_true_size: see `match_components`; the defaults are those of
            SegmentMeIfYouCan's anomaly track.
        at_input_size: labels and maps have the size of the network's input, not of the label file;
            for the rules of the protocols.
        reread: returns the maps of the image of an index again, for a single score.
        map_of: computes a score's map from its parts, reproducibly to the last bit.
        spool_folder: folder of the temporary file; the system's default if None.

    >>> evaluation = AnomalyEvaluation(num_classes=2, anomaly_index=2, min_predicted_size=0)
    >>> label = np.array([[0, 0, 1, 2]], np.uint8)
    >>> prediction = np.array([[0, 0, 1, 1]])
    >>> scores = np.array([[0.1, 0.3, 0.6, 0.5]])
    >>> evaluation.update(0, "an image", scores, prediction, label)
    >>> results = evaluation.results()
    >>> round(results["AUROC"], 2), results["Mean IoU"]
    (66.67, 1.0)
    >>> results["protocols"]["open set"]["figures"]["open-mIoU"]
    0.5
    """

    def __init__(
        self,
        num_classes: int,
        anomaly_index: int = 13,
        ignore_index: int = 255,
        ignore_classes: Sequence[int] = (),
        *,
        scores: Sequence[str] = (),
        class_names: Sequence[str] = (),
        min_predicted_size: int = 500,
        min_true_size: int = 100,
        at_input_size: bool = False,
        reread: Callable[[int], Maps] | None = None,
        map_of: MapOf | None = None,
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
        self.confusion = ConfusionMatrix(num_classes)
        self._has_names = bool(scores)
        self.scores = tuple(scores) or (ONLY_SCORE,)
        self.counts: dict[str, BinnedScores] = {name: PooledCounts() for name in self.scores}
        self.records_of: dict[str, list[ImageRecord]] = {name: [] for name in self.scores}
        self._has_prediction: list[bool] = []
        self._reread, self._map_of = reread, map_of
        self._spool = None if reread else Spool(spool_folder)
        self._spool_errors: list[str] = []
        self._thresholded: dict[str, _Thresholded] | None = None

    @property
    def headline(self) -> str:
        """The first score."""
        return self.scores[0]

    @property
    def records(self) -> list[ImageRecord]:
        """The images under the first score; `records_of` has those of each."""
        return self.records_of[self.headline]

    @property
    def pooled(self) -> BinnedScores:
        """The pooled counts of the first score; `counts` has those of each."""
        return self.counts[self.headline]

    def update(
        self,
        index: int,
        name: str,
        scores: Array | Mapping[str, Array],
        prediction: Array | None,
        label: Array,
        parts: Mapping[str, Sequence[torch.Tensor]] | None = None,
    ) -> None:
        """Add one image.

        Args:
            index: its position in the split.
            name: its name in errors and results.
            scores: (H, W) floats or integers, higher = more anomalous; for several scores by name.
            prediction: (H, W) class indices in 0..C-1; None if only scores are known.
            label: (H, W) uint8.
            parts: by score, the input of `map_of`, which is stored instead of the map.

        Raises:
            InvalidScores: the score of a valid pixel is NaN or infinite.
        """
        label = to_numpy(label)
        maps = scores if isinstance(scores, Mapping) else {ONLY_SCORE: scores}
        masks = self._masks(label)
        try:
            kinds = {score: populations(maps[score], *masks) for score in self.scores}
        except InvalidScores as error:
            raise InvalidScores(f"{name}: {error}") from error
        for score, own in kinds.items():
            self.records_of[score].append(_record(index, name, own, label))
            self.counts[score].update(*own)
        self._has_prediction.append(prediction is not None)
        if prediction is not None:
            self.confusion.update(
                torch.as_tensor(prediction, device="cpu"), torch.from_numpy(label)
            )
        self._keep(maps, label, prediction, parts or {})

    def all_reduce(self) -> None:
        """Combine the images of all processes; afterwards each process has all of them.

        To be called once by every process, after its last image. Counts are added and images
        sorted by index, so the results do not depend on the number of processes.
        """
        for counts in self.counts.values():
            counts.all_reduce()
        self.confusion.all_reduce()
        self._spool_errors = gather_lists(self._spool_errors)
        self._look_again()
        self._has_prediction = gather_lists(self._has_prediction)
        for score, records in self.records_of.items():
            self.records_of[score] = gather_lists(records)

    def results(self) -> dict[str, Any]:
        """All metrics: AUROC, AUPR and FPR95 in percent, segmentation scores as fractions.

        The headline metrics are means over images; "protocols" has every protocol's metrics with
        their unit and rule. Undefined metrics are None (NaN in the segmentation scores). With
        several scores these are the headline score's; "score" names it, and "scores" has all:

        {"score": name, "scores": {name: {"AUROC", "AUPR", "FPR95", "protocols", ...}}, ...}

        Raises:
            ValueError: an index was given twice.
        """
        if self._thresholded is None:
            self._look_again()
        if len({record.index for record in self.records}) < len(self.records):
            raise ValueError("an image was counted twice: every index must occur once")
        found = {score: self._results_of(score) for score in self.scores}
        results = found[self.headline]
        if not self._has_names:
            return results
        own = {score: {key: one[key] for key in _OF_A_SCORE} for score, one in found.items()}
        return {**results, "score": self.headline, "scores": own}

    def _results_of(self, score: str) -> dict[str, Any]:
        records = sorted(self.records_of[score], key=lambda record: record.index)
        scored = [record for record in records if record.metrics is not None]
        base_rate = protocols.mean([record.base_rate for record in scored])
        size = protocols.measured_size({record.size for record in records}, self.at_input_size)
        all_protocols = {
            name: replace(protocol, rule=f"{protocol.rule}; measured at {size}")
            for name, protocol in self._protocols(score, records, base_rate).items()
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
            "anomaly_base_rate_pooled": self.counts[score].base_rate,
            "measured_at": size,
            "constant_score_maps": [record.name for record in records if record.is_constant],
            "protocol": f"per image: {headline.rule}; ignored classes: {ignored}",
            "protocols": {name: asdict(protocol) for name, protocol in all_protocols.items()},
        }

    def _protocols(
        self, score: str, records: Sequence[ImageRecord], base_rate: float | None
    ) -> dict[str, protocols.Protocol]:
        assert self._thresholded is not None
        ignored, counts = self.ignored_classes, self.counts[score]
        pooled, thresholded = counts.metrics(), self._thresholded.get(score)
        matches = sorted(thresholded.matches, key=lambda pair: pair[0]) if thresholded else []
        open_counts = None
        if thresholded and all(self._has_prediction):
            open_counts = thresholded.open_counts
        return {
            "per image": protocols.per_image(
                [record.metrics for record in records if record.metrics], base_rate, ignored
            ),
            "pooled": protocols.pooled(pooled, counts.base_rate, ignored),
            "components": protocols.components(
                [match for _, match in matches],
                pooled,
                self.min_sizes,
                ignored,
                self._spool_errors,
            ),
            "segmentation": protocols.segmentation(segmentation_scores(self.confusion.matrix)),
            "open set": protocols.open_set(open_counts, pooled, self._spool_errors),
        }

    def _keep(
        self,
        maps: Mapping[str, Array],
        label: np.ndarray,
        prediction: Array | None,
        parts: Mapping[str, Sequence[torch.Tensor]],
    ) -> None:
        """Store the image's maps, or the parts they can be computed from, for the second pass."""
        if self._spool is None:
            return
        group: dict[str, list[np.ndarray]] = {"label": [label], "prediction": []}
        if prediction is not None:
            group["prediction"].append(to_numpy(prediction).astype(np.uint8))
        for score in self.scores:
            if score in parts:
                group[f"parts of {score}"] = [to_numpy(part) for part in parts[score]]
            else:
                group[f"map of {score}"] = [to_numpy(maps[score])]
        try:
            self._spool.append(group)
        except OSError as error:
            self._spool = None
            self._spool_errors.append(f"the maps could not be stored for a second pass: {error}")

    def _kept(self, scores: Sequence[str]) -> Iterator[_Kept]:
        """Yield (index, maps of these scores, label, prediction) of this process's images again."""
        for number, record in enumerate(self.records):
            if self._spool is None:
                assert self._reread is not None
                score_map, label, prediction = self._reread(record.index)
                yield record.index, {ONLY_SCORE: score_map}, label, prediction
                continue
            (label,), predictions = (
                self._spool.read(number, name) for name in ("label", "prediction")
            )
            maps = {score: self._map(number, score, label.shape) for score in scores}
            yield record.index, maps, label, predictions[0] if predictions else None

    def _map(self, number: int, score: str, size: tuple[int, ...]) -> Array:
        assert self._spool is not None
        parts = self._spool.read(number, f"parts of {score}")
        if not parts:
            return self._spool.read(number, f"map of {score}")[0]
        assert self._map_of is not None
        return self._map_of(score, [torch.from_numpy(part) for part in parts], size)

    def _look_again(self) -> None:
        """Do the second pass over the maps, once the counts of all processes are complete."""
        self._thresholded = {}
        if self._spool_errors:
            return
        for score in self.scores:
            look_again = partial(self._populations_again, score)
            self.counts[score] = sharpened(self.counts[score], look_again)
        all_metrics = {score: counts.metrics() for score, counts in self.counts.items()}
        thresholds = {score: metrics for score, metrics in all_metrics.items() if metrics}
        classes = self.num_classes + 1
        for score in thresholds:
            self._thresholded[score] = _Thresholded(torch.zeros(classes, classes, dtype=torch.long))
        if thresholds:
            for index, maps, label, prediction in self._kept(self.scores):
                self._look_at(index, maps, label, prediction, thresholds)
        for found in self._thresholded.values():
            found.open_counts = reduce_over_processes(found.open_counts)
            found.matches = gather_lists(found.matches)

    def _populations_again(self, score: str) -> Iterator[tuple[Array, Array]]:
        for _, maps, label, _ in self._kept([score]):
            yield populations(maps[score], *self._masks(label))

    def _look_at(
        self,
        index: int,
        maps: Mapping[str, Array],
        label: np.ndarray,
        prediction: np.ndarray | None,
        thresholds: Mapping[str, PooledMetrics],
    ) -> None:
        """Components and open-set counts of one image."""
        assert self._thresholded is not None
        is_anomaly, valid = self._masks(label)
        true_components = connected_components(is_anomaly)
        for score, metrics in thresholds.items():
            found, scores = self._thresholded[score], with_all_digits(maps[score])
            match = match_components(
                scores > metrics.best_f1_threshold,
                is_anomaly,
                valid,
                min_predicted_size=self.min_sizes[0],
                min_true_size=self.min_sizes[1],
                true_components=true_components,
            )
            found.matches.append((index, match))
            if prediction is not None:
                found.open_counts += open_set_counts(
                    torch.from_numpy(prediction),
                    torch.from_numpy(label),
                    torch.from_numpy(scores >= metrics.recall_95_threshold),
                    self.num_classes,
                    self.anomaly_index,
                    self.ignore_index,
                )

    def _masks(self, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(is_anomaly, valid), both (H, W) bool; anomalous pixels are valid."""
        return _of_labels(self._is_anomaly, label), _of_labels(self._is_valid, label)


def _record(index: int, name: str, kinds: tuple[Array, Array], label: np.ndarray) -> ImageRecord:
    """Of an image's (anomalous, normal) scores."""
    anomalous, normal = (len(kind) for kind in kinds)
    metrics = ranking_metrics(*kinds) if anomalous and normal else None
    base_rate, (height, width) = anomalous / max(anomalous + normal, 1), label.shape
    return ImageRecord(index, name, metrics, base_rate, _is_constant(kinds), (height, width))


def _of_labels(facts: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Look up a (256,) bool table by label; has the shape of the labels."""
    if label.dtype != np.uint8:
        return facts.take(label)
    content = label.tobytes().translate(facts.tobytes())  # five times as fast as take
    return np.frombuffer(bytearray(content), bool).reshape(label.shape)


def _is_constant(kinds: Sequence[Array]) -> bool:
    kinds = [kind for kind in kinds if len(kind)]
    return bool(kinds) and bool(min(k.min() for k in kinds) == max(k.max() for k in kinds))
