"""All scores by name. A score is a function in `formulas` and a line in `SCORES`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from modules.scores import dense_crf, formulas
from modules.scores.evidence import Evidence, mean_over_scales

ALL = "all"
CRF_REMEDY = "the package pydensecrf2; run pip install -e '.[crf]'"


@dataclass(frozen=True)
class Score:
    """An anomaly score.

    Attributes:
        map_of: evidence of one image -> (1, H, W), higher = more anomalous.
        words: what it is, for the command line's help.
        cosine: it needs the cosine classifier.
        samples: it needs stochastic passes.
        statistics: it needs a pass over the training images.
        crf: it needs the optional package of `dense_crf`.
    """

    map_of: Callable[[Evidence], Tensor]
    words: str
    cosine: bool = False
    samples: bool = False
    statistics: bool = False
    crf: bool = False

    @property
    def of_logits(self) -> bool:
        """Whether the logits of one pass are all it needs."""
        return not (self.samples or self.statistics or self.crf)

    def missing(self, classifier: str) -> str | None:
        """What it needs and can't have, if there is such a thing."""
        if self.cosine and classifier != "cosine":
            return "--classifier cosine"
        return CRF_REMEDY if self.crf and not dense_crf.is_installed() else None


def _of_logits(formula: Callable[[Tensor], Tensor], words: str, cosine: bool = False) -> Score:
    """A score of each scale's logits, upsampled, mean over scales."""

    def map_of(evidence: Evidence) -> Tensor:
        return mean_over_scales([formula(logits) for logits in evidence.logits], evidence.size)

    return Score(map_of, words, cosine)


def _prototype(evidence: Evidence) -> Tensor:
    return formulas.cosine_score(evidence.logits, evidence.size)


def _msp(evidence: Evidence) -> Tensor:
    return 1 - evidence.confidence


def _standardized_max_logit(evidence: Evidence) -> Tensor:
    statistics = evidence.statistics
    assert statistics is not None
    maps = [formulas.standardized_max_logit(logits, statistics) for logits in evidence.logits]
    return mean_over_scales(maps, evidence.size)


def _mc_dropout(evidence: Evidence) -> Tensor:
    maps = [formulas.mutual_information(samples) for samples in evidence.samples]
    return mean_over_scales(maps, evidence.size)


def _msp_crf(evidence: Evidence) -> Tensor:
    assert evidence.picture is not None
    return formulas.msp_score(
        dense_crf.smoothed_probabilities(evidence.probabilities, evidence.picture)
    )


SCORES = {
    "prototype": Score(_prototype, "distance from the nearest prototype", cosine=True),
    "msp": Score(_msp, "1 - largest softmax probability"),
    "maxlogit": _of_logits(formulas.max_logit, "minus the largest logit"),
    "entropy": _of_logits(formulas.entropy, "entropy of the softmax"),
    "energy": _of_logits(formulas.energy, "minus the log-sum-exp of the logits"),
    "standardized_maxlogit": Score(
        _standardized_max_logit,
        "largest logit, standardized by class",
        statistics=True,
    ),
    "prototype_margin": _of_logits(
        formulas.prototype_margin, "how near the second nearest prototype is as well", cosine=True
    ),
    "mc_dropout": Score(_mc_dropout, "disagreement of passes with dropout", samples=True),
    "msp_crf": Score(_msp_crf, "msp smoothed by a dense CRF", crf=True),
}


def resolve(names: Sequence[str], classifier: str) -> tuple[str, ...]:
    """Names of scores in their order, each once, with "all" replaced by those that can be had."""
    possible = [name for name, score in SCORES.items() if not score.missing(classifier)]
    groups = (possible if name == ALL else [name] for name in names)
    return tuple(dict.fromkeys(name for group in groups for name in group))
