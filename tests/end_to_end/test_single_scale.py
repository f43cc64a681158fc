"""A test at one scale is measured at the size of the network's input, as published."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve
from torch.nn import functional as F

import run
from dataset.demo import write_demo
from modules.backbones import BACKBONES
from tests.reliability.tiny import TINY, tiny_network

SIZES = {"input": (568, 1000), "label": (720, 1280)}


@pytest.fixture(scope="module")
def network():
    """A tiny network instead of the ResNet, which takes seconds per image."""
    torch.manual_seed(3)
    model = tiny_network().eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet50", TINY)
        yield model


def write_data(root, images, size, network):
    """Test images of (width, height) `size`, drawn at a fourth of it, which is quicker."""
    small = size[0] // 4, size[1] // 4
    write_demo(root / "data", train=0, validation=0, test=images, size=small, seed=3)
    for path in (root / "data").rglob("*.png"):
        with Image.open(path) as picture:
            picture.resize(size, Image.Resampling.NEAREST).save(path)
    torch.save(network.state_dict(), root / "tiny.pth")


def results_of(root, *flags):
    words = ["--test", "--ckpt_test", root / "tiny.pth", "--data_root", root / "data", "--nproc", 1]
    words += ["--logdir", root / "logs", "--checkpoints", root / "checkpoints", "--num_workers", 0]
    words += ["--default", "--no_multi_scala", *flags]
    assert run.main([str(word) for word in words]) == 0
    return json.loads((root / "logs/streethazards/Experiment/results.json").read_text())


def reference(root, model, size):
    """Metrics at (height, width) `size`, straight from the files with PIL and scikit-learn."""
    folder = root / "data/StreetHazards/test"
    metrics, truths, predictions = [], [], []
    for entry in json.loads((folder / "test.odgt").read_text()):
        picture = Image.open(folder / entry["fpath_img"]).convert("RGB")
        label = Image.open(folder / entry["fpath_segm"])
        label = np.array(label.resize(size[::-1], Image.Resampling.NEAREST)).astype(int) - 1
        pixels = np.asarray(picture.resize((1000, 568), Image.Resampling.BILINEAR)) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.inference_mode():
            logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        prediction = F.interpolate(logits, size=size, mode="bilinear").argmax(1)[0].numpy()
        cosine = (logits.max(1, keepdim=True).values + 10) / 20
        score = 1 - F.interpolate(cosine, size=size, mode="bilinear")[0, 0].numpy()
        counted, trained = label >= 0, (label >= 0) & (label < 13)
        truth, found = label[counted] >= 13, score[counted]
        false, true, _ = roc_curve(truth, found, drop_intermediate=False)
        fpr95 = false[::-1][np.abs(true - 0.95)[::-1].argmin()]  # of one recall the last counts
        metrics.append([roc_auc_score(truth, found), average_precision_score(truth, found), fpr95])
        predictions.append(prediction[trained])
        truths.append(label[trained])
    matrix = confusion_matrix(np.concatenate(truths), np.concatenate(predictions), labels=range(13))
    hit, truth = np.diag(matrix), matrix.sum(1)
    iou = hit[truth > 0] / (truth + matrix.sum(0) - hit)[truth > 0]
    return [*(100 * np.mean(metrics, axis=0)), 100 * iou.mean()]


def test_metrics_equal_scikit_learn_at_either_size(tmp_path, network):
    write_data(tmp_path, 1, (1280, 720), network)
    expected = {name: reference(tmp_path, network, size) for name, size in SIZES.items()}
    for name, flags in {"input": (), "label": ("--eval_size", "label")}.items():
        results = results_of(tmp_path, *flags)
        found = [results[figure] for figure in ("AUROC", "AUPR", "FPR95")]
        found.append(100 * results["Mean IoU"])
        assert found == pytest.approx(expected[name], abs=0.005)
        height, width = SIZES[name]
        for protocol in results["protocols"].values():
            assert f"; measured at {height}x{width}, the size of the " in protocol["rule"]
        assert results["checkpoint"] == str(tmp_path / "tiny.pth")
    # The two sizes can be told apart by what is compared above.
    assert expected["input"] != pytest.approx(expected["label"], abs=0.005)


def test_pictures_and_scores_that_look_at_colours_have_the_same_size(tmp_path, network):
    write_data(tmp_path, 1, (320, 192), network)
    crf = importlib.util.find_spec("pydensecrf") is not None
    results = results_of(tmp_path, "--visualize", "--score", "msp,msp_crf" if crf else "msp")
    assert results["measured_at"].startswith("152x256, the size of the network's input")
    assert 0 < results["scores"]["msp_crf" if crf else "msp"]["AUROC"] < 100
    (picture,) = (tmp_path / "logs/streethazards/Experiment/pictures").glob("*.png")
    assert Image.open(picture).width == 2 * 480
