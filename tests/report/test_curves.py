"""What TensorBoard shows of a test: the figures of results.json, and the curves behind them."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from metrics import AnomalyEvaluation, PooledCounts
from metrics.report import markdown_table, write_results
from report.curves import (
    log_anomaly_metrics,
    log_prototypes,
    precision_recall_figure,
    prototype_cosines,
    prototypes_figure,
    roc_figure,
    score_histogram_figure,
)
from utils.figures import render
from utils.logger import Logger


def evaluated(predicted=True, anomalous=True):
    """(evaluation, results) of four small images."""
    evaluation = AnomalyEvaluation(3, 3, min_predicted_size=2, min_true_size=1)
    rng = np.random.default_rng(0)
    for index in range(4):
        label = rng.integers(0, 4 if anomalous else 3, (30, 40)).astype(np.uint8)
        scores = (rng.normal(size=label.shape) + 2 * (label == 3)).astype(np.float32)
        prediction = rng.integers(0, 3, label.shape) if predicted else None
        evaluation.update(index, f"image {index}", scores, prediction, label)
    return evaluation, evaluation.results()


def log(folder, evaluation, results, tag="test"):
    with Logger(folder) as logger:
        log_anomaly_metrics(logger, tag, results, evaluation.pooled, 7)
    guidance = {"scalars": 0, "tensors": 0, "images": 0, "histograms": 0}
    return EventAccumulator(str(folder), size_guidance=guidance).Reload()


@pytest.mark.parametrize("predicted", [True, False])
def test_results_json_the_table_and_tensorboard_agree(tmp_path, predicted):
    evaluation, results = evaluated(predicted)
    write_results(tmp_path / "results.json", results)
    written = json.loads((tmp_path / "results.json").read_text())
    events = log(tmp_path / "events", evaluation, results, "test msp")
    assert events.Tags()["scalars"] == []  # single points are for the table
    (event,) = events.Tensors("test msp/table/text_summary")
    assert make_ndarray(event.tensor_proto).item().decode() == markdown_table(written)


def test_the_pr_tab_has_the_points_of_the_curve(tmp_path):
    evaluation, results = evaluated()
    (event,) = log(tmp_path, evaluation, results).Tensors("test/pooled")
    true, false, true_negative, false_negative, precision, recall = make_ndarray(event.tensor_proto)
    assert 100 < len(true) <= 127
    assert (np.diff(recall) <= 0).all()  # from the lowest threshold up
    np.testing.assert_allclose(precision, true / (true + false), rtol=1e-6)
    np.testing.assert_allclose(recall, true / (true + false_negative), rtol=1e-6)
    assert true[0] == evaluation.pooled.anomalous
    assert false[0] == evaluation.pooled.normal
    assert (false + true_negative == evaluation.pooled.normal).all()
    area = -np.sum(np.diff(np.append(recall, 0)) * precision)
    assert 100 * area == pytest.approx(results["protocols"]["pooled"]["figures"]["AUPR"], abs=0.5)


def test_score_histograms_count_every_pixel_of_their_kind(tmp_path):
    evaluation, results = evaluated()
    events = log(tmp_path, evaluation, results)
    histogram = evaluation.pooled.histogram()
    for name, counts in (("normal", histogram.normal), ("anomalous", histogram.anomalous)):
        (event,) = events.Histograms(f"test/scores_{name}")
        shown = event.histogram_value
        assert shown.num == counts.sum() == getattr(evaluation.pooled, name)
        assert list(shown.bucket)[-64:] == counts.tolist()
        assert list(shown.bucket_limit)[-64:] == histogram.edges[1:].tolist()


def test_curves_and_histograms_are_drawn(tmp_path):
    tags = log(tmp_path, *evaluated()).Tags()["images"]
    assert sorted(tags) == ["test/precision_recall", "test/roc", "test/scores"]


def test_without_anomalies_there_is_no_curve(tmp_path):
    events = log(tmp_path, *evaluated(anomalous=False))
    assert events.Tags()["images"] == []
    (event,) = events.Tensors("test/table/text_summary")
    assert "| segmentation | Mean IoU |" in make_ndarray(event.tensor_proto).item().decode()


def test_curves_have_their_points_and_metrics():
    rng = np.random.default_rng(0)
    anomalous, normal = rng.normal(1, 1, 500), rng.normal(0, 1, 4500)
    counts = PooledCounts()
    counts.update(anomalous, normal)
    (left,) = precision_recall_figure(counts.curve(), counts.metrics()).axes
    (right,) = roc_figure(counts.curve(), counts.metrics()).axes
    truth = np.arange(5000) < 500
    aupr = average_precision_score(truth, np.r_[anomalous, normal])
    assert left.get_title() == f"All pixels: AUPR {100 * aupr:.2f} %"
    assert [text.get_text() for text in left.get_legend().get_texts()][1] == "chance 10.00 %"
    recall, precision = left.lines[0].get_data()
    assert (recall[0], recall[-1], precision[-1]) == (0, 1, 0.1)
    assert right.lines[0].get_xdata()[[0, -1]].tolist() == [0, 1]
    marker = right.lines[2]
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (counts.metrics().fpr95, 0.95)


def test_score_histogram_figure_has_shares_of_each_kind():
    counts = PooledCounts()
    counts.update(np.array([3.0, 4.0, 4.0, 4.0]), np.array([0.0, 1.0]))
    figure = score_histogram_figure(counts.histogram(buckets=4))
    axes = figure.axes[0]
    assert (axes.get_xlim(), axes.get_yscale()) == ((0, 4), "log")
    shares = [patch.get_data().values.tolist() for patch in axes.patches]
    assert shares[0] == [50, 50, 0, 0]
    assert shares[2] == [0, 0, 0, 100]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "normal, 2 pixels",
        "anomalous, 4 pixels",
    ]


def test_prototype_cosines_are_those_of_scikit_learn(tmp_path):
    generator = torch.Generator().manual_seed(0)
    prototypes = 7 * torch.randn(5, 16, 1, 1, generator=generator)
    expected = cosine_similarity(prototypes.flatten(1).double().numpy())
    cosines = prototype_cosines(prototypes)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    names = ["road", "car", "sky", "wall", "pole"]
    figure = prototypes_figure(cosines.numpy(), names)
    assert [text.get_text() for text in figure.axes[0].texts][:2] == [
        "1.00",
        f"{expected[0, 1]:.2f}",
    ]
    with Logger(tmp_path) as logger:
        log_prototypes(logger, "prototypes", prototypes, names, 3)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["prototypes/cosines"]


@pytest.mark.parametrize("names", [["a class of a long name"] * 13, ["road", "car"]])
def test_no_label_is_clipped(names):
    counts = PooledCounts()
    counts.update(np.array([3.0, 4.0, 1.0]), np.array([0.0, 1.0]))
    for figure in (
        precision_recall_figure(counts.curve(), counts.metrics()),
        roc_figure(counts.curve(), counts.metrics()),
        score_histogram_figure(counts.histogram()),
        prototypes_figure(np.eye(len(names)), names),
    ):
        picture = render(figure)
        edges = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
        assert min(edge.min() for edge in edges) == 255
