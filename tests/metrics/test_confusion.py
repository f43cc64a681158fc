"""Confusion matrix, IoU and accuracy against scikit-learn and hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from metrics import ConfusionMatrix, open_mean_iou, open_set_counts, segmentation_scores


def random_case(seed=0, classes=13, shape=(3, 40, 50)):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, shape)
    prediction = np.where(rng.random(shape) < 0.6, label, rng.integers(0, classes, shape))
    label[:, :4] = 255
    label[:, 4:8] = 13
    return torch.from_numpy(prediction), torch.from_numpy(label.astype(np.uint8))


def counted(prediction, label, classes=13):
    confusion = ConfusionMatrix(classes)
    for image, truth in zip(prediction, label, strict=True):
        confusion.update(image, truth)
    return confusion.matrix


def test_counts_and_scores_are_those_of_scikit_learn():
    prediction, label = random_case()
    matrix = counted(prediction, label)
    inside = label < 13
    truth, called = label[inside].numpy(), prediction[inside].numpy()
    np.testing.assert_array_equal(matrix, confusion_matrix(truth, called, labels=range(13)))
    assert matrix.sum() == inside.sum()
    scores = segmentation_scores(matrix)
    iou = jaccard_score(truth, called, average=None)
    assert scores["Overall Acc"] == pytest.approx(accuracy_score(truth, called))
    assert scores["Mean Acc"] == pytest.approx(balanced_accuracy_score(truth, called))
    assert scores["Mean IoU"] == pytest.approx(iou.mean())
    assert scores["FreqW Acc"] == pytest.approx(jaccard_score(truth, called, average="weighted"))
    assert scores["Class IoU"] == pytest.approx(dict(enumerate(iou)))
    assert scores["Classes present"] == 13


def test_a_class_absent_from_the_ground_truth_is_not_in_the_mean():
    matrix = torch.tensor([[3, 1, 0], [0, 0, 0], [0, 2, 4]])
    scores = segmentation_scores(matrix)
    assert scores["Classes present"] == 2
    assert scores["Mean IoU"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert scores["Mean Acc"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert scores["Overall Acc"] == pytest.approx(7 / 10)
    assert scores["FreqW Acc"] == pytest.approx(0.4 * 3 / 4 + 0.6 * 4 / 6)
    assert math.isnan(scores["Class IoU"][1])


def test_an_empty_matrix_has_no_scores():
    scores = segmentation_scores(ConfusionMatrix(3).matrix)
    assert math.isnan(scores["Mean IoU"])
    assert math.isnan(scores["Overall Acc"])
    assert scores["Classes present"] == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    prediction, label = random_case(shape=(1, 20, 30))
    expected = counted(prediction, label)
    assert torch.equal(counted(prediction.to(dtype), label.to(dtype)), expected)


def test_open_set_by_hand():
    """2 classes: of 4 pixels of class 0 one is rejected; one of 3 anomalies is called class 1."""
    label = torch.tensor([0, 0, 0, 0, 1, 1, 13, 40, 13, 255], dtype=torch.uint8)
    prediction = torch.tensor([0, 0, 1, 0, 1, 1, 1, 0, 0, 1])
    rejected = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 1, 0], dtype=torch.bool)
    matrix = open_set_counts(prediction, label, rejected, 2, 13)
    assert matrix.tolist() == [[2, 1, 1], [0, 2, 0], [0, 1, 2]]
    # Class 0: 2 of 4 pixels, nothing called 0 wrongly. Class 1: 2, and 2 false ones.
    assert open_mean_iou(matrix) == pytest.approx((2 / 4 + 2 / 4) / 2)


def test_a_perfect_detector_makes_open_equal_closed():
    prediction, label = random_case(3)
    is_anomaly = (label >= 13) & (label < 255)
    matrix = open_set_counts(prediction, label, is_anomaly, 13, 13)
    closed = segmentation_scores(counted(prediction, label))["Mean IoU"]
    assert open_mean_iou(matrix) == pytest.approx(closed)
    blind = open_set_counts(prediction, label, torch.zeros_like(is_anomaly), 13, 13)
    assert open_mean_iou(blind) < closed


def test_a_class_that_is_predicted_and_absent():
    """Left out of the published mean; 0 in that of mmsegmentation and torchmetrics."""
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    prediction = torch.tensor([0, 0, 0, 2, 1, 1, 1, 1])
    confusion = ConfusionMatrix(4)  # class 3 is neither present nor predicted
    confusion.update(prediction, truth)
    scores = segmentation_scores(confusion.matrix)
    assert scores["Mean IoU"] == pytest.approx((3 / 4 + 1) / 2)
    assert scores["Mean IoU, absent classes too"] == pytest.approx((3 / 4 + 1 + 0) / 3)
    theirs = jaccard_score(truth, prediction, labels=[0, 1, 2], average="macro")
    assert scores["Mean IoU, absent classes too"] == pytest.approx(theirs)
    counts = open_set_counts(prediction, truth, torch.zeros(8, dtype=torch.bool), 4, 4)
    assert open_mean_iou(counts) == scores["Mean IoU"]
    assert open_mean_iou(counts, absent_classes_too=True) == pytest.approx((3 / 4 + 1 + 0) / 3)
