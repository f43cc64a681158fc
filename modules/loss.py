"""The training loss of PAnS: the prototype-distance loss (Fontanel et al., CVPRW 2021).

The logit of class c at a pixel is 10 cos(f, w_c), with the pixel's feature f and the class's
prototype w_c. Cross-entropy over these logits pulls features towards the prototype of their class
and away from all others:

    L = CE(10 cos(f, w)) + 0.4 CE(10 cos(g, v))

where g and v are the features and prototypes of deep supervision, taken from mod4.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.scores.network_output import upsample
from modules.segmentation import TrainingLogits


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross-entropy, mean over the pixels that are not ignored; 0 if all are ignored.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W) uint8, class indices.
        ignore_index: the label of ignored pixels.
    """
    logits, classes, known = logits.float(), labels.long(), labels != ignore_index
    if logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        # CUDA's cross-entropy of maps sums in no fixed order.
        chosen = logits.log_softmax(dim=1).gather(1, (classes * known)[:, None])
        total = -torch.where(known, chosen.squeeze(1), 0).sum()
    else:
        total = F.cross_entropy(logits, classes, ignore_index=ignore_index, reduction="sum")
    return total / known.sum().clamp_min(1)


def training_loss(output: TrainingLogits, labels: Tensor, deepsup: float = 0.4) -> Tensor:
    """The loss of a step, 0-d: cross-entropy of both logits, upsampled to the labels' size.

    Args:
        output: logits and those of deep supervision, both (N, C, h, w).
        labels: (N, H, W) uint8, class indices, 255 = ignore.
        deepsup: weight of deep supervision.
    """
    loss, deepsup_loss = (
        segmentation_loss(upsample(logits, labels.shape[-2:]), labels) for logits in output
    )
    return loss + deepsup * deepsup_loss
