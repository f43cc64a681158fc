"""The state of a test: every protocol's figures, and the same ones from two processes."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from metrics import (
    AnomalyEvaluation,
    InvalidScores,
    component_scores,
    image_anomaly_metrics,
    match_components,
    open_mean_iou,
    open_set_counts,
    segmentation_scores,
)

CLASSES, HEIGHT, WIDTH = 13, 48, 64
SIZES = {"min_predicted_size": 20, "min_true_size": 5}


def make_image(index):
    """(scores, prediction, label): blobs of classes, one anomaly, some ignored pixels."""
    rng = np.random.default_rng(index)
    label = np.kron(rng.integers(0, CLASSES, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.8, label, 3).astype(np.int64)
    row, column = rng.integers(0, 30, 2)
    label[row : row + 12, column : column + 15] = CLASSES
    label[:2] = 255
    scores = rng.normal(size=label.shape) + 2 * (label == CLASSES)
    scores = (scores + np.roll(scores, 1, 0) + np.roll(scores, 1, 1)).astype(np.float32)
    return scores, prediction, label


def crowded(scores):
    """Most of the scores within 1e-5 of 0.5, the others over the whole axis."""
    return np.where(scores < 1.5, 0.5 + 3e-7 * scores, np.exp(3 * scores)).astype(np.float32)


def evaluate(indices, transform=None, **options):
    evaluation = AnomalyEvaluation(CLASSES, **(SIZES | options))
    for index in indices:
        scores, prediction, label = make_image(index)
        scores = transform(scores) if transform else scores
        evaluation.update(index, f"image {index}", scores, prediction, label)
    return evaluation


@pytest.fixture(scope="module")
def images():
    return [make_image(index) for index in range(5)]


@pytest.fixture(scope="module")
def results():
    return evaluate(range(5)).results()


def figures(results, protocol):
    return results["protocols"][protocol]["figures"]


def test_the_headline_is_the_mean_over_images(results, images):
    metrics = [
        image_anomaly_metrics(scores, label == CLASSES, label != 255) for scores, _, label in images
    ]
    for name in ("AUROC", "AUPR", "FPR95"):
        values = [100 * getattr(one, name.lower()) for one in metrics]
        per_image = results["protocols"]["per image"]
        assert (
            results[name] == figures(results, "per image")[name] == pytest.approx(np.mean(values))
        )
        assert per_image["standard_error"][name] == pytest.approx(np.std(values, ddof=1) / 5**0.5)
    base_rates = [(label == CLASSES).sum() / (label != 255).sum() for _, _, label in images]
    assert results["anomaly_base_rate"] == pytest.approx(np.mean(base_rates))
    assert results["protocols"]["per image"]["chance"]["AUPR"] == pytest.approx(
        100 * np.mean(base_rates)
    )


def test_pooled_metrics_are_those_of_all_pixels_as_one_set(results, images):
    scores, _, labels = (np.stack(maps) for maps in zip(*images, strict=True))
    exact = image_anomaly_metrics(scores, labels == CLASSES, labels != 255)
    pooled = figures(results, "pooled")
    assert pooled["AUROC"] == pytest.approx(100 * exact.auroc, abs=0.01)
    assert pooled["AUPR"] == pytest.approx(100 * exact.aupr, abs=0.01)
    assert pooled["FPR95"] == pytest.approx(100 * exact.fpr95, abs=1e-9)
    # The first recall of at least 0.95, by sorting.
    is_anomaly, valid = labels == CLASSES, labels != 255
    ranked = np.sort(scores[is_anomaly & valid])
    threshold = ranked[len(ranked) // 20]
    strict = (scores[~is_anomaly & valid] >= threshold).mean()
    assert pooled["FPR at recall >= 0.95"] == pytest.approx(100 * strict, abs=1e-9)
    assert results["protocols"]["pooled"]["largest_error"]["FPR at recall >= 0.95"] == 0
    assert results["anomaly_base_rate_pooled"] == pytest.approx(is_anomaly.sum() / valid.sum())


def test_components_use_the_threshold_of_the_best_pooled_f1(results, images):
    scores, _, labels = (np.stack(maps) for maps in zip(*images, strict=True))
    is_anomaly, valid = labels == CLASSES, labels != 255
    order = np.sort(scores[valid])

    def f1(threshold):
        called = (scores >= threshold) & valid
        return 2 * (called & is_anomaly).sum() / (called.sum() + (is_anomaly & valid).sum())

    threshold = max(order[::-1], key=f1)
    matches = [
        match_components(one > threshold, label == CLASSES, label != 255, **SIZES)
        for one, _, label in images
    ]
    expected = component_scores(matches)
    components = figures(results, "components")
    assert components["sIoU"] == pytest.approx(100 * expected.siou)
    assert components["PPV"] == pytest.approx(100 * expected.ppv)
    assert components["mean F1"] == pytest.approx(100 * expected.f1)
    assert f"scores > {threshold:.6g}," in results["protocols"]["components"]["rule"]
    assert results["protocols"]["components"]["threshold"] == threshold
    assert results["protocols"]["components"]["threshold_largest_error"] == 0


def test_open_set_rejects_above_the_threshold_of_recall_95(results, images):
    scores, predictions, labels = (np.stack(maps) for maps in zip(*images, strict=True))
    ranked = np.sort(scores[labels == CLASSES])
    threshold = ranked[len(ranked) // 20]
    rejected = torch.from_numpy(scores >= threshold)
    counts = open_set_counts(
        torch.from_numpy(predictions), torch.from_numpy(labels), rejected, CLASSES, CLASSES
    )
    expected = open_mean_iou(counts)
    assert figures(results, "open set")["open-mIoU"] == pytest.approx(expected, abs=1e-12)
    assert results["protocols"]["open set"]["threshold"] == threshold
    assert expected < results["Mean IoU"]


def test_segmentation_is_that_of_the_confusion_matrix(results):
    expected = segmentation_scores(evaluate(range(5)).confusion.matrix)
    assert {name: results[name] for name in expected} == expected
    assert figures(results, "segmentation")["Mean IoU"] == expected["Mean IoU"]
    assert "13 classes" in results["protocols"]["segmentation"]["rule"]


def test_ignored_classes_leave_the_anomaly_metrics_only(images):
    names = [f"class {index}" for index in range(CLASSES)]
    results = evaluate(range(5), ignore_classes=(3, 0), class_names=names).results()
    metrics = [
        image_anomaly_metrics(scores, label == CLASSES, ~np.isin(label, (255, 3, 0)))
        for scores, _, label in images
    ]
    assert results["AUROC"] == pytest.approx(100 * np.mean([one.auroc for one in metrics]))
    assert results["Mean IoU"] == evaluate(range(5)).results()["Mean IoU"]
    assert results["protocol"].endswith("ignored classes: class 3, class 0")
    for protocol in ("per image", "pooled", "components"):
        assert results["protocols"][protocol]["ignored_classes"] == ["class 3", "class 0"]


def test_every_rule_names_the_size_that_was_measured_at(results, images):
    label_size = "48x64, the size of the label"
    assert results["measured_at"] == label_size
    for protocol in results["protocols"].values():
        assert protocol["rule"].endswith(f"; measured at {label_size}")
    assert label_size in results["protocol"]
    resized = evaluate(range(2), at_input_size=True)
    expected = "48x64, the size of the network's input, labels resized (nearest)"
    assert resized.results()["measured_at"] == expected
    mixed = evaluate(range(2))
    mixed.update(7, "narrow", *(part[:, :32] for part in images[2]))
    assert mixed.results()["measured_at"] == "each image's size of the label"


def test_images_with_one_kind_of_pixel_are_skipped_and_constant_maps_named(images):
    evaluation = evaluate(range(2))
    scores, prediction, label = images[2]
    evaluation.update(7, "no anomaly", scores, prediction, np.where(label == CLASSES, 1, label))
    evaluation.update(8, "flat", np.full_like(scores, 0.5), prediction, label)
    evaluation.update(9, "nothing", scores, prediction, np.full_like(label, 255))
    results = evaluation.results()
    assert (results["images"], results["images_scored"], results["images_skipped"]) == (5, 3, 2)
    assert results["constant_score_maps"] == ["flat"]
    two = evaluate(range(2)).results()["AUROC"]
    assert results["AUROC"] == pytest.approx((2 * two + 50) / 3)


def test_non_finite_scores_name_their_image(images):
    scores, prediction, label = images[0]
    scores = scores.copy()
    scores[10, :4] = np.nan
    evaluation = evaluate(range(1, 3))
    with pytest.raises(InvalidScores, match=r"^street 9: 4 of \d+ anomaly scores"):
        evaluation.update(0, "street 9", scores, prediction, label)
    assert evaluation.results() == evaluate(range(1, 3)).results()


def test_no_image_may_count_twice():
    with pytest.raises(ValueError, match="counted twice"):
        evaluate([0, 1, 0]).results()


def test_without_images_or_predictions_these_metrics_are_none(images):
    empty = AnomalyEvaluation(CLASSES).results()
    assert (empty["AUROC"], empty["images"]) == (None, 0)
    assert figures(empty, "components") == {"sIoU": None, "PPV": None, "mean F1": None}
    evaluation = AnomalyEvaluation(CLASSES, **SIZES)
    for index, (scores, _, label) in enumerate(images):
        evaluation.update(index, str(index), scores, None, label)
    results = evaluation.results()
    assert set(figures(results, "open set").values()) == {None}
    assert set(figures(results, "segmentation").values()) == {None}
    assert figures(results, "components") == figures(evaluate(range(5)).results(), "components")


def test_a_full_disk_omits_only_what_needs_the_second_pass(monkeypatch, results):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metrics.spool.Spool.append", fail)
    damaged = evaluate(range(5)).results()
    assert figures(damaged, "components") == {"sIoU": None, "PPV": None, "mean F1": None}
    assert "No space left" in damaged["protocols"]["components"]["rule"]
    pooled, largest = figures(damaged, "pooled"), damaged["protocols"]["pooled"]["largest_error"]
    for name, value in figures(results, "pooled").items():
        assert abs(pooled[name] - value) <= largest[name] + 1e-9
    assert damaged["AUROC"] == results["AUROC"]


def test_a_missing_folder_for_the_maps_is_the_reason_given(tmp_path):
    results = evaluate(range(2), spool_folder=tmp_path / "missing").results()
    assert set(figures(results, "open set").values()) == {None}
    assert "missing" in results["protocols"]["open set"]["rule"]


def test_maps_that_can_be_reread_are_not_stored(results, tmp_path):
    def reread(index):
        scores, prediction, label = make_image(index)
        return scores, label, prediction

    evaluation = evaluate(range(5), reread=reread, spool_folder=tmp_path / "missing")
    assert evaluation.results() == results


def test_tensors_equal_arrays(images, results):
    evaluation = AnomalyEvaluation(CLASSES, **SIZES)
    for index, maps in enumerate(images):
        scores, prediction, label = map(torch.from_numpy, maps)
        evaluation.update(index, f"image {index}", scores, prediction, label)
    assert evaluation.results() == results


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_scores_closer_than_float32_resolution_are_distinguished(images, dtype):
    """Spread as they are, and within a millionth of a float32's step."""
    evaluations = AnomalyEvaluation(CLASSES, **SIZES), AnomalyEvaluation(CLASSES, **SIZES)
    for index, (scores, prediction, label) in enumerate(images):
        whole = np.round(1e3 * scores.astype(float))
        shift = 2**60 if dtype == np.int64 else 1e9
        close = whole.astype(dtype) + shift if dtype == np.int64 else shift + whole * 2.0**-23
        for evaluation, own in zip(evaluations, (whole, close), strict=True):
            evaluation.update(index, str(index), own, prediction, label)
    expected, results = (evaluation.results() for evaluation in evaluations)
    assert results["protocols"]["per image"] == expected["protocols"]["per image"]
    for protocol in ("pooled", "components", "open set"):
        assert figures(results, protocol) == pytest.approx(figures(expected, protocol), abs=0.02)
    for protocol in ("components", "open set"):
        assert figures(results, protocol) == pytest.approx(figures(expected, protocol))
        assert results["protocols"][protocol]["threshold_largest_error"] == 0


def test_saturated_scores_have_no_component_as_in_the_benchmark(images):
    """Every score of the best pixel F1 is the highest: none is above it."""
    evaluation = AnomalyEvaluation(CLASSES, **SIZES)
    for index, (_, prediction, label) in enumerate(images):
        evaluation.update(index, str(index), (label == CLASSES).astype(float), prediction, label)
    results = evaluation.results()
    assert results["protocols"]["components"]["threshold"] == 1
    assert figures(results, "components") == {"sIoU": 0, "PPV": None, "mean F1": 0}
    assert figures(results, "open set")["open-mIoU"] == pytest.approx(results["Mean IoU"])


def test_pooled_metrics_with_wide_bounds_are_counted_again(images):
    results = evaluate(range(5), crowded).results()
    scores, _, labels = (np.stack(maps) for maps in zip(*images, strict=True))
    exact = image_anomaly_metrics(crowded(scores), labels == CLASSES, labels != 255)
    pooled, largest = (
        results["protocols"]["pooled"],
        results["protocols"]["pooled"]["largest_error"],
    )
    for name in ("AUROC", "AUPR", "FPR95"):
        error = abs(pooled["figures"][name] - 100 * getattr(exact, name.lower()))
        assert error <= largest[name] + 1e-9
        assert largest[name] < 0.01
    evaluation = evaluate(range(5), crowded)
    assert evaluation.pooled.metrics().largest_bound > 1e-4  # as it is before the second look


def _evaluate_part(rank, processes, folder, transform):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=processes
    )
    torch.set_num_threads(1)
    evaluation = evaluate(range(rank, 5, processes), transform)
    evaluation.all_reduce()
    (folder / f"rank{rank}").write_text(json.dumps(evaluation.results()))
    dist.destroy_process_group()


@pytest.mark.parametrize(("processes", "transform"), [(2, None), (6, None), (3, crowded)])
def test_results_do_not_depend_on_the_number_of_processes(processes, transform, tmp_path):
    """With 6 processes one of them has no image; crowded scores are counted twice."""
    mp.start_processes(
        _evaluate_part, (processes, tmp_path, transform), processes, start_method="fork"
    )
    expected = json.dumps(evaluate(range(5), transform).results())
    for rank in range(processes):
        assert (tmp_path / f"rank{rank}").read_text() == expected
