"""A trained network prepared for evaluation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.inference.folding import fold_norms
from modules.inference.winograd import use_winograd
from modules.normalisation import normalised
from modules.pyramid import DROPOUT
from modules.segmentation import SegmentationModel


def dropout_masks(passes: int, channels: int, rate: float, generator: torch.Generator) -> Tensor:
    """(passes, channels, 1, 1) factors of independent Dropout2d draws: 0 or 1 / (1 - rate).

    Drawn on the CPU, so that a seed gives the same factors on every device.
    """
    kept = torch.rand(passes, channels, 1, 1, generator=generator) >= rate
    return kept / (1 - rate)


class Inference:
    """Images at several scales -> features -> logits, without gradients.

    Images are bytes and are normalised on the network's device, which saves three quarters of the
    transfer.

    Args:
        model: not changed, except that `plain` puts it into evaluation mode.
        device: the device of the model and of the logits.
        precision: "fp32" or "bf16" (all but the classifier; logits are always float32).
        plain: run the model itself in float32 instead of a copy with folded norms.
    """

    def __init__(
        self, model: SegmentationModel, device: torch.device, precision: str, *, plain: bool = False
    ) -> None:
        self.device = device
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # On a CPU, almost all convolutions are faster in channels-last layout.
        self.layout = torch.contiguous_format if plain else torch.channels_last
        self.model = model.eval() if plain else self._prepared(model)

    def _prepared(self, model: SegmentationModel) -> SegmentationModel:
        """A copy with folded norms, in `self.dtype`."""
        folded = fold_norms(model)
        if self.device.type == "cpu":  # on GPUs the library chooses
            use_winograd(folded, self.dtype)
        folded.to(self.dtype).to(memory_format=self.layout).cls.float()
        return folded

    def _input(self, image: Tensor) -> Tensor:
        batch = normalised(image.to(self.device, non_blocking=True)[None])
        return batch.to(self.dtype, memory_format=self.layout)

    @torch.inference_mode()
    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """(3, H, W) uint8 images, one per scale -> (1, D, h, w) inputs of the classifier."""
        return [self.model.features(self._input(image)) for image in images]

    @torch.inference_mode()
    def classify(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(N, D, h, w) features, one per scale -> (N, C, h, w) float32 logits, one per scale.

        Contiguous, because the next operations at full size go class by class.
        """
        return [self.model.cls(one).contiguous() for one in features]

    def logits(self, images: Sequence[Tensor]) -> list[Tensor]:
        """(3, H, W) uint8 images, one per scale -> (1, C, h, w) float32 logits, one per scale."""
        return self.classify(self.features(images))

    @torch.inference_mode()
    def samples(self, features: Sequence[Tensor], passes: int, seed: int) -> list[Tensor]:
        """(1, D, h, w) features -> (passes, C, h, w) float32 logits of stochastic passes.

        A stochastic pass has dropout on and norms in evaluation mode. Dropout is just before the
        classifier, so all passes share the features of one forward pass.
        """
        generator = torch.Generator().manual_seed(seed)
        samples = []
        for one in features:
            masks = dropout_masks(passes, one.shape[1], DROPOUT, generator)
            masks = masks.to(self.device, non_blocking=True)
            samples.append(torch.cat(self.classify([one * mask for mask in masks])).contiguous())
        return samples
