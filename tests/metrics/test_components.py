"""Component metrics against SciPy's labelling and the paper's set formulas, written literally."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from metrics import component_scores, connected_components, match_components
from metrics.components import ComponentMatch

EIGHT = np.ones((3, 3))


def random_mask(rng, shape):
    return rng.random(shape) < rng.random()


def formula(is_predicted, is_anomaly, valid, min_predicted_size, min_true_size):
    """sIoU of every true component and PPV of every predicted one, by sets of pixels."""

    def components(mask):
        labels, count = ndimage.label(mask, EIGHT)
        return [set(zip(*np.nonzero(labels == i), strict=True)) for i in range(1, count + 1)]

    true, predicted = components(is_anomaly & valid), components(is_predicted & valid)
    predicted = [component for component in predicted if len(component) >= min_predicted_size]
    ignored = set().union(*(component for component in true if len(component) < min_true_size))
    true = [component for component in true if len(component) >= min_true_size]
    predicted = [component - ignored for component in predicted if component - ignored]
    siou = []
    for component in true:
        others = set().union(*(other for other in true if other is not component))
        touching = set().union(*(other for other in predicted if other & component))
        siou.append(len(component & touching) / len((component | touching) - others))
    anomalous = set().union(*true)
    return siou, [len(component & anomalous) / len(component) for component in predicted]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_labels_are_those_of_scipy(seed, height, width):
    mask = random_mask(np.random.default_rng(seed), (height, width))
    labels, sizes = connected_components(mask)
    expected, count = ndimage.label(mask, EIGHT)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(sizes, np.bincount(expected.ravel(), minlength=count + 1)[1:])


def test_a_spiral_is_one_component():
    """One that takes as many rounds of merging as any."""
    mask = np.zeros((41, 41), dtype=bool)
    row, column, step = 0, 0, (0, 1)
    for length in np.repeat(np.arange(40, 0, -2), 2):
        for _ in range(length):
            mask[row, column] = True
            row, column = row + step[0], column + step[1]
        step = step[1], -step[0]
    labels, sizes = connected_components(mask)
    assert sizes.tolist() == [mask.sum()]
    np.testing.assert_array_equal(labels, mask)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 6))
def test_matches_follow_the_formulas(seed, min_predicted_size, min_true_size):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 14, 2))
    masks = [random_mask(rng, shape) for _ in range(3)]
    match = match_components(
        *masks, min_predicted_size=min_predicted_size, min_true_size=min_true_size
    )
    siou, ppv = formula(*masks, min_predicted_size, min_true_size)
    np.testing.assert_allclose(match.siou, siou)
    np.testing.assert_allclose(match.ppv, ppv)


def test_worked_by_hand():
    """One prediction spans two of three objects: each is charged for what lies outside both."""
    truth, predicted = np.zeros((2, 12), dtype=bool), np.zeros((2, 12), dtype=bool)
    truth[:, 0:2] = truth[:, 4:6] = truth[:, 8:9] = True
    predicted[:, 1:5] = predicted[:, 11:] = True
    match = match_components(predicted, truth)
    # Objects of 4, 4 and 2 pixels, covered by 2, 2 and 0; 4 predicted pixels lie outside.
    assert match.siou.tolist() == [2 / (4 + 4), 2 / (4 + 4), 0]
    assert match.ppv.tolist() == [4 / 8, 0]
    scores = component_scores([match])
    assert scores.siou == pytest.approx((0.25 + 0.25) / 3)
    assert scores.ppv == pytest.approx(0.25)
    # Level 0.25: two are found, for sIoU 0.25 is enough, one is missed, one prediction is false.
    # Above it none is found, and F1 is 0.
    assert scores.f1 == pytest.approx(4 / (4 + 1 + 1) / 11)


def test_a_value_equal_to_the_level_counts_as_found_and_not_as_false():
    """SegmentMeIfYouCan's comparisons: sIoU >= t is found, PPV < t is false."""
    at_each_level = ComponentMatch(np.array([0.5]), np.array([0.5]))
    # Up to 0.5 found and not false: F1 is 1 on 6 of 11 levels; above it missed and false.
    assert component_scores([at_each_level]).f1 == pytest.approx(6 / 11)


def test_an_object_under_the_minimum_size_is_treated_as_void():
    """Objects of 2 and 6 pixels; a prediction of 4 covers the small one and 2 normal pixels."""
    truth, predicted = np.zeros((2, 2, 9), dtype=bool)
    truth[0, 0:2] = truth[:, 6:9] = True
    predicted[0, 0:4] = predicted[0, 6:9] = True
    match = match_components(predicted, truth, min_predicted_size=3, min_true_size=3)
    assert match.siou.tolist() == [3 / 6]
    assert match.ppv.tolist() == [0 / 2, 3 / 3]  # its 2 pixels of the small object are void
    # Levels up to 0.5: one found, one false; above: one missed, one false.
    assert component_scores([match]).f1 == pytest.approx(6 / 11 * 2 / 3)


def test_f1_is_the_mean_over_its_levels():
    matches = [
        ComponentMatch(np.array([0.62, 0.1]), np.array([0.5])),
        ComponentMatch(np.array([0.9]), np.array([0.9, 0.26])),
    ]
    levels = np.array([0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75])
    found = np.array([2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1])
    false = np.array([0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    assert len(levels) == 11
    f1 = 2 * found / (2 * found + (3 - found) + false)
    assert component_scores(matches).f1 == pytest.approx(f1.mean())


def test_without_components_there_is_no_score():
    scores = component_scores([match_components(*[np.zeros((3, 4), dtype=bool)] * 2)])
    assert (scores.siou, scores.ppv, scores.f1) == (None, None, None)
    assert component_scores([]) == scores
    missed = component_scores([match_components(np.zeros((3, 4), bool), np.ones((3, 4), bool))])
    assert (missed.siou, missed.ppv, missed.f1) == (0, None, 0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_f1_is_that_of_the_published_rules(seed, images):
    """From scores to F1, image by image: sets of pixels, and counts at each level."""
    rng = np.random.default_rng(seed)
    threshold, sizes = 0.5, tuple(int(size) for size in rng.integers(0, 6, 2))
    matches, found, missed, false = [], 0, 0, 0
    for _ in range(images):
        scores = rng.integers(0, 5, (9, 12)) / 4  # some are the threshold itself
        is_anomaly, valid = random_mask(rng, scores.shape), rng.random(scores.shape) < 0.9
        siou, ppv = formula(scores > threshold, is_anomaly, valid, *sizes)
        levels = np.linspace(0.25, 0.75, 11)
        found += np.array([sum(value >= level for value in siou) for level in levels])
        missed += np.array([sum(value < level for value in siou) for level in levels])
        false += np.array([sum(value < level for value in ppv) for level in levels])
        matches.append(
            match_components(
                scores > threshold,
                is_anomaly,
                valid,
                min_predicted_size=sizes[0],
                min_true_size=sizes[1],
            )
        )
    if (found + missed + false).all():
        expected = (2 * found / (2 * found + missed + false)).mean()
        assert component_scores(matches).f1 == pytest.approx(expected)
