"""Scores by hand on tiny logits."""

import math

import pytest
import torch
from torch.nn import functional as F

from modules.classifier import CLASSIFIERS, Classifier, CosineClassifier
from modules.scores import cosine_score, mean_probabilities, msp_score


def test_cosine_score_takes_the_maximum_before_upsampling():
    # One row of two pixels with different winners: 10 and 6.
    logits = torch.tensor([[[[10.0, -4.0]], [[2.0, 6.0]]]])
    score = cosine_score([logits], (1, 4))
    nearest = [1.0, 0.75 * 1.0 + 0.25 * 0.8, 0.25 * 1.0 + 0.75 * 0.8, 0.8]  # (v + 10) / 20
    torch.testing.assert_close(score, 1 - torch.tensor([[nearest]]))


def test_cosine_score_is_the_mean_over_scales_within_0_and_1():
    near, far = torch.full((1, 2, 1, 1), 10.0), torch.full((1, 2, 2, 3), -10.0)
    torch.testing.assert_close(cosine_score([near], (2, 2)), torch.zeros(1, 2, 2))
    torch.testing.assert_close(cosine_score([near, far], (2, 2)), torch.full((1, 2, 2), 0.5))


def test_probabilities_are_averaged_after_the_softmax_of_the_upsampled():
    first = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])
    second = torch.tensor([[[[math.log(3.0)]], [[0.0]]]])
    probabilities = mean_probabilities([first, second], (1, 4))
    winner = [1 / (1 + math.exp(-x)) for x in (0.0, 0.5, 1.5, 2.0)]
    expected = torch.tensor([(p + 0.75) / 2 for p in winner])
    torch.testing.assert_close(probabilities[0, 0, 0], expected)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 1, 4))
    torch.testing.assert_close(
        msp_score(probabilities)[0, 0], 1 - torch.maximum(expected, 1 - expected)
    )


def test_upsampling_inputs_are_left_alone():
    logits = torch.randn(1, 3, 2, 2)
    before = logits.clone()
    mean_probabilities([logits, logits], (2, 2))
    torch.testing.assert_close(logits, before, rtol=0, atol=0)


def test_cosine_classifier_is_ten_times_the_cosine():
    torch.manual_seed(0)
    classifier = CosineClassifier(8, 5)
    features = torch.randn(2, 8, 3, 4)
    expected = 10 * F.cosine_similarity(features[:, None], classifier.weight[None], dim=2)
    torch.testing.assert_close(classifier(features), expected)
    assert torch.equal(classifier(torch.zeros(1, 8, 1, 1)), torch.zeros(1, 5, 1, 1))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_logits_are_float32_under_autocast(kind):
    torch.manual_seed(0)
    classifier = Classifier(kind, 8, 5)
    features = torch.randn(2, 8, 3, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = [classifier(features), classifier.deep_supervision(features)]
    expected = [classifier(features.float()), classifier.deep_supervision(features.float())]
    assert [logits.dtype for logits in found] == [torch.float32] * 2
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
