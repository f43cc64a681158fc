"""A trained network made ready for evaluation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.folding import fold_norms
from modules.segmentation import SegmentationModel


class Inference:
    """Images at several scales -> logits, without gradients.

    Args:
        model: left as it is, but for `plain`, which puts it into evaluation mode.
        device: where the model is and the logits come out.
        precision: "fp32" or "bf16" (autocast; logits are float32 in either).
        plain: run the model itself, norms and all, instead of a copy with folded norms.
    """

    def __init__(
        self, model: SegmentationModel, device: torch.device, precision: str, *, plain: bool = False
    ) -> None:
        self.device, self.precision = device, precision
        self.model = model.eval() if plain else fold_norms(model)

    @torch.inference_mode()
    def logits(self, images: Sequence[Tensor]) -> list[Tensor]:
        """(3, H, W) normalised images, one a scale -> (1, C, h, w) float32 logits, one a scale."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return [
                self.model(image.to(self.device, non_blocking=True)[None]).float()
                for image in images
            ]
