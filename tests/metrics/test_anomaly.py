"""Per-image metrics against scikit-learn and the published FPR95 rule, written out literally."""

import warnings
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from metrics import InvalidScores, anomaly, image_anomaly_metrics
from utils.errors import PansError


def published_fpr95(scores, is_anomaly):
    """Candidates from the first full recall down, (recall 1, FP 0) last; first least distance."""
    order = np.argsort(scores)[::-1]
    scores, is_anomaly = scores[order], is_anomaly[order]
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), scores.size - 1)
    hits, false = np.cumsum(is_anomaly)[ends], np.cumsum(~is_anomaly)[ends]
    full = int(np.argmax(hits == hits[-1]))
    recall = np.append(hits[full::-1] / hits[-1], 1.0)
    false = np.append(false[full::-1], 0)
    return false[np.argmin(np.abs(recall - 0.95))] / (~is_anomaly).sum()


def assert_as_reference(scores, is_anomaly):
    metrics = image_anomaly_metrics(scores, is_anomaly)
    scores, is_anomaly = scores.ravel(), is_anomaly.ravel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scikit-learn adds up huge scores
        auroc = roc_auc_score(is_anomaly, scores)
        aupr = average_precision_score(is_anomaly, scores)
    assert metrics.auroc == pytest.approx(auroc, abs=1e-9)
    assert metrics.aupr == pytest.approx(aupr, abs=1e-9)
    assert metrics.fpr95 == published_fpr95(scores, is_anomaly)


def both_kinds(size):
    return st.lists(st.booleans(), min_size=size, max_size=size).filter(
        lambda mask: 0 < sum(mask) < size
    )


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(2, 120), st.sampled_from([np.float32, np.float64]))
def test_any_scores(data, size, dtype):
    bound = float(np.finfo(dtype).max)
    number = st.one_of(
        st.integers(-4, 4).map(float),
        st.sampled_from([0.0, -0.0, 1e-45, bound, -bound]),
        st.floats(-bound, bound, width=np.dtype(dtype).itemsize * 8),
    )
    scores = np.array(data.draw(st.lists(number, min_size=size, max_size=size)), dtype)
    assert_as_reference(scores, np.array(data.draw(both_kinds(size))))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 300), st.integers(1, 60))
def test_few_levels(seed, positives, negatives, levels):
    rng = np.random.default_rng(seed)
    is_anomaly = rng.permutation(np.arange(positives + negatives) < positives)
    scores = rng.integers(0, levels, is_anomaly.size) + 2 * is_anomaly
    assert_as_reference(scores.astype(np.float32), is_anomaly)


@pytest.mark.parametrize("positives", [1, 2, 9, 10, 19, 20, 21, 30, 39, 40, 60, 100, 1000])
def test_ties_between_two_recalls(positives):
    """At 10, 30 ... positives two recalls are equally far from 0.95 but for rounding."""
    rng = np.random.default_rng(positives)
    is_anomaly = np.arange(positives + 500) < positives
    assert_as_reference(rng.normal(size=is_anomaly.size) + is_anomaly, is_anomaly)


@pytest.mark.parametrize("kind", ["random", "quantised", "skewed", "constant", "one positive"])
def test_a_million_pixels(kind):
    rng = np.random.default_rng(1)
    shape = (960, 1050)
    is_anomaly = np.zeros(shape, dtype=bool)
    is_anomaly[7, 9] = True
    if kind != "one positive":
        is_anomaly[300:400, 500:650] = True
    scores = rng.normal(size=shape) + 1.5 * is_anomaly
    scores = {
        "quantised": np.round(scores, 1),
        "skewed": np.exp(8 * scores),
        "constant": np.full(shape, 0.25),
    }.get(kind, scores)
    assert_as_reference(scores.astype(np.float32), is_anomaly)


def test_worked_by_hand():
    scores = np.array([[0.9, 0.8, 0.8], [0.4, 0.1, 0.8]])
    is_anomaly = np.array([[True, True, False], [True, False, False]])
    metrics = image_anomaly_metrics(scores, is_anomaly)
    assert metrics.auroc == pytest.approx((3 + (1 + 2 * 0.5) + 1) / 9)
    assert metrics.aupr == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)
    assert metrics.fpr95 == pytest.approx(2 / 3)


def test_equal_recall_takes_the_most_false_positives():
    """Recall 19/20 holds down to just above the lowest anomalous score, 6 normal pixels later."""
    anomalous, normal = np.r_[1.0, np.arange(10, 29)], np.r_[np.arange(3, 9), 0.5, 0.2]
    scores = np.r_[anomalous, normal]
    metrics = image_anomaly_metrics(scores, np.arange(scores.size) < 20)
    assert metrics.fpr95 == 6 / 8


def test_pixels_that_are_not_valid_count_as_neither_kind():
    rng = np.random.default_rng(0)
    scores, is_anomaly = rng.normal(size=(2, 30, 40)).astype(np.float32), rng.random(1200) < 0.3
    is_anomaly = np.stack([is_anomaly.reshape(30, 40)] * 2)
    valid = rng.random((2, 30, 40)) < 0.5
    scores[~valid] = np.nan
    assert image_anomaly_metrics(scores, is_anomaly, valid) == image_anomaly_metrics(
        scores[valid], is_anomaly[valid]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors(dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 60, generator=generator).to(dtype).requires_grad_()
    is_anomaly = torch.rand(50, 60, generator=generator) < 0.2
    metrics = image_anomaly_metrics(scores, is_anomaly, torch.ones(50, 60, dtype=torch.bool))
    assert metrics == image_anomaly_metrics(scores.detach().double().numpy(), is_anomaly.numpy())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 99), st.integers(1, 50))
def test_the_torch_path_equals_the_numpy_path(seed, positives, negatives, levels):
    """What runs on a CUDA device, here on tensors of the CPU."""
    rng = np.random.default_rng(seed)
    kinds = [rng.integers(0, levels, size) / levels for size in (positives, negatives)]
    expected = astuple(anomaly.ranking_metrics(*kinds))
    metrics = anomaly.ranking_metrics(*map(torch.from_numpy, kinds))
    assert astuple(metrics) == pytest.approx(expected, abs=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_stay_on_their_device():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(300, 400, generator=generator)
    is_anomaly = torch.rand(300, 400, generator=generator) < 0.1
    kinds = anomaly.populations(scores.cuda(), is_anomaly)
    assert all(kind.is_cuda for kind in kinds)
    expected = astuple(image_anomaly_metrics(scores, is_anomaly))
    assert astuple(anomaly.ranking_metrics(*kinds)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_scores_are_counted(bad):
    scores = np.ones((4, 5), np.float32)
    scores[0, :3] = bad
    with pytest.raises(InvalidScores, match=r"^3 of 20 anomaly scores are NaN or infinite"):
        image_anomaly_metrics(scores, np.arange(20).reshape(4, 5) < 7)


@pytest.mark.parametrize("mask", [np.zeros((4, 5), bool), np.ones((4, 5), bool)])
def test_one_kind_of_pixel_has_no_metrics(mask):
    with pytest.raises(PansError, match="both kinds"):
        image_anomaly_metrics(np.ones((4, 5)), mask)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(4, 5\), a mask is \(5, 4\)"):
        image_anomaly_metrics(np.ones((4, 5)), np.ones((5, 4), bool))
