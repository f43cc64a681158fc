"""Confusion matrix, accuracy and intersection over union, closed and open set."""

from typing import Any

import torch

from utils.distributed import reduce_over_processes


class ConfusionMatrix:
    """Pixels counted by (true class, predicted class).

    Args:
        num_classes: C. Pixels whose true class is not in 0..C-1 (ignored ones, anomalies) are not
            counted.

    >>> confusion = ConfusionMatrix(2)
    >>> confusion.update(prediction=torch.tensor([0, 1, 1]), label=torch.tensor([0, 0, 255]))
    >>> confusion.matrix
    tensor([[1, 1],
            [0, 0]])
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Count one image or batch, on any device.

        Args:
            prediction: integers in 0..C-1, any shape.
            label: integers, the shape of `prediction`.
        """
        size, rows = self.num_classes, label.int()
        is_counted = (rows >= 0) & (rows < size)
        # The other pixels go to an extra bin at the end.
        pairs = torch.where(is_counted, rows * size + prediction.int(), size**2)
        counts = torch.bincount(pairs.flatten(), minlength=size**2 + 1)
        self.matrix += counts[:-1].reshape(size, size).cpu()

    def all_reduce(self) -> None:
        """Adds up the matrices of all processes. Every process calls it, once."""
        self.matrix = reduce_over_processes(self.matrix)


def segmentation_scores(matrix: torch.Tensor) -> dict[str, Any]:
    """Accuracies and IoUs, as fractions, of a (C, C) matrix: rows truth, columns prediction.

    A class is present if its row is not empty. "Mean Acc" and "Mean IoU" are means over the
    "Classes present" classes; "Class IoU", by index, is NaN for the others. "Mean IoU, absent
    classes too" is the mean over the classes that are present or predicted; absent ones have 0.
    "FreqW Acc" is the mean IoU weighted by the classes' true pixels. All are NaN for an empty
    matrix.

    >>> scores = segmentation_scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    >>> scores["Mean IoU"], scores["Classes present"]
    (0.775, 2)
    >>> scores = segmentation_scores(torch.tensor([[3, 0, 1], [0, 4, 0], [0, 0, 0]]))
    >>> scores["Mean IoU"], round(scores["Mean IoU, absent classes too"], 4)
    (0.875, 0.5833)
    """
    counts = matrix.double().cpu()
    truth, correct = counts.sum(1), counts.diagonal()
    present, union = truth > 0, truth + counts.sum(0) - correct
    iou = torch.where(present, correct / union, torch.nan)
    return {
        "Overall Acc": float(correct.sum() / truth.sum()),
        "Mean Acc": float((correct / truth)[present].mean()),
        "FreqW Acc": float((truth * iou)[present].sum() / truth.sum()),
        "Mean IoU": float(iou[present].mean()),
        "Mean IoU, absent classes too": float((correct / union)[union > 0].mean()),
        "Classes present": int(present.sum()),
        "Class IoU": dict(enumerate(iou.tolist())),
    }


def open_set_counts(
    prediction: torch.Tensor,
    label: torch.Tensor,
    is_rejected: torch.Tensor,
    num_classes: int,
    anomaly_index: int,
    ignore_index: int = 255,
) -> torch.Tensor:
    """The (C+1, C+1) int64 matrix whose last row is anomalies, last column rejected pixels.

    Args:
        prediction: integers in 0..C-1, any shape.
        label: integers from 0 of that shape; anomalies are anomaly_index <= label < ignore_index.
        is_rejected: bool of that shape, True where the pixel is called an anomaly.

    >>> prediction, label = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])
    >>> open_set_counts(prediction, label, torch.tensor([False, True, False]), 2, 2)
    tensor([[1, 0, 0],
            [0, 0, 1],
            [0, 1, 0]])
    """
    size = num_classes + 1
    fits = num_classes <= torch.iinfo(prediction.dtype).max
    columns = (prediction if fits else prediction.int()).masked_fill(is_rejected, num_classes)
    # Counted by label and then merged: several times as fast.
    labels = max(ignore_index, int(label.max())) + 1 if label.numel() else ignore_index + 1
    pairs = (label.int() * size).add_(columns)
    counts = torch.bincount(pairs.flatten(), minlength=labels * size).reshape(labels, size)
    anomalies = counts[anomaly_index:ignore_index].sum(0, keepdim=True)
    return torch.cat([counts[:num_classes], anomalies])


def open_mean_iou(matrix: torch.Tensor, absent_classes_too: bool = False) -> float:
    """open-mIoU of a (C+1, C+1) matrix from `open_set_counts`; NaN without known pixels.

    IoU of class k = TP / (TP + FP + FN), where FP includes anomalies predicted as k, and FN
    rejected pixels of k; mean over the known classes that are present. With a perfect anomaly
    detector it equals the closed-set mean IoU.

    Source: Grcic, Bevandic and Segvic, DenseHybrid, ECCV 2022, section on open-set metrics.

    Args:
        absent_classes_too: also count IoU 0 for classes that are predicted but absent, as
            DenseHybrid's code does.

    >>> open_mean_iou(torch.tensor([[3, 0, 1], [0, 4, 0], [1, 0, 7]]))
    0.8
    """
    counts = matrix.double().cpu()
    truth, called, correct = counts.sum(1)[:-1], counts.sum(0)[:-1], counts.diagonal()[:-1]
    union = truth + called - correct
    counted = (union if absent_classes_too else truth) > 0
    return float((correct / union)[counted].mean())
