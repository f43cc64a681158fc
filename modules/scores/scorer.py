"""Computes the maps of several scores from one forward pass per image."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modules.inference.network import Inference
from modules.scores.network_output import NetworkOutput, State
from modules.scores.registry import DROPOUT_PASSES, SCORES


class Scorer:
    """Runs the network once per image and computes every score's map.

    Args:
        inference: the network.
        names: names in `SCORES`.
        states: {score: fitted state} of the fitted scores among them.
        passes: number of stochastic passes, for the scores that need samples.
        seed: seed of the stochastic passes, in 0..2**32 - 1; an image's draws depend only on it
            and on the image's index.
    """

    def __init__(
        self,
        inference: Inference,
        names: Sequence[str],
        states: Mapping[str, State] | None = None,
        *,
        passes: int = DROPOUT_PASSES,
        seed: int = 0,
    ) -> None:
        self.inference, self.names = inference, names
        self.states = {  # on the device of the features, so that no image waits for a copy
            name: {key: value.to(inference.device) for key, value in state.items()}
            for name, state in (states or {}).items()
        }
        self.passes = passes if any(SCORES[name].samples for name in names) else 0
        self.seed = seed

    @torch.inference_mode()
    def forward(
        self,
        images: Sequence[Tensor],
        size: Sequence[int],
        picture: Tensor | None = None,
        index: int = 0,
    ) -> NetworkOutput:
        """One forward pass.

        Args:
            images: (3, h, w) uint8 RGB, one per scale.
            size: (H, W) of the maps.
            picture: (H, W, 3) uint8, for scores that use colours.
            index: of the image in its split, below 2**31, for stochastic passes.
        """
        features = self.inference.features(images)
        logits = self.inference.classify(features)
        samples: Sequence[Tensor] = ()
        if self.passes:
            samples = self.inference.samples(features, self.passes, (self.seed << 31) + index)
        return NetworkOutput(logits, size, features, picture, samples, self.states)

    @torch.inference_mode()
    def parts(self, output: NetworkOutput) -> dict[str, list[Tensor]]:
        """{name: parts from which `maps_from` computes the map}, mostly low-resolution."""
        return {
            name: [part.contiguous() for part in SCORES[name].map.parts_of(output)]
            for name in self.names
        }

    @torch.inference_mode()
    def maps_from(
        self, parts: Mapping[str, Sequence[Tensor]], size: Sequence[int]
    ) -> dict[str, Tensor]:
        """{name: (H, W), higher = more anomalous}; the same parts give the same bits."""
        device = self.inference.device
        return {
            name: SCORES[name].map.from_parts([part.to(device) for part in own], size)[0]
            for name, own in parts.items()
        }

    def maps(self, output: NetworkOutput) -> dict[str, Tensor]:
        """{name: (H, W), higher = more anomalous}, in the order of the names."""
        return self.maps_from(self.parts(output), output.size)
