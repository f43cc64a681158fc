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
        parts_of: evidence of one image -> what its map is computed from: (1, h_s, w_s), one a
            scale. Where the map needs more than that, the map itself: (1, H, W).
        words: what it is, for the command line's help.
        from_parts: parts and the size (H, W) -> (1, H, W), higher = more anomalous.
        cosine: it needs the cosine classifier.
        samples: it needs stochastic passes.
        statistics: it needs a pass over the training images.
        crf: it needs the optional package of `dense_crf`.
    """

    parts_of: Callable[[Evidence], Sequence[Tensor]]
    words: str
    from_parts: Callable[[Sequence[Tensor], Sequence[int]], Tensor] = mean_over_scales
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

    def map_of(self, evidence: Evidence) -> Tensor:
        """(1, H, W), higher = more anomalous."""
        return self.from_parts(self.parts_of(evidence), evidence.size)


def _of_logits(formula: Callable[[Tensor], Tensor], words: str, cosine: bool = False) -> Score:
    """A score of each scale's logits, upsampled, mean over scales."""

    def parts_of(evidence: Evidence) -> Sequence[Tensor]:
        return [formula(logits) for logits in evidence.logits]

    return Score(parts_of, words, cosine=cosine)


def _whole(parts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The map itself."""
    return parts[0]


def _prototype(evidence: Evidence) -> Sequence[Tensor]:
    return [formulas.nearness(logits) for logits in evidence.logits]


def _distance(parts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    return 1 - mean_over_scales(parts, size)


def _msp(evidence: Evidence) -> Sequence[Tensor]:
    return [1 - evidence.confidence]


def _standardized_max_logit(evidence: Evidence) -> Sequence[Tensor]:
    statistics = evidence.statistics
    assert statistics is not None
    return [formulas.standardized_max_logit(logits, statistics) for logits in evidence.logits]


def _mc_dropout(evidence: Evidence) -> Sequence[Tensor]:
    return [formulas.mutual_information(samples) for samples in evidence.samples]


def _msp_crf(evidence: Evidence) -> Sequence[Tensor]:
    assert evidence.picture is not None
    smoothed = dense_crf.smoothed_probabilities(evidence.probabilities, evidence.picture)
    return [formulas.msp_score(smoothed)]


SCORES = {
    "prototype": Score(_prototype, "distance from the nearest prototype", _distance, cosine=True),
    "msp": Score(_msp, "1 - largest softmax probability", _whole),
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
    "msp_crf": Score(_msp_crf, "msp smoothed by a dense CRF", _whole, crf=True),
}


def resolve(names: Sequence[str], classifier: str) -> tuple[str, ...]:
    """Names of scores in their order, each once, with "all" replaced by those that can be had."""
    possible = [name for name, score in SCORES.items() if not score.missing(classifier)]
    groups = (possible if name == ALL else [name] for name in names)
    return tuple(dict.fromkeys(name for group in groups for name in group))
