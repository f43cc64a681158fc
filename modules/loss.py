"""The segmentation loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross-entropy, mean over the pixels that are not ignored; 0 where all of them are.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W) uint8, class indices.
        ignore_index: the label of pixels that are left out.
    """
    logits, classes, known = logits.float(), labels.long(), labels != ignore_index
    if logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        # CUDA's cross-entropy of maps adds up in no fixed order.
        chosen = logits.log_softmax(dim=1).gather(1, (classes * known)[:, None])
        total = -torch.where(known, chosen.squeeze(1), 0).sum()
    else:
        total = F.cross_entropy(logits, classes, ignore_index=ignore_index, reduction="sum")
    return total / known.sum().clamp_min(1)
