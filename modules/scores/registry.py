"""All scores by name. A score is a function in `maps` and a line in `SCORES`.

What the command line asks of them is told without torch, which takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from modules.scores import dense_crf

if TYPE_CHECKING:
    from torch import Tensor

    from modules.scores.evidence import Evidence

ALL = "all"
DROPOUT_PASSES = 10
CRF_REMEDY = "the package pydensecrf2; run pip install -e '.[crf]'"


@dataclass(frozen=True)
class Score:
    """An anomaly score.

    Attributes:
        function: its name in `maps`.
        words: what it is, for the command line's help.
        cosine: it needs the cosine classifier.
        samples: it needs stochastic passes.
        statistics: it needs a pass over the training images.
        crf: it needs the optional package of `dense_crf`.
    """

    function: str
    words: str
    cosine: bool = False
    samples: bool = False
    statistics: bool = False
    crf: bool = False

    @property
    def map_of(self) -> Callable[[Evidence], Tensor]:
        """Evidence of one image -> (1, H, W), higher = more anomalous."""
        function: Callable[[Evidence], Tensor]
        function = getattr(import_module("modules.scores.maps"), self.function)
        return function

    @property
    def of_logits(self) -> bool:
        """Whether the logits of one pass are all it needs."""
        return not (self.samples or self.statistics or self.crf)

    def missing(self, classifier: str) -> str | None:
        """What it needs and can't have, if there is such a thing."""
        if self.cosine and classifier != "cosine":
            return "--classifier cosine"
        return CRF_REMEDY if self.crf and not dense_crf.is_installed() else None


SCORES = {
    "prototype": Score("prototype", "distance from the nearest prototype", cosine=True),
    "msp": Score("msp", "1 - largest softmax probability"),
    "maxlogit": Score("maxlogit", "minus the largest logit"),
    "entropy": Score("entropy", "entropy of the softmax"),
    "energy": Score("energy", "minus the log-sum-exp of the logits"),
    "standardized_maxlogit": Score(
        "standardized_maxlogit",
        "largest logit, standardized by class",
        statistics=True,
    ),
    "prototype_margin": Score(
        "prototype_margin", "how near the second nearest prototype is as well", cosine=True
    ),
    "mc_dropout": Score("mc_dropout", "disagreement of passes with dropout", samples=True),
    "msp_crf": Score("msp_crf", "msp smoothed by a dense CRF", crf=True),
}


def resolve(names: Sequence[str], classifier: str) -> tuple[str, ...]:
    """Names of scores in their order, each once, with "all" replaced by those that can be had."""
    possible = [name for name, score in SCORES.items() if not score.missing(classifier)]
    groups = (possible if name == ALL else [name] for name in names)
    return tuple(dict.fromkeys(name for group in groups for name in group))
