"""The network against its checkpoint table and against the specification written functionally."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modules.abn import ABN, InPlaceABN
from modules.segmentation import TrainingLogits, build_model

GOLDEN = Path(__file__).parents[1] / "golden" / "pans_state_dict.json"


@pytest.fixture(scope="module")
def model():
    """Random weights and statistics, far from their initial values, negative scales included."""
    torch.manual_seed(0)
    model = build_model().eval()
    for module in model.modules():
        if isinstance(module, InPlaceABN):
            nn.init.normal_(module.weight, 0, 1)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def test_keys_and_shapes_are_those_of_published_checkpoints(model):
    table = json.loads(GOLDEN.read_text())
    state = model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == table
    assert len(table) == 356
    assert sum(math.prod(shape) for shape in table.values()) == 51_374_075


# Values that a channel's output is summed from: channels times the kernel's cells, worked by hand.
FAN_IN = {
    "body.mod1.conv1": 3 * 7 * 7,
    "body.mod2.block1.convs.conv1": 64,
    "body.mod2.block1.convs.conv2": 64 * 9,
    "body.mod2.block1.convs.conv3": 64,
    "body.mod2.block1.proj_conv": 64,
    "body.mod3.block1.convs.conv1": 256,
    "body.mod3.block1.convs.conv2": 128 * 9,
    "body.mod3.block2.convs.conv1": 512,
    "body.mod4.block1.convs.conv2": 256 * 9,
    "body.mod4.block6.convs.conv3": 256,
    "body.mod5.block1.proj_conv": 1024,
    "body.mod5.block3.convs.conv1": 2048,
    "body.mod5.block3.convs.conv2": 512 * 9,
    "head.ppm.0.1": 2048,
    "head.ppm.3.1": 2048,
    "head.conv_last.0": 4096 * 9,
    "head.cbr_deepsup.0": 1024 * 9,
    "cls.cls": 512,
    "cls.cls_deepsup": 512,
}


@pytest.mark.parametrize("classifier", ["cosine", "standard"])
def test_weights_start_with_the_published_deviation_and_range(classifier):
    """torch's kaiming_uniform_(a=sqrt(5)): uniform in +-1 / sqrt(fan_in)."""
    torch.manual_seed(42)
    state = build_model(classifier=classifier).state_dict()
    for name, fan_in in FAN_IN.items():
        weight = state[f"{name}.weight"]
        assert float(weight.std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.03), name
        assert 0.99 * fan_in**-0.5 < float(weight.abs().max()) <= fan_in**-0.5, name
    # As measured on the published code.
    assert float(state["head.conv_last.0.weight"].std()) == pytest.approx(0.00301, rel=0.03)
    assert float(state["cls.cls.weight"].std()) == pytest.approx(0.0256, rel=0.03)


@pytest.mark.parametrize("classifier", ["cosine", "standard"])
def test_nothing_but_the_defaults_of_torch_initialises(classifier):
    """The same stream of random numbers, taken by plain convolutions one after the other."""
    torch.manual_seed(7)
    model = build_model(classifier=classifier)
    torch.manual_seed(7)
    for name, module in model.named_modules():
        if isinstance(module, InPlaceABN):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
            assert (module.running_mean == 0).all(), name
            assert (module.running_var == 1).all(), name
        elif hasattr(module, "weight"):
            classes, channels, *kernel = module.weight.shape
            bias = getattr(module, "bias", None)
            default = nn.Conv2d(channels, classes, kernel, bias=bias is not None)
            assert torch.equal(module.weight, default.weight), name
            assert bias is None or torch.equal(bias, default.bias), name


def reference_logits(state, images, strides, dilations, blocks=(3, 4, 6, 3)):
    """The specification, line by line, on a float64 state dict."""

    def norm(x, name, slope=0.01):
        scale = state[f"{name}.weight"].abs() + 1e-5
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        z = F.batch_norm(x, mean, var, scale, state[f"{name}.bias"], False, 0.1, 1e-5)
        return torch.where(z >= 0, z, slope * z)

    def conv(x, name, **kwargs):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **kwargs)

    x = norm(conv(images, "body.mod1.conv1", stride=2, padding=3), "body.mod1.bn1")
    x = F.max_pool2d(x, 3, 2, 1)
    for mod, count in zip((2, 3, 4, 5), blocks, strict=True):
        dilation = dilations[mod - 2]
        for block in range(1, count + 1):
            name = f"body.mod{mod}.block{block}"
            stride = strides[mod - 2] if block == 1 else 1
            y = norm(conv(x, f"{name}.convs.conv1"), f"{name}.convs.bn1")
            y = conv(y, f"{name}.convs.conv2", stride=stride, padding=dilation, dilation=dilation)
            y = norm(y, f"{name}.convs.bn2")
            y = norm(conv(y, f"{name}.convs.conv3"), f"{name}.convs.bn3", slope=1)
            if block == 1:  # channels change in the first block of every mod
                x = norm(conv(x, f"{name}.proj_conv", stride=stride), f"{name}.proj_bn", slope=1)
            x = F.leaky_relu(x + y, 0.01)
    pyramid = [x]
    for i, cells in enumerate((1, 2, 3, 6)):
        grid = conv(F.adaptive_avg_pool2d(x, cells), f"head.ppm.{i}.1")
        grid = norm(grid, f"head.ppm.{i}.2")
        pyramid.append(F.interpolate(grid, size=x.shape[2:], mode="bilinear"))
    feature = conv(torch.cat(pyramid, 1), "head.conv_last.0", padding=1)
    feature = norm(feature, "head.conv_last.1")
    if "cls.cls.bias" in state:
        return conv(feature, "cls.cls")
    prototypes = state["cls.cls.weight"].flatten(1)
    cosine = torch.einsum(
        "nchw,kc->nkhw", feature / feature.norm(dim=1, keepdim=True), F.normalize(prototypes)
    )
    return 10 * cosine


STRIDES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}


@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits_follow_the_specification(model, output_stride):
    other = build_model(output_stride=output_stride).eval()
    other.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 73, 90, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = other(images)
        state = {key: value.double() for key, value in model.state_dict().items()}
        expected = reference_logits(state, images.double(), *STRIDES[output_stride])
    assert logits.shape == (1, 13, math.ceil(73 / output_stride), math.ceil(90 / output_stride))
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-4)


def test_standard_classifier_is_a_1x1_convolution_with_bias():
    torch.manual_seed(0)
    model = build_model(classifier="standard").eval()
    nn.init.normal_(model.cls.cls.bias)
    images = torch.randn(1, 3, 33, 40)
    state = {key: value.double() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        expected = reference_logits(state, images.double(), *STRIDES[8])
        torch.testing.assert_close(model(images).double(), expected, rtol=1e-4, atol=1e-4)
    assert state["cls.cls.weight"].shape == (13, 512, 1, 1)
    assert state["cls.cls_deepsup.bias"].shape == (13,)


def test_training_gives_deep_supervision_evaluation_does_not(model):
    images = torch.randn(2, 3, 32, 32)
    calls = []
    handle = model.head.cbr_deepsup.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert model(images).shape == (2, 13, 4, 4)
        assert not calls
        state = {key: value.clone() for key, value in model.state_dict().items()}
        output = model.train()(images)
    handle.remove()
    model.load_state_dict(state)
    model.eval()
    assert isinstance(output, TrainingLogits)
    assert output.deepsup_logits.shape == (2, 13, 4, 4)
    assert float(output.deepsup_logits.abs().max()) <= 10


def test_resnet101_has_23_blocks_in_mod4():
    model = build_model(backbone="resnet101")
    assert [len(getattr(model.body, f"mod{i}")) for i in (2, 3, 4, 5)] == [3, 4, 23, 3]


@pytest.mark.parametrize("norm_act", ["abn", "std"])
def test_plain_norms_keep_the_keys_and_the_nonlinearity(norm_act):
    model = build_model(norm_act=norm_act)
    assert list(model.state_dict()) == list(json.loads(GOLDEN.read_text()))
    slopes = {name: m.slope for name, m in model.named_modules() if isinstance(m, ABN)}
    assert slopes["body.mod2.block1.convs.bn1"] == 0.01
    assert slopes["body.mod2.block1.convs.bn3"] == slopes["body.mod2.block1.proj_bn"] == 1


def test_freeze_norms_stops_weight_and_bias_only():
    model = build_model()
    model.freeze_norms()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    norms = {name for name, m in model.named_modules() if isinstance(m, InPlaceABN)}
    assert frozen == {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    model.train()(torch.randn(2, 3, 16, 16))
    assert model.body.mod1.bn1.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"backbone": "vgg"}, "resnet50, resnet101, resnet152"),
        ({"output_stride": 4}, "8 or 16"),
        ({"classifier": "linear"}, "standard, cosine"),
        ({"norm_act": "bn"}, "iabn_sync"),
    ],
)
def test_unknown_choices_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        build_model(**argument)
