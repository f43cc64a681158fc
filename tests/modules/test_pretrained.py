"""ImageNet files as they are spread: prefixed keys, a classifier, numpy scalars."""

import numpy as np
import pytest
import torch
from torch import nn

from modules import build_model
from modules.pretrained import WeightsError, find_backbone_file, load_backbone
from utils.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def imagenet_file(tmp_path_factory):
    """A file of the published layout, and the body it came from."""
    torch.manual_seed(0)
    body = build_model().body
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
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


def test_prefix_is_stripped_and_classifier_dropped(imagenet_file):
    path, original = imagenet_file
    body = build_model().body
    load_backbone(body, load_checkpoint(path), path, plain_norms=False)
    for key, value in original.state_dict().items():
        torch.testing.assert_close(body.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_plain_norms_get_the_effective_weight(imagenet_file):
    path, original = imagenet_file
    body = build_model(norm_act="abn").body
    load_backbone(body, load_checkpoint(path), path, plain_norms=True)
    torch.testing.assert_close(body.mod1.bn1.weight, original.mod1.bn1.weight.abs() + 1e-5)
    torch.testing.assert_close(body.mod1.conv1.weight, original.mod1.conv1.weight)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = original.eval()(images.clone())[1]
        torch.testing.assert_close(body.eval()(images)[1], expected, rtol=1e-4, atol=1e-3)


def test_either_name_is_found_and_absence_says_what_to_do(imagenet_file, tmp_path):
    path, _ = imagenet_file
    assert find_backbone_file(path.parent, "resnet50") == path
    with pytest.raises(WeightsError, match=r"resnet50_iabn_sync\.pth\.tar.*--no_pretrained"):
        find_backbone_file(tmp_path, "resnet50")


def test_another_backbone_is_refused(imagenet_file):
    path, _ = imagenet_file
    with pytest.raises(WeightsError, match=r"missing.*check --backbone"):
        load_backbone(
            build_model(backbone="resnet101").body, load_checkpoint(path), path, plain_norms=False
        )
