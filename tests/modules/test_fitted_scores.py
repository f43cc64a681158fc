"""Fitted scores against pytorch-ood and scikit-learn, and their file beside the checkpoint."""

from math import fsum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_ood.detector import KNN, Mahalanobis
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestCentroid
from torch import nn
from torch.nn import functional as F

from modules.scores import knn
from modules.scores.fitted import fitted_states, kept_state, state_path
from modules.scores.network_output import NetworkOutput
from modules.scores.registry import SCORES
from modules.scores.score_map import add_exact, exact, labelled_features, rounded
from modules.scores.standardized_maxlogit import max_logit_sums, statistics_of
from utils.distributed import Process
from utils.errors import PansError

PROCESS = Process(0, 0, 1, torch.device("cpu"))
FITTED = [name for name, score in SCORES.items() if score.fitted]
CHANNELS, CLASSES = 6, 4


class Network:
    """A network of two 1x1 convolutions that counts the images it is run on."""

    device = torch.device("cpu")

    def __init__(self, dtype=torch.float64):
        torch.manual_seed(0)
        self.runs = 0
        self.encoder = nn.Conv2d(3, CHANNELS, 1).to(dtype)
        self.classifier = nn.Conv2d(CHANNELS, CLASSES, 1).to(dtype)

    def features(self, images):
        self.runs += 1
        return [self.encoder(image[None]).tanh() for image in images]

    def classify(self, features):
        return [self.classifier(one) for one in features]


class Loader(list):
    """Images with a label each; class 3 has none, and 255 is ignored."""

    def __init__(self, images, folder=Path("nowhere"), first=0, step=1, shift=0):
        generator = torch.Generator().manual_seed(1)
        samples = []
        for index, image in enumerate(images):
            label = torch.randint(0, 4, image.shape[1:], generator=generator)
            label[label == 3] = 255
            samples.append(
                SimpleNamespace(images=[image + shift], label=label.to(torch.uint8), index=index)
            )
        super().__init__(samples[first::step])
        names = [f"{index}.png" for index in range(len(images))]
        labels = [f"{index}_label.png" for index in range(len(images))]
        pictures = SimpleNamespace(names=names, label_names=labels, folder=folder)
        self.dataset = SimpleNamespace(reader=SimpleNamespace(pictures=pictures))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(2)
    sizes = [(14, 15), (8, 12), (9, 9)]
    return [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "best.pth"
    path.write_bytes(b"weights")
    return path


def training_features(loader):
    """(P, D) features and (P,) classes of all known pixels, by plain loops."""
    network, features, classes = Network(), [], []
    for sample in loader:
        (found,) = network.features(sample.images)
        for row, column in np.ndindex(*sample.label.shape):
            if sample.label[row, column] < 255:
                features.append(found[0, :, row, column].detach())
                classes.append(int(sample.label[row, column]))
    return torch.stack(features), torch.tensor(classes)


def map_of_a_test(name, states):
    """Features of a test image, and the score's part for them."""
    shape = (5, 7)
    features = torch.randn(1, CHANNELS, *shape, generator=torch.Generator().manual_seed(3)).double()
    output = NetworkOutput([torch.zeros(1, CLASSES, *shape)], shape, [features], states=states)
    (part,) = SCORES[name].map.parts_of(output)
    return features.flatten(2)[0].T, part.flatten()


@pytest.fixture
def states(images, checkpoint):
    return fitted_states(FITTED, Network(), Loader(images), PROCESS, checkpoint, [], 7)


def test_class_mean_is_the_cosine_distance_from_the_nearest_centroid(images, states):
    features, classes = training_features(Loader(images))
    centroids = NearestCentroid().fit(features.numpy(), classes.numpy()).centroids_
    # The map's own precision is float32.
    tested, found = map_of_a_test("class_mean", states)
    expected = pairwise_distances(tested.numpy(), centroids, metric="cosine").min(axis=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_mahalanobis_is_that_of_scikit_learn_and_pytorch_ood(images, states):
    features, classes = training_features(Loader(images))
    centroids = np.stack([features[classes == index].mean(0).numpy() for index in range(3)])
    shared = EmpiricalCovariance(assume_centered=True)
    shared.fit(features.numpy() - centroids[classes.numpy()])
    tested, found = map_of_a_test("mahalanobis", states)
    expected = np.min([shared.mahalanobis(tested.numpy() - one) for one in centroids], axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    theirs = Mahalanobis(None).fit_features(features.float(), classes)
    # Half the distance under the sum, not the mean, of the products.
    halves = theirs.predict_features(tested.float()) * 2 * len(features)
    torch.testing.assert_close(found.float(), halves, rtol=1e-3, atol=1e-3)


def test_mahalanobis_leaves_out_directions_without_variance(images, checkpoint):
    network = Network()
    with torch.no_grad():
        network.encoder.weight[4:] = 0  # two channels of constants
    (state,) = fitted_states(
        ["mahalanobis"], network, Loader(images), PROCESS, checkpoint, []
    ).values()
    assert state["whitening"].shape == (CHANNELS, 4)
    assert state["whitening"].isfinite().all()


def test_knn_is_that_of_pytorch_ood(images, states):
    features, classes = training_features(Loader(images))
    theirs = KNN(None, k=knn.NEIGHBOUR).fit_features(features, classes)
    tested, found = map_of_a_test("knn", states)
    torch.testing.assert_close(found, theirs.predict_features(tested))
    assert len(states["knn"]["sample"]) == len(features)
    few = knn.neighbour_distance(tested, F.normalize(features[:3], dim=1))
    farthest = torch.cdist(F.normalize(tested, dim=1), F.normalize(features[:3], dim=1)).amax(1)
    torch.testing.assert_close(few, farthest)


def test_chunks_change_nothing(states, monkeypatch):
    _, whole = map_of_a_test("knn", states)
    monkeypatch.setattr(knn, "CHUNK", 4)
    torch.testing.assert_close(map_of_a_test("knn", states)[1], whole)


def test_the_sample_is_random_of_fixed_size_and_depends_on_the_seed(images, monkeypatch, tmp_path):
    monkeypatch.setattr(knn, "SAMPLE_SIZE", 50)
    features, _ = training_features(Loader(images))
    directions, counts = F.normalize(features, dim=1), np.zeros(len(features))
    samples = []
    for seed in range(60):
        checkpoint = tmp_path / str(seed)
        checkpoint.touch()
        loader = Loader(images)
        state = fitted_states(["knn"], Network(), loader, PROCESS, checkpoint, [], seed)["knn"]
        samples.append(state["sample"])
        nearest = torch.cdist(state["sample"], directions)
        assert len(nearest) == 50
        assert nearest.amin(1).max() < 1e-6
        counts[nearest.argmin(1).numpy()] += 1
    assert not torch.equal(samples[0], samples[1])
    assert counts.max() <= 60  # no pixel twice
    share = 50 / len(features)
    assert abs(counts[:100].mean() / 60 - share) < 0.04  # the first image's, drawn as the last's
    assert abs(counts[-50:].mean() / 60 - share) < 0.04


def test_labels_are_resized_to_the_nearest_pixel_of_every_scale():
    label = torch.arange(36, dtype=torch.uint8).view(6, 6)
    label[1, 1] = 255
    features = [torch.arange(4.0).view(1, 1, 2, 2), torch.arange(36.0).view(1, 1, 6, 6)]
    logits = [torch.zeros(1, 100, 2, 2)]
    output = NetworkOutput(logits, (6, 6), features)
    found, classes = labelled_features(output, label)
    assert found.flatten().tolist() == [1, 2, 3, *range(7), *range(8, 36)]
    assert classes.tolist() == [10, 25, 28, *range(7), *range(8, 36)]


def test_exact_sums_do_not_depend_on_the_order():
    generator = torch.Generator().manual_seed(0)
    values = 10.0 ** (20 * torch.rand(50, 7, generator=generator, dtype=torch.float64) - 10)
    values *= torch.randn(50, 7, generator=generator, dtype=torch.float64).sign()
    values[0] = -1e-30  # its fraction is rounded to a whole

    def total(order):
        first, *others = ({"sum": exact(values[index])} for index in order)
        for state in others:
            first = add_exact(first, state)
        return first["sum"]

    forward, backward = total(range(50)), total(range(49, -1, -1))
    assert torch.equal(forward, backward)
    expected = [fsum(column) for column in values.T.tolist()]
    np.testing.assert_allclose(rounded(forward).numpy(), expected, rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e19])
def test_values_that_cannot_be_summed_are_refused(value):
    with pytest.raises(PansError, match="not finite, or too large"):
        exact(torch.tensor([1.0, value]).double())


def test_fitted_states_do_not_depend_on_the_distribution_of_images(images, checkpoint, monkeypatch):
    monkeypatch.setattr(knn, "SAMPLE_SIZE", 50)
    one = fitted_states(FITTED, Network(), Loader(images), PROCESS, checkpoint, [], 7)
    sent = []  # what each of two processes sends to all
    monkeypatch.setattr(
        "modules.scores.fitted.gather_objects", lambda own: [sent.append(own) or own]
    )
    for rank in (0, 1):
        checkpoint.write_bytes(bytes(rank))
        share = Loader(images, first=rank, step=2)
        fitted_states(FITTED, Network(), share, PROCESS, checkpoint, [], 7)
    monkeypatch.setattr("modules.scores.fitted.gather_objects", lambda own: sent[::-1])
    checkpoint.write_bytes(b"once more")
    two = fitted_states(FITTED, Network(), Loader([]), PROCESS, checkpoint, [], 7)
    for name in FITTED:
        for key, value in one[name].items():
            assert torch.equal(value, two[name][key]), (name, key)


@torch.inference_mode()
def test_standardized_maxlogit_has_the_moments_of_all_pixels(images, states):
    network = Network()
    logits = [network.classify(network.features(sample.images)) for sample in Loader(images)]
    expected = statistics_of(sum(max_logit_sums(one) for one in logits))
    for name, value in states["standardized_maxlogit"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0)


def test_scores_are_fitted_once_for_the_same_weights_images_and_settings(images, checkpoint):
    network, loader = Network(), Loader(images)
    runs = []
    for settings in (["bf16"], ["bf16"], ["fp32"], ["fp32"]):
        found = fitted_states(FITTED, network, loader, PROCESS, checkpoint, settings)
        again = fitted_states(FITTED[::-1], network, loader, PROCESS, checkpoint, settings)
        assert [*found] == FITTED
        for name in FITTED:
            assert all(torch.equal(found[name][key], again[name][key]) for key in found[name])
        runs.append(network.runs)
    assert runs == [3, 3, 6, 6]
    checkpoint.write_bytes(b"other weights")
    fitted_states(FITTED, network, loader, PROCESS, checkpoint, ["fp32"])
    assert network.runs == 9
    fitted_states(FITTED, network, Loader(images[:1]), PROCESS, checkpoint, ["fp32"])
    assert network.runs == 10
    fitted_states(FITTED, network, Loader(images[:1]), PROCESS, checkpoint, ["fp32"], 1)
    assert network.runs == 11  # for knn alone
    fitted_states(["class_mean"], network, Loader(images[:1]), PROCESS, checkpoint, ["fp32"], 2)
    assert network.runs == 11


@pytest.mark.parametrize("changed", ["0.png", "0_label.png"])
def test_rewritten_files_are_used_again(changed, images, checkpoint, tmp_path):
    network, loader = Network(), Loader(images, tmp_path)
    runs = []
    for content in ("a", "a", "another"):
        if not runs or content == "another":
            (tmp_path / changed).write_text(content)
        fitted_states(["class_mean"], network, loader, PROCESS, checkpoint, [])
        runs.append(network.runs)
    assert runs == [3, 3, 6]


def test_without_the_images_weights_and_settings_decide(images, checkpoint):
    assert kept_state("knn", checkpoint, ["fp32"], 7) is None
    fitted = fitted_states(["knn"], Network(), Loader(images), PROCESS, checkpoint, ["fp32"], 7)
    kept = kept_state("knn", checkpoint, ["fp32"], 7)
    assert torch.equal(kept["sample"], fitted["knn"]["sample"])
    assert kept_state("knn", checkpoint, ["bf16"], 7) is None
    assert kept_state("knn", checkpoint, ["fp32"], 8) is None
    checkpoint.write_bytes(b"other weights")
    assert kept_state("knn", checkpoint, ["fp32"], 7) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"PK\x03\x04 and no more"])
def test_a_file_of_something_else_is_replaced(content, images, checkpoint):
    state_path("class_mean", checkpoint).write_bytes(content)
    network = Network()
    fitted_states(["class_mean"], network, Loader(images), PROCESS, checkpoint, [])
    assert network.runs == 3
    assert kept_state("class_mean", checkpoint, []) is not None


def test_with_a_read_only_folder_the_score_is_fitted_again(images, checkpoint):
    state_path("class_mean", checkpoint).mkdir()  # it refuses root as well
    network = Network()
    for runs in (3, 6):
        fitted_states(["class_mean"], network, Loader(images), PROCESS, checkpoint, [])
        assert network.runs == runs


@pytest.mark.parametrize("name", ["class_mean", "mahalanobis", "knn"])
def test_images_without_a_known_pixel_are_refused(name, images, checkpoint):
    loader = Loader(images)
    for sample in loader:
        sample.label.fill_(255)
    with pytest.raises(PansError, match=f"{name}: no training label has a known class"):
        fitted_states([name], Network(), loader, PROCESS, checkpoint, [])
