"""Data sets other than StreetHazards through run.py: a test alone, and a training run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

import run
from modules.segmentation import build_model
from tests.dataset import trees
from utils.checkpoint import load_checkpoint


def flags(root, name, *more):
    folders = ["--data_root", root / "data", "--logdir", root / "logs"]
    folders += ["--checkpoints", root / "checkpoints", "--num_workers", 0, "--nproc", 1]
    settings = ["--classifier", "cosine", "--norm_act", "iabn", "--cosine_scores"]
    return [str(word) for word in ("--name", name, *folders, *settings, *more)]


def results_of(root, dataset, name):
    return json.loads((root / "logs" / dataset / name / "results.json").read_text())


def reference_auroc(root, model, names):
    """Mean over the images of the AUROC, straight from the files with PIL and scikit-learn."""
    aurocs = []
    for name in names:
        picture = Image.open(root / "data/RoadAnomaly_jpg/frames" / f"{name}.jpg")
        # 96x64 at 1000/1280 is 75x50, rounded up to multiples of 8
        pixels = np.asarray(picture.resize((80, 56), Image.Resampling.BILINEAR)) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.inference_mode():
            logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        cosine = (logits.max(1, keepdim=True).values + 10) / 20
        score = 1 - F.interpolate(cosine, size=(64, 96), mode="bilinear")[0, 0].numpy()
        aurocs.append(roc_auc_score(trees.label((0, 2)).ravel() == 2, score.ravel()))
    return 100 * np.mean(aurocs)


def test_a_network_is_tested_on_a_set_without_classes(tmp_path, capsys):
    trees.write_road_anomaly(tmp_path / "data")
    torch.manual_seed(3)
    model = build_model(plain=True, norm_act="iabn").eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    asked = ["--dataset", "road_anomaly", "--test", "--ckpt_test", tmp_path / "tiny.pth"]
    assert run.main(flags(tmp_path, "x", *asked, "--visualize")) == 0
    results = results_of(tmp_path, "road_anomaly", "x")
    expected = reference_auroc(tmp_path, model, ["animals01_cow", "rock02_road"])
    assert results["AUROC"] == pytest.approx(expected, abs=0.05)
    assert (results["images"], results["images_scored"], results["skipped_files"]) == (2, 2, [])
    assert results["anomaly_base_rate"] == 0.5
    for figure in ("Mean IoU", "Overall Acc", "Mean Acc", "FreqW Acc"):
        assert results[figure] is None
    assert results["protocols"]["segmentation"]["figures"]["Mean IoU"] is None
    assert results["protocols"]["open set"]["figures"]["open-mIoU"] is None
    output = capsys.readouterr().out
    assert "the labels contain none of the trained classes" in output
    assert "nan" not in output
    scalars = EventAccumulator(str(tmp_path / "logs/road_anomaly/x")).Reload().Tags()["scalars"]
    assert "test/AUROC" in scalars
    assert "test/Mean IoU" not in scalars
    assert len(list((tmp_path / "logs/road_anomaly/x/pictures").glob("*.png"))) == 2


def test_components_of_the_obstacle_track_have_its_sizes(tmp_path):
    trees.write_track(tmp_path / "data", "dataset_ObstacleTrack", ".webp")
    torch.save(build_model().state_dict(), tmp_path / "tiny.pth")
    asked = ["--dataset", "road_obstacle_21", "--test", "--ckpt_test", tmp_path / "tiny.pth"]
    assert run.main(flags(tmp_path, "x", *asked)) == 0
    components = results_of(tmp_path, "road_obstacle_21", "x")["protocols"]["components"]
    assert "under 50 pixels are dropped, true ones under 10 ignored" in components["rule"]


def test_a_folder_is_trained_and_tested_without_its_bad_files(tmp_path, capsys):
    trees.write_folder(tmp_path / "data", train=4, validation=1, test=3)
    bad_image = tmp_path / "data/images/train/town/1.jpg"
    bad_label = tmp_path / "data/labels/test/town/0.png"
    bad_image.write_bytes(bad_image.read_bytes()[:700])
    bad_label.unlink()
    recipe = ["--dataset", "folder", "--no_pretrained", "--epochs", 1, "--crop_size", 32]
    recipe += ["--print_interval", 1]
    assert run.main(flags(tmp_path, "strict", *recipe)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {bad_image} cannot be decoded")
    assert run.main(flags(tmp_path, "run", *recipe, "--skip_bad_files")) == 0
    results = results_of(tmp_path, "folder", "run")
    assert (results["images"], results["images_scored"]) == (2, 2)
    assert len(results["skipped_files"]) == 1
    assert results["skipped_files"][0].startswith(f"{bad_label} is missing; ")
    rule = results["protocols"]["segmentation"]["rule"]
    assert "the 3 classes that the ground truth holds" in rule
    assert 0 <= results["Mean IoU"] <= 1
    listed = capsys.readouterr().err.split("skipped 2 samples that cannot be read:\n")[1]
    test_line, train_line = listed.splitlines()
    assert test_line.startswith(f"  test: {bad_label}")
    assert train_line.startswith(f"  train: {bad_image}")
    state = load_checkpoint(tmp_path / "checkpoints/folder/run.pth")
    assert state["classes"] == ["road", "traffic sign", "car"]
    assert state["model_state"]["cls.cls.weight"].shape[0] == 3
    tags = EventAccumulator(str(tmp_path / "logs/folder/run")).Reload().Tags()["scalars"]
    assert {"test_iou/road", "test_iou/traffic sign", "test_iou/car"} <= set(tags)


def test_a_folder_without_a_split_is_refused_before_training(tmp_path, capsys):
    trees.write_folder(tmp_path / "data", test=0)
    assert run.main(flags(tmp_path, "x", "--dataset", "folder")) == 2
    assert capsys.readouterr().err == (
        "error: argument --dataset: folder has no test images; see --help\n"
    )
