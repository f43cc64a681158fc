"""All scores by name. A score is a line here and a line in `maps`, or a file if it is fitted.

Without torch until a map is computed, because the command line reads this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from modules.scores import dense_crf

if TYPE_CHECKING:
    from torch import Tensor

    from modules.scores.network_output import NetworkOutput
    from modules.scores.score_map import ScoreMap

ALL = "all"
DROPOUT_PASSES = 10
CRF_REMEDY = "the package pydensecrf2; run pip install -e '.[crf]'"


@dataclass(frozen=True)
class Score:
    """An anomaly score.

    Attributes:
        name: its name.
        words: a description for the command line's help.
        cosine: whether it needs the cosine classifier.
        samples: whether it needs stochastic passes.
        fitted: whether it is fitted to the training images; its file is `modules/scores/NAME.py`.
        crf: whether it needs the optional package of `dense_crf`.
    """

    name: str
    words: str
    cosine: bool = False
    samples: bool = False
    fitted: bool = False
    crf: bool = False

    @property
    def of_logits(self) -> bool:
        """Whether it needs only the logits of one pass."""
        return not (self.samples or self.fitted or self.crf)

    def missing(self, classifier: str) -> str | None:
        """The missing requirement, if any."""
        if self.cosine and classifier != "cosine":
            return "--classifier cosine"
        return CRF_REMEDY if self.crf and not dense_crf.is_installed() else None

    @cached_property
    def map(self) -> ScoreMap:
        """The functions that compute it; the first use imports torch."""
        if self.fitted:
            score_map: ScoreMap = import_module(f"modules.scores.{self.name}").MAP
            return score_map
        from modules.scores.maps import MAPS

        return MAPS[self.name]

    def map_of(self, output: NetworkOutput) -> Tensor:
        """(1, H, W), higher = more anomalous."""
        return self.map.from_parts(self.map.parts_of(output), output.size)


_ALL_SCORES = (
    Score("prototype", "distance from the nearest prototype", cosine=True),
    Score("msp", "1 - largest softmax probability"),
    Score("maxlogit", "minus the largest logit"),
    Score("entropy", "entropy of the softmax"),
    Score("energy", "minus the log-sum-exp of the logits"),
    Score("standardized_maxlogit", "largest logit, standardized by class", fitted=True),
    Score("prototype_margin", "margin between the two nearest prototypes", cosine=True),
    Score("mc_dropout", "disagreement of passes with dropout", samples=True),
    Score("class_mean", "distance from the nearest class mean", fitted=True),
    Score("mahalanobis", "Mahalanobis distance from the nearest class", fitted=True),
    Score("knn", "distance to the k-th nearest training feature", fitted=True),
    Score("msp_crf", "msp smoothed by a dense CRF", crf=True),
)
SCORES = {score.name: score for score in _ALL_SCORES}


def resolve(names: Sequence[str], classifier: str) -> tuple[str, ...]:
    """Names of scores in order, each once, with "all" replaced by the available ones."""
    possible = [name for name, score in SCORES.items() if not score.missing(classifier)]
    groups = (possible if name == ALL else [name] for name in names)
    return tuple(dict.fromkeys(name for group in groups for name in group))
