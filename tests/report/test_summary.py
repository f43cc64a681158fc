import subprocess

import pytest
import torch

from metrics.anomaly import AnomalyMetrics
from metrics.evaluation import ImageRecord
from report.environment import REPOSITORY, commit, environment
from report.summary import per_image_rows, summary, warnings

FOUND = {"AUPR": 15.7, "AUROC": 86.1, "FPR95": 31.7}
RESULTS = {
    **FOUND,
    "Mean IoU": 0.6492,
    "Overall Acc": 0.93,
    "Mean Acc": 0.7,
    "images": 32,
    "images_scored": 30,
    "anomaly_base_rate": 0.0272,
    "constant_score_maps": [],
    "checkpoint": "checkpoints/demo.pth",
    "scores": {"prototype": FOUND, "msp": {"AUPR": 9.8, "AUROC": 80.0, "FPR95": 48.4}},
}


def test_summary_of_two_scores(tmp_path):
    (tmp_path / "pictures").mkdir()
    assert summary(RESULTS, "streethazards", tmp_path) == [
        "test of streethazards: 32 images, 30 with anomalies, checkpoints/demo.pth",
        "Mean IoU 64.92 %   Overall Acc 93.00 %   Mean Acc 70.00 %",
        "score        AUPR   AUROC   FPR95   %, mean over the images with anomalies",
        "prototype   15.70   86.10   31.70",
        "msp          9.80   80.00   48.40",
        "chance       2.72   50.00   95.00   AUPR is 5.8 times the anomaly base rate",
        f"results.json, per_image.csv, pictures/ in {tmp_path}",
        f"curves: tensorboard --logdir {tmp_path}",
    ]


@pytest.mark.parametrize(("scores", "note"), [(9, ""), (30, "21 more in results.json")])
def test_summary_has_fifteen_lines_at_most(tmp_path, scores, note):
    results = RESULTS | {"scores": {f"score_{number}": FOUND for number in range(scores)}}
    lines = summary(results, "streethazards", tmp_path)
    assert len(lines) <= 15
    assert lines[11].startswith("score_8 ")
    assert lines[11].endswith(note or "31.70")


def test_summary_without_classes_and_without_anomalies(tmp_path):
    nothing = dict.fromkeys(("Mean IoU", "Overall Acc", "Mean Acc"), float("nan"))
    results = RESULTS | nothing | {"images_scored": 0}
    lines = summary(results, "road_anomaly", tmp_path)
    assert lines[1].startswith("no IoU and no accuracy")
    assert not any("AUPR" in line for line in lines)
    assert warnings(results) == [
        "no image has both normal and anomalous pixels: no anomaly metrics"
    ]


def test_a_constant_score_is_warned_of():
    (line,) = warnings(RESULTS | {"constant_score_maps": ["a.png", "b.png"]})
    assert "constant over 2 of 32 images, such as a.png" in line


def test_rows_of_per_image_csv():
    records = [
        ImageRecord(1, "b.png", None, 0.0, False, (2, 2)),
        ImageRecord(0, "a.png", AnomalyMetrics(0.875, 0.5, 0.25), 0.25, False, (2, 2)),
    ]
    assert per_image_rows({"msp": records})[1:] == [
        (0, "a.png", "msp", 25.0, 87.5, 50.0, 25.0),
        (1, "b.png", "msp", 0.0, "", "", ""),
    ]


def test_environment_names_commit_and_versions():
    head = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    if head:
        assert commit() in (head, f"{head}-dirty")
    found = environment(torch.device("cpu"), "fp32", 2)
    assert (found["torch"], found["precision"], found["processes"]) == (
        torch.__version__,
        "fp32",
        2,
    )
    assert found["device"]
