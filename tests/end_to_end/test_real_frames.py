"""Four real frames of RoadAnomaly, as they are published, through test, predict and evaluate."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import run
from dataset import look
from dataset.registry import open_dataset
from metrics import evaluate
from modules.backbones import BACKBONES
from tests.reliability.tiny import TINY, tiny_network
from utils.logger import Logger

REAL = Path(__file__).parents[3] / "shared/real/road_anomaly"
pytestmark = pytest.mark.skipif(
    not REAL.is_dir(), reason="RoadAnomaly's frames are not beside the checkout (../shared/real)"
)
FRAMES = (
    "animals01_Guiguinto_railway_station_Calves",
    "animals06_sheep_roads_lambs",
    "animals10_bovine_cattle_beside_road",
    "animals22_red_fox_on_road",
)


def label_of(frame):
    folder = REAL / "RoadAnomaly_jpg/frames"
    return np.asarray(Image.open(folder / f"{frame}.labels/labels_semantic.png"))


def test_frames_are_read_as_they_are_published():
    pictures = open_dataset("road_anomaly", REAL, "test")
    assert pictures.names == [f"frames/{frame}.jpg" for frame in FRAMES]
    for number, frame in enumerate(FRAMES):
        image, label = pictures[number]
        assert (image.size, image.mode) == ((1280, 720), "RGB")
        assert np.array_equal(np.asarray(label) == 254, label_of(frame) == 2)
        assert np.array_equal(np.asarray(label) == 253, label_of(frame) == 0)


def test_their_sheet_and_shares(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    words = ["--dataset", "road_anomaly", "--data_root", str(REAL), "--out", str(out)]
    assert look.main(words) == 0
    anomalous = 100 * np.mean([(label_of(frame) == 2).mean() for frame in FRAMES])
    assert f"{anomalous:.3f}" in capsys.readouterr().out
    assert Image.open(out).size == (1928, 654)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A tiny network with random prototypes."""
    monkeypatch.setitem(BACKBONES, "resnet50", TINY)
    monkeypatch.setattr(Logger, "figure", lambda *_: None)
    torch.manual_seed(1)
    options = {"classifier": "cosine", "cosine_scores": True, "multi_scala": True}
    state = {"model_state": tiny_network().state_dict(), "options": options}
    torch.save(state, tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_test_predict_and_evaluate_agree_with_scikit_learn(tmp_path, checkpoint):
    common = ["--dataset", "road_anomaly", "--ckpt_test", checkpoint, "--num_workers", 0]
    tested = ["--test", "--classifier", "cosine", "--cosine_scores", "--multi_scala"]
    folders = ["--data_root", REAL, "--logdir", tmp_path / "logs", "--nproc", 1]
    assert run.main([str(word) for word in (*tested, *common, *folders, "--name", "real")]) == 0
    results = json.loads((tmp_path / "logs/road_anomaly/real/results.json").read_text())

    pictures = [REAL / "RoadAnomaly_jpg/frames" / f"{frame}.jpg" for frame in FRAMES]
    predicted = ["--predict", *pictures, "--out", tmp_path / "out", "--nproc", 1]
    assert run.main([str(word) for word in (*predicted, *common)]) == 0
    scores = [np.load(tmp_path / "out/score" / f"{frame}.npy") for frame in FRAMES]
    truth = [label_of(frame) == 2 for frame in FRAMES]
    for metric, reference in (("AUROC", roc_auc_score), ("AUPR", average_precision_score)):
        expected = [
            100 * reference(label.ravel(), score.ravel())
            for label, score in zip(truth, scores, strict=True)
        ]
        assert results[metric] == pytest.approx(np.mean(expected), abs=0.01)
    assert (results["images"], results["images_scored"], results["skipped_files"]) == (4, 4, [])
    base_rate = np.mean([label.mean() for label in truth])
    assert results["anomaly_base_rate"] == pytest.approx(base_rate, abs=1e-6)

    labels = tmp_path / "labels"
    labels.mkdir()
    for frame in FRAMES:
        Image.fromarray(label_of(frame)).save(labels / f"{frame}.png")
    words = ["--scores", tmp_path / "out/score", "--labels", labels, "--label_offset", 0]
    words += ["--num_classes", 1, "--anomaly_index", 2, "--class_names", "normal"]
    again = evaluate.evaluate(evaluate.parse_arguments([str(word) for word in words]))
    for metric in ("AUROC", "AUPR", "FPR95"):
        theirs = again["protocols"]["per image"]["figures"][metric]
        assert theirs == pytest.approx(results[metric], abs=0.01)
