"""Several anomaly scores of one model over one pass of a data set."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metrics.anomaly import Array
from metrics.evaluation import AnomalyEvaluation

_OF_A_SCORE = ("AUROC", "AUPR", "FPR95", "constant_score_maps", "protocols")


class ScoreComparison:
    """One `AnomalyEvaluation` a score; the first score is the headline.

    Args:
        names: of the scores.
        make_evaluation: makes an empty evaluation.
    """

    def __init__(
        self, names: Sequence[str], make_evaluation: Callable[[], AnomalyEvaluation]
    ) -> None:
        self.evaluations = {name: make_evaluation() for name in names}

    @property
    def headline(self) -> AnomalyEvaluation:
        """That of the first score."""
        return next(iter(self.evaluations.values()))

    def update(
        self,
        index: int,
        name: str,
        scores: Mapping[str, Array],
        prediction: Array | None,
        label: Array,
    ) -> None:
        """Adds one image: as `AnomalyEvaluation.update`, with a map a score."""
        for score, evaluation in self.evaluations.items():
            evaluation.update(index, name, scores[score], prediction, label)

    def all_reduce(self, group: Any = None) -> None:
        """Brings together the images of all processes; every process calls it once."""
        for evaluation in self.evaluations.values():
            evaluation.all_reduce(group)

    def results(self) -> dict[str, Any]:
        """The headline's results; "score" names it, and "scores" holds the figures of every score.

        {"score": name, "scores": {name: {"AUROC", "AUPR", "FPR95", "protocols", ...}}, ...}
        """
        results = {name: evaluation.results() for name, evaluation in self.evaluations.items()}
        headline = next(iter(results))
        return {
            **results[headline],
            "score": headline,
            "scores": {
                name: {key: found[key] for key in _OF_A_SCORE} for name, found in results.items()
            },
        }
