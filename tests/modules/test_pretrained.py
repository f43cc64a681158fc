"""Weight files as they are spread: what they are taken for, and the network they make."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet50_Weights

from modules.backbones import BACKBONES, Backbone
from modules.resnet import STRIDES_AND_DILATIONS
from modules.segmentation import build_model
from modules.weights.pretrained import (
    CHECKPOINT,
    IMAGENET,
    KNOWN_MD5,
    TORCHVISION,
    backbone_weights,
    find_backbone_file,
    identify,
    load_backbone,
    main,
    read_weights,
)
from utils.checkpoint import CheckpointError, WeightsError, load_checkpoint

REPOSITORY = Path(__file__).parents[2]


def randomise_norms(network: nn.Module) -> None:
    """Scales of either sign, none near 0, and statistics away from their initial ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.2)
            with torch.no_grad():
                module.weight.mul_(torch.randn(module.num_features).sign())
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)


@pytest.fixture(scope="module")
def imagenet_file(tmp_path_factory):
    """A file of the published layout, and the body it came from."""
    torch.manual_seed(0)
    body = build_model().body
    randomise_norms(body)
    state = {f"module.{key}": value for key, value in body.state_dict().items()}
    state = {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}
    state["module.classifier.fc.weight"] = torch.zeros(1000, 2048)
    state["module.classifier.fc.bias"] = torch.zeros(1000)
    content = {
        "epoch": 90,
        "arch": "resnet50",
        "state_dict": state,
        "best_prec1": np.float64(76.1),
        "optimizer": {"state": {}, "param_groups": []},
    }
    folder = tmp_path_factory.mktemp("pretrained")
    torch.save(content, folder / "resnet50.pth.tar")
    return folder / "resnet50.pth.tar", body


@pytest.fixture
def small_blocks(monkeypatch):
    """One block a stage: the same code, in a tenth of the time."""
    monkeypatch.setitem(BACKBONES, "resnet50", Backbone((1, 1, 1, 1)))


# The ImageNet file with in-place ABN


def test_prefix_is_stripped_and_classifier_dropped(imagenet_file):
    path, original = imagenet_file
    weights = read_weights(path)
    assert (weights.kind, weights.backbone, weights.epoch) == (IMAGENET, "resnet50", 90)
    body = build_model().body
    load_backbone(body, weights, plain_norms=False)
    for key, value in original.state_dict().items():
        torch.testing.assert_close(body.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_plain_norms_get_the_effective_weight(imagenet_file):
    path, original = imagenet_file
    body = build_model(norm_act="abn").body
    load_backbone(body, read_weights(path), plain_norms=True)
    torch.testing.assert_close(body.mod1.bn1.weight, original.mod1.bn1.weight.abs() + 1e-5)
    torch.testing.assert_close(body.mod1.conv1.weight, original.mod1.conv1.weight)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = original.eval()(images.clone())[1]
        torch.testing.assert_close(body.eval()(images)[1], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet50_iabn_sync.pth.tar", "resnet50.pth.tar"])
def test_either_name_is_found(tmp_path, name):
    (tmp_path / name).touch()
    assert find_backbone_file(tmp_path, "resnet50") == tmp_path / name


def test_missing_weights_are_reported_with_a_remedy(tmp_path):
    with pytest.raises(
        WeightsError, match=r"50_iabn_sync\.pth\.tar.*--pretrained torchvision.*--no_pretrained"
    ):
        backbone_weights("auto", "resnet50", tmp_path)


def test_another_backbone_is_refused(imagenet_file):
    path, _ = imagenet_file
    with pytest.raises(WeightsError, match=r"of resnet50, not of resnet101; check --backbone"):
        backbone_weights(str(path), "resnet101", path.parent)


# torchvision


def as_ours(network, output_stride):
    """torchvision's ResNet with our leaky ReLU, strides and dilations."""
    for module in network.modules():
        if hasattr(module, "relu"):
            module.relu = nn.LeakyReLU(0.01)
    plan = STRIDES_AND_DILATIONS[output_stride]
    for number, (stride, dilation) in enumerate(plan, start=1):
        for index, block in enumerate(getattr(network, f"layer{number}")):
            block.conv2.stride = (stride, stride) if index == 0 else (1, 1)
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
            if block.downsample is not None:
                block.downsample[0].stride = (stride, stride)
    return network


def torchvision_features(network, images):
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    mod4 = network.layer3(network.layer2(network.layer1(x)))
    return mod4, network.layer4(mod4)


@pytest.mark.parametrize("norm_act", ["iabn", "std"])
@pytest.mark.parametrize(
    ("backbone", "output_stride", "training"),
    [
        ("resnet50", 8, False),
        ("resnet50", 16, True),
        ("resnet101", 16, False),
        ("resnet152", 16, False),
    ],
)
def test_torchvision_computes_the_same_features(norm_act, backbone, output_stride, training):
    torch.manual_seed(1)
    reference = torchvision.models.get_model(backbone).double()
    randomise_norms(reference)
    weights = identify(reference.state_dict(), "torchvision's")
    assert (weights.kind, weights.backbone) == (TORCHVISION, backbone)
    body = build_model(backbone, norm_act=norm_act, output_stride=output_stride).body.double()
    load_backbone(body, weights, plain_norms=norm_act == "std")
    reference = as_ours(reference, output_stride)
    images = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = torchvision_features(reference.train(training), images)
        found = body.train(training)(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))


def test_a_scale_below_eps_becomes_eps():
    state = torchvision.models.resnet50().state_dict()
    state["bn1.weight"][:4] = torch.tensor([0.0, -1e-8, 1e-5, -0.5])
    weight = identify(state, "here").state["mod1.bn1.weight"]
    assert weight[:4].tolist() == pytest.approx([0, 0, 0, 0.49999], abs=1e-7)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Make torchvision's own download fetch a file of ours; returns what makes it do so."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    network = torchvision.models.resnet50()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()

    def serve(url=None):
        if url is None:
            url = (tmp_path / "weights.pth").rename(tmp_path / f"r50-{digest[:8]}.pth").as_uri()
        monkeypatch.setattr(ResNet50_Weights, "url", property(lambda entry: url))
        return network

    return serve


def test_torchvision_is_downloaded_and_kept(served, tmp_path):
    network = served()
    for _ in range(2):  # the second time from the cache
        weights = backbone_weights("torchvision", "resnet50", tmp_path)
        expected = network.state_dict()["layer3.5.conv2.weight"]
        torch.testing.assert_close(weights.state["mod4.block6.convs.conv2.weight"], expected)
    assert len(list((tmp_path / "hub/checkpoints").iterdir())) == 1


def test_without_a_network_one_line_says_what_to_do(served, tmp_path):
    served("http://localhost:9/resnet50-0676ba61.pth")
    with pytest.raises(
        WeightsError, match=r"not be fetched from http://localhost:9/.*--pretrained FILE$"
    ):
        backbone_weights("torchvision", "resnet50", tmp_path)


def test_a_download_of_another_hash_is_refused(served, tmp_path):
    served((tmp_path / "weights.pth").rename(tmp_path / "resnet50-00000000.pth").as_uri())
    with pytest.raises(WeightsError, match=r"damaged.*delete .*resnet50-00000000\.pth"):
        backbone_weights("torchvision", "resnet50", tmp_path)


# Checkpoints


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("classifier", "classes"), [("cosine", 13), ("standard", 19)])
def test_published_checkpoints_are_recognised(small_blocks, prefix, classifier, classes):
    network = build_model("resnet50", classifier, num_classes=classes)
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    weights = identify({"model_state": state, "epoch": 7}, "here")
    assert (weights.kind, weights.backbone, weights.epoch) == (CHECKPOINT, "resnet50", 7)
    assert (weights.classifier, weights.num_classes) == (classifier, classes)
    assert weights.state.keys() == network.state_dict().keys()


def test_a_checkpoint_is_not_accepted_as_imagenet_weights(small_blocks, tmp_path):
    torch.save(build_model().state_dict(), tmp_path / "pans.pth")
    with pytest.raises(WeightsError, match=r"pans\.pth is a whole PAnS checkpoint.*--ckpt"):
        backbone_weights(str(tmp_path / "pans.pth"), "resnet50", tmp_path)


def spoil(state, name, change):
    changed = state[name].clone()
    changed.view(-1)[0] = change
    return {**state, name: changed}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "mod5.block1.proj_bn.bias"}, "1 tensors mi"),
        (lambda s: s | {"mod1.conv1.weight": torch.zeros(64, 1, 7, 7)}, "1 that do not fit"),
        (lambda s: spoil(s, "mod1.conv1.weight", float("nan")), "mod1.conv1.weight has infin"),
        (lambda s: spoil(s, "mod1.bn1.running_var", -1.0), "mod1.bn1.running_var is negative"),
        (lambda s: {f"layer{k}": v for k, v in s.items()}, "is none of PAnS checkpoint, Image"),
        (
            lambda s: {k: v for k, v in s.items() if "mod4" not in k},
            "is none of resnet50, resnet101, resnet152",
        ),
        (lambda s: {"lr": 0.1}, "the checkpoint holds no network"),
    ],
)
def test_incomplete_weights_are_refused(small_blocks, change, message):
    state = build_model().body.state_dict()
    assert identify(state, "here").kind == IMAGENET
    with pytest.raises(WeightsError, match=f"here.*{message}"):
        identify(change(state), "here")


def test_other_resnets_of_torchvision_are_refused():
    for name in ("resnet34", "wide_resnet50_2"):
        with torch.device("meta"):
            shapes = torchvision.models.get_model(name).state_dict()
        state = {key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}
        with pytest.raises(
            WeightsError, match=r"here (does not hold this network|is none of resnet50, )"
        ):
            identify(state, "here")


class RunsCode:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, zipped):
    touched, path = tmp_path / "touched", tmp_path / "evil.pth.tar"
    content = {"state_dict": {"mod1.conv1.weight": RunsCode(f"touch {touched}")}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.pth\.tar asks to load .*system.*refused"):
        main([str(path)])
    assert not touched.exists()


# The command


def told(capsys):
    lines = capsys.readouterr().out.splitlines()
    return {line[:12].strip(): line[12:] for line in lines}


def test_the_command_identifies_the_imagenet_file(imagenet_file, capsys, monkeypatch):
    path, _ = imagenet_file
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(KNOWN_MD5, md5, "a known file")
    main([str(path)])
    assert told(capsys) == {
        "kind": "ImageNet weights with in-place ABN",
        "backbone": "resnet50",
        "classifier": "none",
        "classes": "none",
        "epoch": "90",
        "tensors": "267, all whole",
        "md5": f"{md5} (a known file)",
        "use": f"python run.py --default --pretrained {path}, or put it at "
        "pretrained/resnet50_iabn_sync.pth.tar",
    }
    assert KNOWN_MD5["2522ca639f7fdfd7c0089ba1f5f6c2e8"] == "the published resnet50.pth.tar"


def test_the_command_converts_torchvision(tmp_path, capsys):
    torch.manual_seed(2)
    network = torchvision.models.resnet50()
    randomise_norms(network)
    torch.save(network.state_dict(), tmp_path / "resnet50-0676ba61.pth")
    main([str(tmp_path / "resnet50-0676ba61.pth"), "--out", str(tmp_path / "new/r50.pth.tar")])
    assert told(capsys)["kind"] == TORCHVISION
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r50.pth.tar"]
    weights = backbone_weights(str(tmp_path / "new/r50.pth.tar"), "resnet50", tmp_path)
    expected = identify(network.state_dict(), "here").state
    assert weights.kind == IMAGENET
    for name, value in expected.items():
        torch.testing.assert_close(weights.state[name], value, rtol=0, atol=0)


def test_the_command_slims_a_checkpoint(small_blocks, tmp_path, capsys):
    state = {f"module.{name}": value for name, value in build_model().state_dict().items()}
    content = {"model_state": state, "optimizer_state": {}, "epoch": 40, "options": {"lr": 0.1}}
    torch.save(content, tmp_path / "pans.pth")
    main([str(tmp_path / "pans.pth"), "--out", str(tmp_path / "slim.pth")])
    shown = told(capsys)
    assert (shown["classifier"], shown["classes"], shown["epoch"]) == ("cosine", "13", "40")
    assert f"--test --default --ckpt_test {tmp_path}/pans.pth --classifier cosine" in shown["use"]
    slim = load_checkpoint(tmp_path / "slim.pth")
    assert slim.keys() == {"model_state", "epoch", "options"}
    assert slim["model_state"].keys() == build_model().state_dict().keys()


def test_a_file_that_cannot_be_written_is_named(imagenet_file, tmp_path):
    path, _ = imagenet_file
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"file/a\.pth could not be written .*--out"):
        main([str(path), "--out", str(tmp_path / "file/a.pth")])


def test_the_command_ends_with_2_and_one_line():
    ended = subprocess.run(
        [sys.executable, "-m", "modules.pretrained", "gone.pth"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: there is no checkpoint gone.pth")
    assert len(ended.stderr.splitlines()) == 1
