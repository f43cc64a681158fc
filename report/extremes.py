"""The worst and the best images of a test, in TensorBoard."""

from bisect import insort
from collections.abc import Callable
from itertools import chain

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dataset.loaders import EvaluationSample
from metrics.anomaly import PER_IMAGE, AnomalyMetrics
from report.panels import maps_of
from utils.distributed import gather_objects
from utils.figures import Picture, render
from utils.logger import Logger

Draw = Callable[[Picture, np.ndarray, np.ndarray, np.ndarray], Picture]
Ranking = list[tuple[float, int]]

_METRICS = ("AUROC", "AUPR")
_SIGNS = {"worst": 1, "best": -1}
_HEADING_HEIGHT_INCHES = 0.3


class Extremes:
    """Panels of the images with the lowest and the highest AUROC and AUPR.

    A process keeps the maps of `shown` images for each end of each metric, for any size of the
    test set: 8.3 MB per image of 720x1280. Panels are drawn at the end, only for the extremes over
    all processes.

    Args:
        shown: number of images for each end of each metric.
        draw: (image, label, prediction, score) -> panel, such as `sample_panel`.
    """

    def __init__(self, shown: int, draw: Draw) -> None:
        self._shown, self._draw = shown, draw
        self._rankings: dict[tuple[str, str], Ranking] = {
            (end, metric): [] for metric in _METRICS for end in _SIGNS
        }
        self._maps: dict[int, tuple[str, list[np.ndarray]]] = {}  # heading, arguments of `draw`

    def offer(
        self,
        sample: EvaluationSample,
        prediction: Tensor,
        score: Tensor,
        metrics: AnomalyMetrics | None,
    ) -> None:
        """Keep an image if it is among the extremes so far; one without metrics is not ranked."""
        if metrics is None:
            return
        for (end, metric), ranking in self._rankings.items():
            insort(ranking, (_SIGNS[end] * getattr(metrics, PER_IMAGE[metric]), sample.index))
            del ranking[self._shown :]
        kept = {index for ranking in self._rankings.values() for _, index in ranking}
        self._maps = {index: maps for index, maps in self._maps.items() if index in kept}
        if sample.index in kept:
            # Copies, because the sample's arrays may be in shared memory, which is scarce.
            maps = [one.copy() for one in maps_of(sample, prediction, score)]
            self._maps[sample.index] = _heading(sample.name, metrics), maps

    def log(self, logger: Logger, step: int) -> None:
        """Log the extremes over all processes; to be called once by every process."""
        parts = gather_objects(self._rankings)
        rankings = {
            key: sorted(chain.from_iterable(part[key] for part in parts))[: self._shown]
            for key in self._rankings
        }
        wanted = {index for ranking in rankings.values() for _, index in ranking}
        own = {index: self._panel(*maps) for index, maps in self._maps.items() if index in wanted}
        panels = {index: panel for part in gather_objects(own) for index, panel in part.items()}
        for (end, metric), ranking in rankings.items():
            for place, (_, index) in enumerate(ranking, start=1):
                logger.image(f"worst and best/{end} {metric} {place}", panels[index], step)

    def _panel(self, heading: str, maps: list[np.ndarray]) -> Picture:
        panel = self._draw(*maps)
        return np.concatenate([_heading_strip(heading, panel.shape[1]), panel])


def _heading(name: str, metrics: AnomalyMetrics) -> str:
    found = (f"{key} {100 * getattr(metrics, own):.2f} %" for key, own in PER_IMAGE.items())
    return f"{name}: {', '.join(found)}"


def _heading_strip(text: str, width: int) -> Picture:
    figure = Figure((width / 100, _HEADING_HEIGHT_INCHES), dpi=100)
    figure.text(0.005, 0.2, text, fontsize=13, fontweight="bold")
    return render(figure)
