"""The range of each score."""

import math

from modules.classifier import COSINE_SCALE


def bounds_of(name: str, classes: int, classifier: str) -> tuple[float, float] | None:
    """The (lowest, highest) possible value of a score of `SCORES`; None if it is unbounded.

    Args:
        classes: number of classes.
        classifier: "cosine", whose logits are in [-10, 10], or another with unbounded logits.
    """
    nats = math.log(classes)
    bounds = {
        "prototype": (0.0, 1.0),
        "prototype_margin": (0.0, 1.0),
        "msp": (0.0, 1 - 1 / classes),
        "msp_crf": (0.0, 1 - 1 / classes),
        "entropy": (0.0, nats),
        "mc_dropout": (0.0, nats),
    }
    if classifier == "cosine":
        bounds["maxlogit"] = -COSINE_SCALE, COSINE_SCALE
        bounds["energy"] = -COSINE_SCALE - nats, COSINE_SCALE - nats
    return bounds.get(name)
