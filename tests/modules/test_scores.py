"""Scores by hand on tiny logits, in float64, and against the pytorch-ood package."""

import math

import numpy as np
import pytest
import torch
from pytorch_ood.detector import EnergyBased, Entropy, MaxLogit, MaxSoftmax
from torch import nn
from torch.nn import functional as F

from modules.classifier import CLASSIFIERS, Classifier, CosineClassifier
from modules.inference.network import Inference, dropout_masks
from modules.normalisation import normalised
from modules.scores import dense_crf, formulas
from modules.scores.formulas import cosine_score, msp_score
from modules.scores.maps import MAPS
from modules.scores.network_output import (
    NetworkOutput,
    confidence_and_prediction,
    mean_over_scales,
    mean_probabilities,
)
from modules.scores.registry import SCORES
from modules.scores.scorer import Scorer
from modules.scores.standardized_maxlogit import (
    max_logit_sums,
    standardized_max_logit,
    statistics_of,
)
from modules.segmentation import build_model

CPU = torch.device("cpu")


def cosine_logits(*shape, seed=0):
    return torch.empty(*shape, dtype=torch.float64).uniform_(
        -10, 10, generator=torch.Generator().manual_seed(seed)
    )


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


@pytest.mark.parametrize("scale", [1, 100])  # the second one would overflow exp without a shift
def test_shared_maps_change_no_bit_of_the_probabilities(scale):
    logits = [scale * cosine_logits(1, 13, *size).float() for size in ((4, 7), (5, 9), (8, 15))]
    before = [tensor.clone() for tensor in logits]
    expected = sum(
        F.interpolate(tensor, size=(31, 57), mode="bilinear").softmax(1) for tensor in logits
    )
    output = NetworkOutput(logits, (31, 57))
    assert torch.equal(output.probabilities, expected / 3)
    assert torch.equal(output.prediction, expected.argmax(1)[0])
    torch.testing.assert_close(output.confidence, output.probabilities.amax(1))
    assert all(map(torch.equal, logits, before))


@pytest.mark.parametrize("strip", [1, 5_000, 1 << 30])
@pytest.mark.parametrize("size", [(1, 1), (9, 13), (47, 30)])
def test_strips_give_the_maximum_of_all_probabilities(monkeypatch, size, strip):
    monkeypatch.setattr("modules.scores.network_output.STRIP_BYTES", strip)
    logits = [cosine_logits(2, 7, *low, seed=low[0]) for low in ((1, 1), (3, 5), (8, 6), (12, 4))]
    confidence, prediction = confidence_and_prediction(logits, size)
    expected, winner = mean_probabilities(logits, size).max(dim=1)
    torch.testing.assert_close(confidence, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(prediction, winner)


def test_a_score_that_needs_all_probabilities_shares_them():
    output = NetworkOutput([cosine_logits(1, 5, 4, 6)], (9, 13))
    assert torch.equal(output.probabilities.amax(1), output.confidence)
    assert torch.equal(output.probabilities.argmax(1)[0], output.prediction)


def test_prediction_of_a_tie_is_the_first_class():
    assert NetworkOutput([torch.zeros(1, 13, 2, 2)], (20, 20)).prediction.count_nonzero() == 0


def test_mean_over_scales_upsamples_first():
    first, second = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[5.0]]])
    expected = torch.tensor([[[3.0, 3.25, 3.75, 4.0]]])
    torch.testing.assert_close(mean_over_scales([first, second], (1, 4)), expected)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        # Logits 2, -1, 0: softmax 0.843795, 0.042010, 0.114195.
        (formulas.max_logit, -2.0),
        (formulas.entropy, 2.1698460 - (2 * 0.8437947 - 0.0420101)),
        (formulas.energy, -2.1698460),
        (formulas.prototype_margin, 1 - (0.2 - 0.0) / 2),
    ],
)
def test_formulas_by_hand(formula, expected):
    logits = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert formula(logits).item() == pytest.approx(expected, abs=1e-6)
    assert formula(logits.float()).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (formulas.max_logit, MaxLogit.score),
        (formulas.entropy, Entropy.score),
        (formulas.energy, EnergyBased.score),
        (lambda logits: msp_score(logits.softmax(1)) - 1, MaxSoftmax.score),
    ],
)
def test_formulas_are_those_of_pytorch_ood(ours, theirs):
    logits = cosine_logits(2, 13, 5, 6)
    # Its entropy cuts probabilities off at 1e-7.
    torch.testing.assert_close(ours(logits), theirs(logits), rtol=0, atol=1e-6 * 13)
    narrow = logits / 2
    torch.testing.assert_close(ours(narrow), theirs(narrow), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("formula", "low", "high"),
    [
        (formulas.max_logit, -10, 10),
        (formulas.entropy, 0, math.log(13)),
        (formulas.energy, -10 - math.log(13), 10 - math.log(13)),
        (formulas.prototype_margin, 0, 1),
    ],
)
def test_ranges_are_reached_but_not_left(formula, low, high):
    one, none, all_ = (torch.full((1, 13, 1, 1), value).double() for value in (-10, -10, 10))
    one[0, 3] = 10
    extremes = [formula(logits).item() for logits in (one, none, all_)]
    assert min(extremes) >= low - 1e-9
    assert max(extremes) <= high + 1e-9
    # A softmax of cosine logits is never quite one-hot.
    assert min(extremes) == pytest.approx(low, abs=1e-6)
    assert max(extremes) == pytest.approx(high, abs=1e-9)
    found = formula(cosine_logits(1, 13, 20, 20))
    assert low <= found.min()
    assert found.max() <= high


def test_statistics_are_those_of_numpy():
    parts = [
        [cosine_logits(1, 3, 4, 5, seed=s), cosine_logits(1, 3, 2, 2, seed=s + 9)] for s in (1, 2)
    ]
    pixels = np.concatenate([t[0].flatten(1).numpy() for part in parts for t in part], axis=1)
    found = statistics_of(sum(max_logit_sums(part) for part in parts))
    for index in range(3):
        own = pixels.max(0)[pixels.argmax(0) == index]
        assert found["mean"][index].item() == pytest.approx(own.mean(), abs=1e-12)
        assert found["deviation"][index].item() == pytest.approx(own.std(), abs=1e-9)


def test_classes_without_spread_get_the_statistics_of_all_pixels():
    # Class 0 wins with 2 and 4, class 1 with 3 alone, class 2 never.
    logits = torch.tensor([[2.0, 4.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]).view(1, 3, 1, 3)
    found = statistics_of(max_logit_sums([logits]))
    overall = (2 / 3) ** 0.5
    torch.testing.assert_close(found["mean"], torch.tensor([3.0, 3.0, 3.0]).double())
    torch.testing.assert_close(found["deviation"], torch.tensor([1.0, overall, overall]).double())
    constant = statistics_of(max_logit_sums([torch.zeros(1, 3, 2, 2)]))
    assert standardized_max_logit(torch.zeros(1, 3, 1, 1), **constant).item() == 0


def test_standardized_max_logit_uses_the_statistics_of_the_predicted_class():
    mean, deviation = torch.tensor([5.0, 1.0]), torch.tensor([2.0, 0.5])
    logits = torch.tensor([[4.0, 0.0], [3.0, 2.0]]).view(1, 2, 1, 2)
    found = standardized_max_logit(logits, mean, deviation)
    torch.testing.assert_close(found, torch.tensor([[[0.5, -2.0]]]))  # -(4-5)/2, -(2-1)/0.5


def test_mutual_information_by_hand():
    # Two passes of two classes: p = 0.9 and 0.3, mean 0.6.
    passes = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)

    def entropy(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    samples = passes.log().view(2, 2, 1, 1) + 3  # softmax takes a constant away
    found = formulas.mutual_information(samples)
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(entropy(0.6) - (entropy(0.9) + entropy(0.3)) / 2)
    same = formulas.mutual_information(samples[:1].expand(5, -1, -1, -1))
    assert same.item() == pytest.approx(0, abs=1e-12)
    opposed = torch.tensor([[50.0, -50.0], [-50.0, 50.0]]).view(2, 2, 1, 1)
    assert formulas.mutual_information(opposed).item() == pytest.approx(math.log(2), abs=1e-6)
    assert formulas.mutual_information(cosine_logits(9, 13, 8, 8).float() / 1e4).min() >= 0


def test_dropout_masks_are_draws_of_dropout():
    masks = dropout_masks(400, 50, 0.1, torch.Generator().manual_seed(0))
    assert set(masks.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}
    assert (masks > 0).double().mean().item() == pytest.approx(0.9, abs=0.01)  # 4.7 deviations


def random_images():
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in [(40, 56), (48, 64)]]


@pytest.mark.parametrize("classifier", ["cosine", "standard"])
def test_stochastic_passes_are_forward_passes_with_dropout_alone_active(classifier):
    torch.manual_seed(0)
    model = build_model(classifier=classifier).eval()
    images = random_images()
    inference = Inference(model, CPU, "fp32")
    features = inference.features(images)
    logits, samples = inference.classify(features), inference.samples(features, 3, seed=7)
    generator = torch.Generator().manual_seed(7)
    dropout = model.head.conv_last[-1]
    assert isinstance(dropout, nn.Dropout2d)
    with torch.inference_mode():
        for image, found, sampled in zip(images, logits, samples, strict=True):
            torch.testing.assert_close(found, inference.logits([image])[0], rtol=0, atol=1e-6)
            masks = dropout_masks(3, 512, dropout.p, generator)
            network_input = normalised(image[None])
            for mask, one in zip(masks, sampled, strict=True):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(nn.Dropout2d, "forward", lambda _, x, mask=mask: x * mask)
                    torch.testing.assert_close(one, model(network_input)[0], rtol=1e-4, atol=1e-4)
    assert not torch.equal(samples[0][0], samples[0][1])


def states(channels):
    """Of all fitted scores: max logits of mean 0 and deviation 1, and random features."""
    random = torch.randn(30, channels, generator=torch.Generator().manual_seed(0))
    whitening = {"centre": random[0], "whitening": torch.eye(channels), "means": random[1:5]}
    return {
        "standardized_maxlogit": {"mean": torch.zeros(13), "deviation": torch.ones(13)},
        "class_mean": {"means": random[:13]},
        "mahalanobis": whitening,
        "knn": {"sample": F.normalize(random, dim=1)},
    }


@pytest.fixture(scope="module")
def looked():
    torch.manual_seed(0)
    inference = Inference(build_model(), CPU, "fp32")
    names = [name for name in SCORES if not SCORES[name].missing("cosine")]
    scorer = Scorer(inference, names, states(512), passes=2, seed=42)
    images = random_images()
    picture = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8)
    return scorer, images, picture, scorer.forward(images, (50, 70), picture, 5)


def test_every_score_is_a_finite_map_from_one_forward_pass(looked):
    scorer, _, _, output = looked
    maps = scorer.maps(output)
    assert list(maps) == list(scorer.names)
    for name, score in maps.items():
        assert score.shape == (50, 70), name
        assert score.isfinite().all(), name
        assert score.max() > score.min(), name
    torch.testing.assert_close(maps["prototype"], cosine_score(output.logits, (50, 70))[0])
    probabilities = mean_probabilities(output.logits, (50, 70))
    torch.testing.assert_close(maps["msp"], msp_score(probabilities)[0])
    # Mean 0 and deviation 1 leave the max logit; (v + 10) / 20 is the prototype score.
    torch.testing.assert_close(maps["standardized_maxlogit"], maps["maxlogit"])
    torch.testing.assert_close((maps["maxlogit"] + 10) / 20, maps["prototype"])


def test_dropout_depends_on_seed_and_index_alone(looked):
    scorer, images, picture, output = looked
    again = scorer.forward(images, (50, 70), picture, 5)
    other = scorer.forward(images, (50, 70), picture, 6)
    assert all(map(torch.equal, output.samples, again.samples))
    assert not torch.equal(output.samples[0], other.samples[0])


def test_samples_are_drawn_only_where_a_score_needs_them(looked):
    scorer, images, picture, _ = looked
    output = Scorer(scorer.inference, ["prototype"]).forward(images, (50, 70), picture, 5)
    assert output.samples == ()


@pytest.mark.skipif(
    not dense_crf.is_installed(),
    reason="the optional package pydensecrf2 is not installed: pip install -e .[crf]",
)
def test_dense_crf_is_mean_field_with_every_pair_summed():
    height, width, classes = 6, 8, 3
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(classes), size=(height, width)).transpose(2, 0, 1)
    picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture[:, :4] = 30  # one half is smooth
    places = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2).astype(float)
    colours = picture.reshape(-1, 3).astype(float)

    def squared(points):
        return ((points[:, None] - points[None]) ** 2).sum(-1)

    smooth = np.exp(-squared(places) / (2 * 3**2))
    appearance = np.exp(-squared(places) / (2 * 80**2) - squared(colours) / (2 * 13**2))
    unary = -np.log(probabilities.reshape(classes, -1))
    marginals = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(10):
        message = np.zeros_like(marginals)
        for kernel, weight in ((smooth, 3), (appearance, 10)):
            norm = 1 / np.sqrt(kernel.sum(1))  # the package normalises its kernels symmetrically
            message += weight * (marginals * norm) @ kernel * norm
        marginals = np.exp(-unary + message)
        marginals /= marginals.sum(0)
    found = dense_crf.smoothed_probabilities(
        torch.from_numpy(probabilities)[None].float(), torch.from_numpy(picture)
    )
    found = found[0].reshape(classes, -1).numpy()
    # Its lattice approximates the kernels; on noise the answers are near, not equal.
    assert np.abs(found - marginals).mean() < 0.05
    assert (found.argmax(0) == marginals.argmax(0)).mean() > 0.9
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


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


def test_every_score_has_its_map():
    assert list(MAPS) == [name for name, score in SCORES.items() if not score.fitted]
    assert all((score.map.fit is not None) == score.fitted for score in SCORES.values())
