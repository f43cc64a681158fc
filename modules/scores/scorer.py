"""From an image to the maps of all wanted scores, in one forward pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modules.inference.network import Inference
from modules.scores.evidence import Evidence
from modules.scores.registry import DROPOUT_PASSES, SCORES
from modules.scores.statistics import MaxLogitStatistics


class Scorer:
    """Looks at images once each and gives every score's map.

    Args:
        inference: the network.
        names: of `SCORES`.
        statistics: needed by the scores whose `statistics` is set.
        passes: stochastic passes, for the scores that need samples.
        seed: of the stochastic passes, in 0..2**32 - 1; an image's draws depend on it and on the
            image's index alone, whatever the number of processes.
    """

    def __init__(
        self,
        inference: Inference,
        names: Sequence[str],
        statistics: MaxLogitStatistics | None = None,
        *,
        passes: int = DROPOUT_PASSES,
        seed: int = 0,
    ) -> None:
        self.inference, self.names = inference, names
        self.statistics = statistics and statistics.on(inference.device)
        self.passes = passes if any(SCORES[name].samples for name in names) else 0
        self.seed = seed

    @torch.inference_mode()
    def look(
        self, images: Sequence[Tensor], size: Sequence[int], picture: Tensor, index: int
    ) -> Evidence:
        """One forward pass.

        Args:
            images: (3, h, w) uint8 RGB, one a scale.
            size: (H, W) of the maps.
            picture: (H, W, 3) uint8.
            index: of the image in its split, below 2**31.
        """
        if not self.passes:
            logits = self.inference.logits(images)
            return Evidence(logits, size, picture, statistics=self.statistics)
        seed = (self.seed << 31) + index
        logits, samples = self.inference.logits_and_samples(images, self.passes, seed)
        return Evidence(logits, size, picture, samples, self.statistics)

    @torch.inference_mode()
    def parts(self, evidence: Evidence) -> dict[str, list[Tensor]]:
        """{name: what `maps_from` computes its map from}, most of it at the logits' resolution."""
        return {
            name: [part.contiguous() for part in SCORES[name].parts_of(evidence)]
            for name in self.names
        }

    @torch.inference_mode()
    def maps_from(
        self, parts: Mapping[str, Sequence[Tensor]], size: Sequence[int]
    ) -> dict[str, Tensor]:
        """{name: (H, W), higher = more anomalous}; the same bits for the same parts."""
        device = self.inference.device
        return {
            name: SCORES[name].from_parts([part.to(device) for part in own], size)[0]
            for name, own in parts.items()
        }

    def maps(self, evidence: Evidence) -> dict[str, Tensor]:
        """{name: (H, W), higher = more anomalous}, in the order of the names."""
        return self.maps_from(self.parts(evidence), evidence.size)
