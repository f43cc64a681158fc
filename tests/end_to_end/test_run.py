"""run.py as a user starts it, on a tiny data set, against figures computed apart from it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from dataset.demo.writer import write_demo
from modules import build_model
from tests.end_to_end.command import start
from tests.utils.test_distributed import free_port
from utils.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).parents[2]
SIZES = [(40, 72), (56, 88), (64, 104), (72, 120), (80, 128)]  # 96x160 at the five scales


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of a tiny data set, its logs and its checkpoints, after one epoch of training."""
    root = tmp_path_factory.mktemp("run")
    write_demo(root / "data", train=4, validation=2, test=3, size=(160, 96), seed=3)
    folders = ["--data_root", root / "data", "--logdir", root / "logs"]
    folders += ["--checkpoints", root / "checkpoints", "--num_workers", 0, "--default"]
    training = ["--no_pretrained", "--epochs", 1, "--crop_size", 64, "--print_interval", 1]
    ended = start("--name", "one", *folders, *training, "--visualize")
    assert ended.returncode == 0, ended.stderr
    return root, folders, training


def results_of(root, name):
    return json.loads((root / "logs/streethazards" / name / "results.json").read_text())


def test_a_run_leaves_checkpoints_logs_and_pictures(tiny):
    root, *_ = tiny
    state = load_checkpoint(root / "checkpoints/streethazards/one_best.pth")
    assert (state["epoch"], state["iteration"], len(state["classes"])) == (1, 2, 13)
    assert state["options"]["crop_size"] == 64
    assert {"optimizer_state", "scheduler_state", "best_score"} <= state.keys()
    results = results_of(root, "one")
    events = EventAccumulator(str(root / "logs/streethazards/one")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert events.Scalars("train/lr")[0].value == pytest.approx(0.007 * 0.5**0.9)
    assert events.Scalars("test/AUROC")[0].value == pytest.approx(results["AUROC"], rel=1e-5)
    assert events.Scalars("validation/Mean IoU")[0].value == pytest.approx(state["best_score"])
    assert len(list((root / "logs/streethazards/one/pictures").glob("*.png"))) == 3


def test_the_tags_that_the_docs_give_for_the_published_ones_are_logged(tiny):
    root, *_ = tiny
    text = (REPOSITORY / "docs/published.md").read_text()
    table = text.split("## TensorBoard")[1].split("## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    tags = {tag for _, _, here, _ in rows for tag in re.findall(r"`([^`-][^`]+)`", here)}
    logged = EventAccumulator(str(root / "logs/streethazards/one")).Reload().Tags()
    found = {*logged["scalars"], *logged["images"]}
    found |= {tag.removesuffix("/text_summary") for tag in logged["tensors"]}
    assert tags - found == set()
    assert len(rows) == 18
    assert len(tags) == 20


def reference(root):
    """AUROC, AUPR, mean IoU in percent, straight from the files with PIL and scikit-learn."""
    state = load_checkpoint(root / "checkpoints/streethazards/one.pth")["model_state"]
    model = build_model(plain=True).eval()
    model.load_state_dict(state)
    folder = root / "data/StreetHazards/test"
    aurocs, auprs, truths, predictions = [], [], [], []
    for entry in json.loads((folder / "test.odgt").read_text()):
        picture = Image.open(folder / entry["fpath_img"]).convert("RGB")
        label = np.array(Image.open(folder / entry["fpath_segm"])).astype(int) - 1
        softmax, nearest = [], []
        for height, width in SIZES:
            scaled = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)) / 255
            scaled = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            images = torch.from_numpy(scaled).permute(2, 0, 1)[None].float()
            with torch.inference_mode():
                logits = model(images)
            full = F.interpolate(logits, size=label.shape, mode="bilinear")
            softmax.append(full.softmax(1))
            values = (logits.max(1, keepdim=True).values + 10) / 20
            nearest.append(F.interpolate(values, size=label.shape, mode="bilinear"))
        score = (1 - torch.stack(nearest).mean(0))[0, 0].numpy()
        counted, trained = label >= 0, (label >= 0) & (label < 13)
        aurocs.append(roc_auc_score(label[counted] >= 13, score[counted]))
        auprs.append(average_precision_score(label[counted] >= 13, score[counted]))
        predictions.append(torch.stack(softmax).mean(0).argmax(1)[0].numpy()[trained])
        truths.append(label[trained])
    matrix = confusion_matrix(np.concatenate(truths), np.concatenate(predictions), labels=range(13))
    hit, truth = np.diag(matrix), matrix.sum(1)
    iou = hit[truth > 0] / (truth + matrix.sum(0) - hit)[truth > 0]
    return [100 * np.mean(aurocs), 100 * np.mean(auprs), 100 * iou.mean()]


def test_metrics_equal_scikit_learn_on_the_plain_network(tiny):
    root, *_ = tiny
    results = results_of(root, "one")
    assert results["checkpoint"] == str(root / "checkpoints/streethazards/one.pth")
    found = [results["AUROC"], results["AUPR"], 100 * results["Mean IoU"]]
    assert found == pytest.approx(reference(root), abs=0.02)
    assert (results["images"], results["images_scored"]) == (3, 3)


@pytest.mark.parametrize(
    ("name", "nproc", "launcher"),
    [
        ("self", 2, ()),
        ("launch", None, ("-m", "torch.distributed.launch", "--nproc_per_node=2")),
        ("torchrun", None, ("-m", "torch.distributed.run", "--nproc_per_node=2")),
    ],
)
def test_two_processes_give_the_metrics_of_one(tiny, name, nproc, launcher):
    root, folders, _ = tiny
    checkpoint = root / "checkpoints/streethazards/one_best.pth"
    flags = ["--name", name, "--test", "--ckpt_test", checkpoint, *folders]
    if launcher:
        launcher = (*launcher, f"--master_port={free_port()}")
    ended = start(*flags, *(["--nproc", nproc] if nproc else []), launcher=launcher)
    assert ended.returncode == 0, ended.stderr
    one, two = results_of(root, "one"), results_of(root, name)
    for figure in ("AUROC", "AUPR", "FPR95", "Mean IoU", "images", "anomaly_base_rate"):
        assert two[figure] == pytest.approx(one[figure], abs=1e-9), figure


def test_two_processes_train_with_synchronised_norms(tiny):
    root, folders, training = tiny
    ended = start("--name", "pair", "--nproc", 2, *folders, *training, "--batch_size", 1)
    assert ended.returncode == 0, ended.stderr
    state = load_checkpoint(root / "checkpoints/streethazards/pair.pth")
    assert state["iteration"] == 2
    assert results_of(root, "pair")["images"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data_root", "nowhere", "--no_pretrained"], "nowhere/StreetHazards/train/train.odgt"),
        (["--test", "--ckpt_test", "gone.pth"], "gone.pth"),
        ([], "resnet50_iabn_sync.pth.tar"),
        (["--epochs", "0"], "argument --epochs"),
        (["--ignore_classes", "unicorn", "--test"], "unicorn"),
    ],
)
def test_errors_of_users_are_one_line(tiny, flags, message):
    root, folders, _ = tiny
    if "unicorn" in flags:
        flags = [*flags, "--ckpt_test", root / "checkpoints/streethazards/one.pth"]
    ended = start("--name", "error", *folders, *flags)
    assert ended.returncode == 2
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
