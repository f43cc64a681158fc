"""A trained network made ready for evaluation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.inference.folding import fold_norms
from modules.inference.winograd import use_winograd
from modules.normalisation import normalised
from modules.pyramid import DROPOUT, HEAD_CHANNELS
from modules.segmentation import SegmentationModel


def dropout_masks(passes: int, channels: int, rate: float, generator: torch.Generator) -> Tensor:
    """(passes, channels, 1, 1) factors of as many draws of Dropout2d: 0, or 1 / (1 - rate).

    Drawn on the CPU, so that a seed gives the same ones on every device.
    """
    kept = torch.rand(passes, channels, 1, 1, generator=generator) >= rate
    return kept / (1 - rate)


class Inference:
    """Images at several scales -> logits, without gradients.

    Images are bytes, normalised where the network is: a quarter of the values' bytes to move.

    Args:
        model: left as it is, but for `plain`, which puts it into evaluation mode.
        device: where the model is and the logits come out.
        precision: "fp32" or "bf16" (all but the classifier; logits are float32 in either).
        plain: run the model itself in float32, norms and all, instead of a copy with folded norms.
    """

    def __init__(
        self, model: SegmentationModel, device: torch.device, precision: str, *, plain: bool = False
    ) -> None:
        self.device = device
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # On a CPU convolutions of values pixel by pixel are the faster ones, almost all of them.
        self.layout = torch.contiguous_format if plain else torch.channels_last
        self.model = model.eval() if plain else self._prepared(model)

    def _prepared(self, model: SegmentationModel) -> SegmentationModel:
        """A copy whose convolutions do the norms' work, in `self.dtype`."""
        folded = fold_norms(model)
        if self.device.type == "cpu":  # on GPUs the library itself chooses
            use_winograd(folded, self.dtype)
        folded.to(self.dtype).to(memory_format=self.layout).cls.float()
        return folded

    def _input(self, image: Tensor) -> Tensor:
        batch = normalised(image.to(self.device, non_blocking=True)[None])
        return batch.to(self.dtype, memory_format=self.layout)

    @torch.inference_mode()
    def logits(self, images: Sequence[Tensor]) -> list[Tensor]:
        """(3, H, W) uint8 images, one a scale -> (1, C, h, w) float32 logits, one a scale.

        Contiguous: what is done with them at full size goes class by class.
        """
        return [self.model(self._input(image)).contiguous() for image in images]

    @torch.inference_mode()
    def logits_and_samples(
        self, images: Sequence[Tensor], passes: int, seed: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As `logits`, and beside them those of `passes` stochastic passes.

        A stochastic pass has dropout on and norms in evaluation mode. Dropout stands just before
        the classifier, so all passes share the features of one forward pass.

        Returns:
            (1, C, h, w) and (passes, C, h, w) float32 logits, one of each a scale.
        """
        generator = torch.Generator().manual_seed(seed)
        logits, samples = [], []
        for image in images:
            features = self.model.features(self._input(image))
            masks = dropout_masks(passes, HEAD_CHANNELS, DROPOUT, generator)
            masks = masks.to(self.device, non_blocking=True)
            stochastic = [self.model.cls(features * mask) for mask in masks]
            logits.append(self.model.cls(features).contiguous())
            samples.append(torch.cat(stochastic).contiguous())
        return logits, samples
