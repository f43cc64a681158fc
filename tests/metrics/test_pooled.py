"""Pooled counts against the exact metrics of all pixels at once."""

import subprocess
import sys
import tracemalloc
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from metrics import InvalidScores, PooledCounts, image_anomaly_metrics, populations
from metrics.float_keys import lowest_scores, ordered_keys
from metrics.pooled import sharpened

REPOSITORY = Path(__file__).parents[2]
PIXELS = 400_000


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


# Scores of every habit, from standard normal ones that are 1.2 higher on anomalies.
KINDS = {
    "normal": lambda z: z,
    "negated": lambda z: -5 - z,
    "large": lambda z: 1e6 * z,
    "probability": lambda z: sigmoid(2 * z - 3),
    "near zero": lambda z: sigmoid(6 * z - 14),
    "near one": lambda z: sigmoid((6 * z + 10).astype(np.float32)),
    "a few steps of 6e-8 below one": lambda z: 1 - np.round(np.abs(z - 4) * 20) * 2.0**-24,
    "all within 1e-5": lambda z: 0.5 + 1e-6 * z,
    "all within 1e-3": lambda z: 0.9 + 1e-4 * z,
    "over 30 decades": lambda z: np.exp(8 * z),
    "rounded": lambda z: np.round(sigmoid(z), 2),
    "8 bits": lambda z: np.round(255 * sigmoid(z)),
    "16 bits": lambda z: np.round(65535 * sigmoid(z)),
    "half precision": lambda z: sigmoid(z).astype(np.float16),
    "constant": lambda z: 0.3 + 0 * z,
}


def draw(kind, base_rate, pixels=PIXELS, seed=0):
    rng = np.random.default_rng(seed)
    is_anomaly = rng.random(pixels) < base_rate
    return KINDS[kind](rng.normal(size=pixels) + 1.2 * is_anomaly).astype(np.float32), is_anomaly


def count(scores, is_anomaly, parts=4, **options):
    counts = PooledCounts(**options)
    for part in np.array_split(np.arange(scores.size), parts):
        counts.update(*populations(scores[part], is_anomaly[part]))
    return counts


def count_again(counts, scores, is_anomaly, parts=4):
    """A second pass over the scores of `counts`."""
    refined = counts.refined()
    for part in np.array_split(np.arange(scores.size), parts):
        refined.update(*populations(scores[part], is_anomaly[part]))
    return refined


def draw_clustered(seed=0, base_rate=0.1):
    """Most scores within 1e-5 of 0.5, the rest anywhere: too much for bins of one width."""
    rng = np.random.default_rng(seed)
    is_anomaly = rng.random(PIXELS) < base_rate
    values = rng.normal(size=PIXELS) + 1.2 * is_anomaly
    scores = np.where(rng.random(PIXELS) < 0.9, 0.5 + 1e-6 * values, sigmoid(6 * values))
    return scores.astype(np.float32), is_anomaly


def errors_and_bounds(counts, scores, is_anomaly):
    exact, metrics = image_anomaly_metrics(scores, is_anomaly), counts.metrics()
    names = ("auroc", "aupr", "fpr95")
    errors = [abs(getattr(metrics, name) - getattr(exact, name)) for name in names]
    return errors, [getattr(metrics, f"{name}_bound") for name in names]


@pytest.mark.parametrize("base_rate", [0.02, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_within_1e_4_of_the_exact_values_and_within_the_bound(kind, base_rate):
    scores, is_anomaly = draw(kind, base_rate)
    errors, bounds = errors_and_bounds(count(scores, is_anomaly), scores, is_anomaly)
    assert max(errors) < 1e-4
    assert all(error <= bound + 1e-12 for error, bound in zip(errors, bounds, strict=True))


@pytest.mark.parametrize(
    "kind", ["8 bits", "16 bits", "half precision", "constant", "all within 1e-5"]
)
def test_scores_of_few_bits_or_in_a_narrow_band_are_exact_and_known_to_be(kind):
    scores, is_anomaly = draw(kind, 0.05)
    errors, bounds = errors_and_bounds(count(scores, is_anomaly), scores, is_anomaly)
    assert errors == pytest.approx([0, 0, 0], abs=1e-12)
    assert bounds == [0, 0, 0]


def test_the_bound_shows_where_the_bins_are_too_coarse():
    """1e-4 is missed, and not in silence."""
    scores, is_anomaly = draw_clustered()
    errors, bounds = errors_and_bounds(count(scores, is_anomaly), scores, is_anomaly)
    assert max(errors) > 1e-4
    assert all(error <= bound for error, bound in zip(errors, bounds, strict=True))


@pytest.mark.parametrize("base_rate", [0.002, 0.5])
@pytest.mark.parametrize("kind", [*KINDS, "clustered"])
def test_a_second_pass_proves_1e_4(kind, base_rate):
    """Not the error alone but the bound: ties are known, and bins lie where the pixels are."""
    clustered = kind == "clustered"
    scores, is_anomaly = draw_clustered(1, base_rate) if clustered else draw(kind, base_rate)
    refined = count_again(count(scores, is_anomaly), scores, is_anomaly)
    errors, bounds = errors_and_bounds(refined, scores, is_anomaly)
    assert max(bounds) < 1e-4
    assert all(error <= bound + 1e-12 for error, bound in zip(errors, bounds, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.001, 0.6),
    st.lists(
        st.tuples(
            st.sampled_from([-1e9, -1.0, 0.0, 1e-30, 0.3, 0.5, 1 - 2.0**-20, 1.0, 7.0, 2.0**101]),
            st.sampled_from([0.0, 1e-30, 1e-8, 1e-5, 1e-2, 1.0, 1e20]),
            st.sampled_from([1.0, 3.0, 12.0]),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_no_error_exceeds_the_bounds_of_either_pass(seed, base_rate, clusters):
    """Mixtures of clusters (centre, width, skew): tied, narrow, wide, skewed, beyond 2^100."""
    rng = np.random.default_rng(seed)
    pixels = 8000
    is_anomaly = rng.random(pixels) < base_rate
    is_anomaly[:2] = True, False
    values = rng.normal(size=pixels) + is_anomaly
    centre, width, skew = np.array(clusters)[rng.integers(0, len(clusters), pixels)].T
    scores = (centre + width * np.sign(values) * np.abs(values) ** skew).astype(np.float32)
    # An octave of normal scores elsewhere takes up the memory.
    octave = -(2.0**60) * np.linspace(1, 2, 256)
    scores = np.r_[scores, octave.astype(np.float32)]
    is_anomaly = np.r_[is_anomaly, np.zeros(octave.size, bool)]
    counts = count(scores, is_anomaly, max_bins=1 << 16)
    for pass_counts in (counts, count_again(counts, scores, is_anomaly)):
        errors, bounds = errors_and_bounds(pass_counts, scores, is_anomaly)
        assert all(error <= bound + 1e-12 for error, bound in zip(errors, bounds, strict=True))


def test_scores_beyond_2_to_the_100_are_not_called_exact_before_a_second_pass():
    kinds = np.float32([2.0**120, 2.0**101]), np.float32([2.0**110, 2.0**102])
    counts = PooledCounts()
    counts.update(*kinds)
    assert (counts.metrics().auroc, counts.metrics().auroc_bound) == (0.5, 0.5)
    refined = counts.refined()
    refined.update(*kinds)
    assert (refined.metrics().auroc, refined.metrics().auroc_bound) == (0.5, 0)
    assert refined.metrics().recall_95_threshold == 2.0**101


@pytest.mark.parametrize("other", [7.0, 0.8])
def test_a_second_pass_accepts_only_the_scores_of_the_first(other):
    counts = PooledCounts()
    counts.update(np.array([0.9, 0.8]), np.array([0.8, 0.1]))
    refined = counts.refined()
    with pytest.raises(ValueError, match="first pass"):  # noqa: PT012
        refined.update(np.array([0.9, other]), np.array([0.8, other]))
        refined.all_reduce()


# From values that are about standard normal: scores that bins of float32 can't tell apart.
HARD = {
    "saturated": lambda z: np.minimum(sigmoid(3 * z), 0.9).astype(np.float32),
    "plateau": lambda z: np.where(np.abs(z) < 0.4, 0.5 + z.round(1) * 2e-7, z).astype(np.float32),
    "plateau of float64": lambda z: np.where(np.abs(z) < 0.4, 0.5 + 2e-9 * z, z),
    "close": lambda z: 0.7 + 1e-13 * z,
    "close and tied": lambda z: 1e6 + z.round(1) * 1e-8,
    "close below zero": lambda z: -1 - 1e-12 * np.exp(z),
    "least float64": lambda z: 5e-324 * (20 * z).round(),
    "greatest float64": lambda z: 1e307 * z,
    "8 bits": lambda z: (128 + 30 * z).clip(0, 255).astype(np.uint8),
    "16 bits": lambda z: (5000 * z).clip(-32768, 32767).astype(np.int16),
    "32 bits": lambda z: (2**31 - 2 - np.abs(40 * z)).astype(np.int32),
    "64 bits": lambda z: 2**60 + (30 * z).astype(np.int64),
    "64 bits, all of them": lambda z: (2.0**61 * z.clip(-3.9, 3.9)).astype(np.int64),
}


def exact_metrics(scores, is_anomaly):
    """scikit-learn's on the raw scores; of 64-bit integers, which it rounds, on their ranks."""
    values = np.unique(scores)
    rank = np.searchsorted(values, scores)
    seen = rank if values.dtype.kind in "iu" or values[-1] - values[0] < 1e-300 else scores
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it adds up huge scores
        auroc = roc_auc_score(is_anomaly, seen)
        aupr = average_precision_score(is_anomaly, seen)
        false, recall, _ = roc_curve(is_anomaly, rank, drop_intermediate=False)
    # The thresholds by counting, over the distinct scores from the highest down.
    falling = values[::-1]
    hits, all_called = (
        np.cumsum(np.bincount(ranks, minlength=len(values))[::-1])
        for ranks in (rank[is_anomaly], rank)
    )
    positives = hits[-1]
    at_95 = np.argmax(20 * hits >= 19 * positives)
    best_f1 = np.argmax(hits / (positives + all_called))
    return {
        "auroc": auroc,
        "aupr": aupr,
        "fpr95": image_anomaly_metrics(scores, is_anomaly).fpr95,
        "fpr_at_recall_95": false[np.argmax(20 * np.round(recall * positives) >= 19 * positives)],
        "recall_95_threshold": falling[at_95].item(),
        "best_f1_threshold": falling[best_f1].item(),
    }


def assert_within_bounds(metrics, exact):
    for name, value in exact.items():
        error = abs(getattr(metrics, name) - value)
        assert error <= getattr(metrics, f"{name}_bound") + 1e-12 * ("threshold" not in name), name


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(HARD)), st.floats(0.01, 0.6))
def test_every_metric_and_threshold_is_within_its_bound_and_then_sharp(seed, kind, base_rate):
    rng = np.random.default_rng(seed)
    is_anomaly = rng.random(2000) < base_rate
    is_anomaly[:2] = True, False
    scores = HARD[kind](rng.normal(size=is_anomaly.size) + is_anomaly)
    exact = exact_metrics(scores, is_anomaly)
    counts = count(scores, is_anomaly, max_bins=1 << 16)
    assert_within_bounds(counts.metrics(), exact)
    kinds = populations(scores, is_anomaly)
    metrics = sharpened(counts, lambda: [kinds]).metrics()
    assert_within_bounds(metrics, exact)
    assert metrics.is_sharp
    for name in ("fpr95", "fpr_at_recall_95", "recall_95_threshold", "best_f1_threshold"):
        assert getattr(metrics, name) == exact[name], name


def test_a_plateau_of_a_third_of_the_normal_pixels():
    """All within 2e-7 around the threshold: one pass may be off by half, and says so."""
    rng = np.random.default_rng(0)
    plateau = np.float32(0.3) + np.arange(8, dtype=np.float32) * np.float32(3e-8)
    normal = np.r_[rng.choice(plateau, 100_000), rng.random(200_000) ** 4].astype(np.float32)
    anomalous = np.r_[rng.choice(plateau, 1000), 0.3 + 0.7 * rng.random(9_000)].astype(np.float32)
    scores, is_anomaly = np.r_[normal, anomalous], np.arange(310_000) >= 300_000
    counts = count(scores, is_anomaly, max_bins=1 << 16)
    exact = exact_metrics(scores, is_anomaly)["fpr_at_recall_95"]
    first = counts.metrics()
    assert first.fpr_at_recall_95 - exact > 0.1
    assert first.fpr_at_recall_95 - exact <= first.fpr_at_recall_95_bound <= first.largest_bound
    sharp = sharpened(counts, lambda: [(anomalous, normal)]).metrics()
    assert (sharp.fpr_at_recall_95, sharp.fpr_at_recall_95_bound) == (exact, 0)


def test_integers_beyond_2_to_the_53_cannot_be_ranked_with_fractions():
    kinds = [(np.array([2**60]), np.zeros(0)), (0.5 + np.array([1e-9, 3e-9]), np.array([0.5]))]
    counts = PooledCounts()
    for anomalous, normal in kinds:
        counts.update(anomalous, normal)
    with pytest.raises(ValueError, match="fractions"):
        sharpened(counts, lambda: kinds)


def test_scores_too_large_for_any_type_are_refused():
    for scores, words in ((np.array([2**63], np.uint64), "2\\^63"), (np.ones(1, "g"), "float64")):
        with pytest.raises(InvalidScores, match=words):
            PooledCounts().update(scores, scores)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 300), st.integers(1, 80))
def test_bounds_hold_for_any_small_set(seed, positives, negatives, levels):
    """Bins of 256 floats, 16 levels: an octave of normal scores elsewhere takes up the memory."""
    rng = np.random.default_rng(seed)
    octave = 2.0**60 * np.linspace(1, 2, 256)
    is_anomaly = np.arange(positives + negatives + octave.size) < positives
    scores = 1 + (rng.integers(0, levels, is_anomaly.size) + 3 * is_anomaly) * 2.0**-19
    scores[-octave.size :] = octave
    scores = scores.astype(np.float32)
    counts = count(scores, is_anomaly, max_bins=1 << 16)
    assert counts._bits < 9
    errors, bounds = errors_and_bounds(counts, scores, is_anomaly)
    assert all(error <= bound + 1e-12 for error, bound in zip(errors, bounds, strict=True))


def test_worked_by_hand():
    counts = PooledCounts()
    counts.update(np.array([0.9, 0.8, 0.4]), np.array([0.8, 0.1]))
    counts.update(np.zeros(0), np.array([0.8]))
    counts = sharpened(counts, lambda: [(np.array([0.9, 0.8, 0.4]), np.array([0.8, 0.1, 0.8]))])
    metrics = counts.metrics()
    assert (counts.anomalous, counts.normal, counts.base_rate) == (3, 3, 0.5)
    assert metrics.auroc == pytest.approx(float(Fraction(3 + 2 + 1, 9)))
    assert metrics.aupr == pytest.approx(float((1 + Fraction(2, 4) + Fraction(3, 5)) / 3))
    assert metrics.fpr95 == pytest.approx(2 / 3)
    assert metrics.fpr_at_recall_95 == pytest.approx(2 / 3)
    assert metrics.best_f1_threshold == 0.4  # F1 is 1/2, 4/7 and 3/4
    assert metrics.recall_95_threshold == 0.4
    assert metrics.is_sharp
    assert metrics.largest_bound == 0


def test_the_two_fpr_rules_differ_where_recall_jumps():
    """The example of docs/evaluation.md: recall 0.9 is as near as 1, and rounding prefers 0.9."""
    anomalous, normal = np.r_[0.0, np.arange(2.0, 11)], np.r_[-1.0, np.zeros(4), 0.5, 1.0, 2.5]
    counts = PooledCounts()
    counts.update(anomalous, normal)
    metrics = counts.metrics()
    assert (metrics.fpr95, metrics.fpr_at_recall_95) == (3 / 8, 7 / 8)
    false, recall, _ = roc_curve(np.arange(18) < 10, np.r_[anomalous, normal])
    assert np.interp(0.95, recall, false) == pytest.approx(5 / 8)
    assert (normal > np.percentile(anomalous, 5)).mean() == 2 / 8


def test_without_both_kinds_there_are_no_metrics():
    counts = PooledCounts()
    assert counts.metrics() is None
    assert counts.base_rate is None
    counts.update(np.zeros(0), np.ones(3))
    assert counts.metrics() is counts.curve() is counts.histogram() is None


def test_results_do_not_depend_on_the_order_of_the_images():
    scores, is_anomaly = draw("normal", 0.1)
    order = np.random.default_rng(1).permutation(scores.size)
    shuffled = count(scores[order], is_anomaly[order], parts=7)
    assert shuffled.metrics() == count(scores, is_anomaly).metrics()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=60))
def test_keys_have_the_order_of_the_scores_and_can_be_inverted(scores):
    scores = np.unique(np.array(scores, np.float32) + np.float32(0))
    keys = ordered_keys(scores).astype(np.int64)
    assert (np.diff(keys) > 0).all()
    assert lowest_scores(keys).tolist() == scores.tolist()


def test_keys_at_the_joints():
    joints = np.array([-1, -(2.0**-149), 0, 2.0**-149, 0.5, 1], np.float32)
    scores = np.unique([np.nextafter(joints, np.float32(way)) for way in (-9, 9)] + [joints])
    assert (np.diff(ordered_keys(scores)) > 0).all()
    assert ordered_keys(np.float32([-0.0])) == ordered_keys(np.float32([0.0]))
    keys = np.linspace(-(2**31) + 2**24, 0x7D000000, 9999).astype(int)
    lowest = lowest_scores(keys)
    below = np.nextafter(lowest, np.float32(-np.inf))
    assert (ordered_keys(below) < keys).all()
    assert (ordered_keys(lowest) >= keys).all()


def test_memory_stays_under_100_mb():
    """Positives in every bin: the most that the metrics ever hold at once."""
    scores, is_anomaly = draw("normal", 0.5, 3_000_000)
    kinds = populations(scores, is_anomaly)
    tracemalloc.start()
    counts = PooledCounts()
    counts.update(*kinds)
    counts._counts[:] = 1
    counts.metrics()
    counts.all_reduce()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


_PEAK_OF_MANY_IMAGES = """
from pathlib import Path
import numpy as np
from metrics import PooledCounts, populations

def image(seed):
    scores = np.random.default_rng(seed).random((720, 1280), np.float32) ** 3
    is_anomaly = np.zeros((720, 1280), bool)
    is_anomaly[300:400, 500:690] = True
    return populations(scores, is_anomaly)

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000

image(0)
start = peak()
counts = PooledCounts()
after = []
for images in (2, 8):
    for seed in range(images):
        counts.update(*image(seed))
    counts.all_reduce()
    counts.metrics()
    after.append(peak() - start)
refined = counts.refined()
for seed in (0, 1, *range(8)):
    refined.update(*image(seed))
refined.all_reduce()
refined.metrics()
print(*after, peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
def test_memory_of_a_process_stays_under_100_mb_whatever_the_number_of_images():
    """As the operating system counts it, beside that of an image and of the imports."""
    ended = subprocess.run(
        [sys.executable, "-c", _PEAK_OF_MANY_IMAGES],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    few, many, with_second_pass = map(float, ended.stdout.split())
    assert 10 < few < 100
    assert many < few + 5
    assert with_second_pass < 100


@pytest.mark.parametrize("kind", ["8 bits", "half precision", "constant", "all within 1e-5"])
def test_the_curve_is_that_of_scikit_learn(kind):
    """Where bins are single scores, so that the points are the same ones."""
    scores, is_anomaly = draw(kind, 0.1, 20_000)
    curve = count(scores, is_anomaly).curve(points=10**6)
    false, recall, _ = roc_curve(is_anomaly, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.recall, recall[1:], atol=1e-12)
    np.testing.assert_allclose(curve.false_positive_rate, false[1:], atol=1e-12)
    precision, recall, _ = precision_recall_curve(is_anomaly, scores)
    np.testing.assert_allclose(curve.precision, precision[-2::-1], atol=1e-12)


@pytest.mark.parametrize("kind", ["normal", "near one", "over 30 decades"])
def test_the_curve_follows_that_of_scikit_learn(kind):
    scores, is_anomaly = draw(kind, 0.1, 20_000)
    curve = count(scores, is_anomaly).curve()
    false, recall, _ = roc_curve(is_anomaly, scores, drop_intermediate=False)
    expected = np.interp(curve.recall + curve.false_positive_rate, recall + false, recall)
    np.testing.assert_allclose(curve.recall, expected, atol=1e-3)


def test_a_curve_of_few_points_leaves_no_gap():
    counts = count(*draw("normal", 0.1))
    curve = counts.curve(points=100)
    assert len(curve.recall) <= 100
    assert curve.recall[-1] == curve.false_positive_rate[-1] == 1
    assert max(np.diff(curve.recall).max(), np.diff(curve.false_positive_rate).max()) < 0.025
    # The area under its points is the AUROC but for the corners.
    area = np.trapezoid(np.r_[0, curve.recall], np.r_[0, curve.false_positive_rate])
    assert area == pytest.approx(counts.metrics().auroc, abs=1e-3)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", ["normal", "near one", "large", "8 bits", "constant"])
def test_the_histogram_is_that_of_numpy(kind, again):
    scores, is_anomaly = draw(kind, 0.1, 50_000)
    counts = count(scores, is_anomaly)
    counts = count_again(counts, scores, is_anomaly) if again else counts
    histogram = counts.histogram(buckets=20)
    inside = np.clip(scores, histogram.edges[0], histogram.edges[-1])
    for mask, found in ((is_anomaly, histogram.anomalous), (~is_anomaly, histogram.normal)):
        expected, _ = np.histogram(inside[mask], histogram.edges)
        assert found.sum() == mask.sum()
        assert np.abs(found - expected).max() <= 1e-3 * mask.sum()
        beyond = scores[mask][inside[mask] != scores[mask]]
        assert beyond.size <= 0.0021 * mask.sum()


def test_an_outlier_does_not_squeeze_the_histogram():
    scores, is_anomaly = draw("normal", 0.1, 50_000)
    scores[7] = 1e9
    histogram = count(scores, is_anomaly).histogram()
    assert histogram.edges[-1] < 10
    assert histogram.normal.sum() + histogram.anomalous.sum() == scores.size


def _count_part(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    # Ranges that differ, so that the processes come with other pages at other resolutions.
    part = draw("normal", 0.1, 60_000) if rank else draw("probability", 0.1, 9_000)
    counts = count(*part)
    counts.all_reduce()
    refined = count_again(counts, *part)
    refined.all_reduce()
    (folder / f"rank{rank}").write_text(repr([counts.metrics(), refined.metrics()]))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.start_processes(_count_part, (tmp_path,), 2, start_method="fork")
    parts = [draw("probability", 0.1, 9_000), draw("normal", 0.1, 60_000)]
    scores, is_anomaly = (np.concatenate(both) for both in zip(*parts, strict=True))
    counts = count(scores, is_anomaly, parts=3)
    refined = count_again(counts, scores, is_anomaly, parts=5)
    expected = repr([counts.metrics(), refined.metrics()])
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == [expected] * 2


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("decimals", [6, 2])
def test_threshold_at_a_false_positive_rate_is_the_quantile(fpr, decimals):
    scores = np.random.default_rng(0).beta(2, 5, 20_000).round(decimals).astype(np.float32)
    counts = PooledCounts()
    for part in np.split(scores, 4):
        counts.update(part[:0], part)
    threshold = counts.threshold_at_fpr(fpr)
    assert (scores >= np.float32(threshold)).mean() <= fpr
    below = scores[scores < np.float32(threshold)].max()
    assert (scores >= below).mean() > fpr - 1e-3  # a bin holds a few scores


def test_threshold_at_a_false_positive_rate_within_a_plateau():
    """A third of the pixels within 2e-7: one pass must leave all of them out."""
    rng = np.random.default_rng(0)
    plateau = np.float32(0.9) + np.arange(4, dtype=np.float32) * np.float32(6e-8)
    scores = np.r_[rng.choice(plateau, 1000), rng.random(2000).astype(np.float32)]
    counts = PooledCounts(max_bins=1 << 16)
    counts.update(scores[:0], scores)
    assert (scores >= np.float32(counts.threshold_at_fpr(0.2))).mean() < 0.1
    counts = sharpened(counts, lambda: [(scores[:0], scores)], fpr=0.2)
    threshold = counts.threshold_at_fpr(0.2)
    values, pixels = np.unique(scores, return_counts=True)
    reached = pixels[::-1].cumsum()[::-1]
    assert threshold == values[np.argmax(reached <= 0.2 * scores.size)]


def test_the_threshold_is_above_a_score_shared_by_too_many_pixels():
    counts = PooledCounts()
    counts.update(np.zeros(0), np.full(100, 0.25, np.float32))
    threshold = counts.threshold_at_fpr(0.05)
    assert 0.25 < threshold < 0.2501


def test_threshold_needs_normal_pixels():
    counts = PooledCounts()
    counts.update(np.ones(3), np.zeros(0))
    assert counts.threshold_at_fpr(0.05) is None
