"""The segmentation loss."""

from torch import Tensor
from torch.nn import functional as F


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross-entropy, mean over the pixels that are not ignored; 0 where all of them are.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W) uint8, class indices.
        ignore_index: the label of pixels that are left out.
    """
    total = F.cross_entropy(
        logits.float(), labels.long(), ignore_index=ignore_index, reduction="sum"
    )
    return total / (labels != ignore_index).sum().clamp_min(1)
