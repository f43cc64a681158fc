"""Probabilities smoothed by a dense conditional random field, from an optional package."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "pydensecrf"
MEAN_FIELD_STEPS = 10
# Standard deviations in pixels and in grey levels, and weights, as in the package's example.
SMOOTHNESS = {"sxy": 3, "compat": 3}
APPEARANCE = {"sxy": 80, "srgb": 13, "compat": 10}
SMALLEST_PROBABILITY = 1e-10


def is_installed() -> bool:
    """Whether the package is installed; does not import it."""
    return importlib.util.find_spec(PACKAGE) is not None


def smoothed_probabilities(probabilities: Tensor, picture: Tensor) -> Tensor:
    """Marginals Q of a fully connected CRF after ten mean-field steps.

    Unaries are -log p. Pairs of pixels of different classes cost
    3 exp(-|x - x'|^2 / (2 * 3^2)) + 10 exp(-|x - x'|^2 / (2 * 80^2) - |rgb - rgb'|^2 / (2 * 13^2)).
    Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
    Potentials", NIPS 2011.

    Args:
        probabilities: (1, C, H, W).
        picture: (H, W, 3) uint8.

    Returns:
        (1, C, H, W) float32, sums to 1 over C; computed on a CPU.
    """
    import torch
    from pydensecrf import densecrf

    _, classes, height, width = probabilities.shape
    unary = -probabilities[0].float().clamp_min(SMALLEST_PROBABILITY).log().cpu().numpy()
    field = densecrf.DenseCRF2D(width, height, classes)
    field.setUnaryEnergy(np.ascontiguousarray(unary.reshape(classes, -1)))
    field.addPairwiseGaussian(**SMOOTHNESS)
    colours = np.ascontiguousarray(picture.cpu().numpy())
    field.addPairwiseBilateral(rgbim=colours, **APPEARANCE)
    marginals = np.array(field.inference(MEAN_FIELD_STEPS), dtype=np.float32)
    return torch.from_numpy(marginals).view_as(probabilities).to(probabilities.device)
