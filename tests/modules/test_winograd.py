"""Winograd's 3x3 convolutions against torch's own, and where the network uses them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modules import winograd
from modules.inference.folding import fold_norms
from modules.inference.winograd import FEWEST_CHANNELS, WinogradConv2d, use_winograd
from modules.segmentation import build_model
from modules.winograd import FOUR, TWO, Conv3x3, best_filtering, conv3x3

FILTERINGS = pytest.mark.parametrize("filtering", [TWO, FOUR], ids=["F(2x2)", "F(4x4)"])
SIZES = [(1, 1), (2, 3), (9, 13), (16, 24), (33, 18)]
LAYOUTS = torch.contiguous_format, torch.channels_last


def problem(dilation, size, dtype=torch.float64, channels=(7, 5)):
    torch.manual_seed(0)
    convolution = nn.Conv2d(*channels, 3, padding=dilation, dilation=dilation, dtype=dtype)
    return convolution, torch.randn(2, channels[0], *size, dtype=dtype)


def evaluated(convolution, filtering, dtype=None):
    weight, bias = convolution.weight, convolution.bias
    return WinogradConv2d(weight, bias, convolution.dilation[0], dtype or weight.dtype, filtering)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.fixture
def always(monkeypatch):
    """Winograd's way however few channels there are and however small the map is."""
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "LARGEST_SHARE", 1000.0)


@FILTERINGS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_it_is_the_convolution_at_any_size_and_dilation(dilation, size, filtering):
    convolution, x = problem(dilation, size)
    own = evaluated(convolution, filtering)
    with torch.inference_mode():
        for layout in LAYOUTS:
            close(own(x.contiguous(memory_format=layout)), convolution(x))


@FILTERINGS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_its_gradients_are_those_of_the_convolution(monkeypatch, always, dilation, size, filtering):
    monkeypatch.setattr(winograd, "best_filtering", lambda *_: filtering)
    convolution, x = problem(dilation, size)
    weight = convolution.weight
    expected = F.conv2d(x.requires_grad_(), weight, None, 1, dilation, dilation)
    grad_out = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (x, weight), grad_out)
    for layout in LAYOUTS:
        inputs = x.detach().contiguous(memory_format=layout).requires_grad_()
        found = conv3x3(inputs, weight, dilation=dilation)
        assert found.grad_fn.name() == "_ConvolutionBackward"
        close(found, expected)
        for own, other in zip(
            torch.autograd.grad(found, (inputs, weight), grad_out), gradients, strict=True
        ):
            close(own, other)
        assert found.is_contiguous(memory_format=layout)


@FILTERINGS
@pytest.mark.parametrize("strip", [1, 20_000, 1 << 30])
def test_strips_equal_the_whole_convolution(monkeypatch, always, strip, filtering):
    monkeypatch.setattr(winograd, "STRIP_BYTES", strip)
    monkeypatch.setattr(winograd, "best_filtering", lambda *_: filtering)
    convolution, x = problem(2, (33, 18))
    with torch.inference_mode():
        close(evaluated(convolution, filtering)(x), convolution(x))
    weight, x = convolution.weight, x.requires_grad_()
    expected = F.conv2d(x, weight, None, 1, 2, 2)
    found = conv3x3(x, weight, dilation=2)
    for own, other in zip(
        torch.autograd.grad(found.sum(), (x, weight)),
        torch.autograd.grad(expected.sum(), (x, weight)),
        strict=True,
    ):
        close(own, other)


def test_only_the_needed_gradients_are_computed(always):
    convolution, x = problem(1, (9, 13))
    frozen = convolution.weight.detach()
    conv3x3(x.requires_grad_(), frozen).sum().backward()
    assert x.grad is not None
    conv3x3(x.detach(), convolution.weight).sum().backward()
    assert convolution.weight.grad is not None
    assert not conv3x3(x.detach(), frozen).requires_grad


@FILTERINGS
def test_in_float32_it_is_the_convolution_up_to_rounding(filtering):
    convolution, x = problem(2, (33, 18), torch.float32, channels=(70, 50))
    with torch.inference_mode():
        found = evaluated(convolution, filtering)(x)
        torch.testing.assert_close(found, convolution(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "filtering", "factor"),
    [
        (torch.float32, TWO, 4),
        (torch.float32, FOUR, 12),
        (torch.bfloat16, TWO, 3),
        (torch.bfloat16, FOUR, 10),
    ],
)
def test_rounding_is_a_few_times_that_of_the_direct_sum(dtype, filtering, factor):
    convolution, x = problem(2, (24, 40), torch.float32, channels=(512, 64))
    own = evaluated(convolution, filtering, dtype)
    with torch.inference_mode():
        exact = convolution.double()(x.double())
        direct = F.conv2d(
            x.to(dtype), convolution.weight.to(dtype), convolution.bias.to(dtype), 1, 2, 2
        )
        errors = [
            (out.double() - exact).square().mean().sqrt() for out in (direct, own(x.to(dtype)))
        ]
    assert 0 < errors[1] < factor * errors[0]


@pytest.mark.parametrize(
    ("size", "dilation", "expected"),
    [((57, 57), 1, FOUR), ((57, 57), 4, FOUR), ((8, 8), 4, TWO), ((6, 6), 4, None)],
)
def test_the_filtering_with_the_fewest_products_is_taken(size, dilation, expected):
    assert best_filtering(size, dilation) is expected


@pytest.mark.parametrize("dilation", [1, 4])
def test_under_autocast_broad_layers_and_their_gradients_round_a_few_times_as_much(dilation):
    """Relative to the direct sum in bfloat16, both against float64."""
    torch.manual_seed(0)
    x = torch.randn(2, 512, 16, 24, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(512, 512, 3, 3) / 68).requires_grad_()
    grad_out = torch.randn(2, 512, 16, 24, dtype=torch.bfloat16)

    def results(out, *inputs):
        return [out, *torch.autograd.grad(out, inputs, grad_out.to(out.dtype))]

    exact_inputs = [each.detach().double().requires_grad_() for each in (x, weight)]
    exact = results(F.conv2d(*exact_inputs, None, 1, dilation, dilation), *exact_inputs)
    with torch.autocast("cpu", torch.bfloat16):
        direct = F.conv2d(x, weight, None, 1, dilation, dilation)
        own = conv3x3(x, weight, dilation=dilation)
    assert own.grad_fn.name() == "_ConvolutionBackward"
    direct, own = results(direct, x, weight), results(own, x, weight)
    assert [each.dtype for each in own] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for found, library, truth in zip(own, direct, exact, strict=True):
        errors = [(each.double() - truth).norm() / truth.norm() for each in (found, library)]
        assert 0 < errors[0] < 0.01
        assert errors[0] < 4 * errors[1]


def test_narrow_layers_and_the_reference_implementation_use_the_library():
    x, weight = torch.randn(2, 256, 12, 12), torch.randn(256, 256, 3, 3, requires_grad=True)
    assert conv3x3(x, weight).grad_fn.name() == "_ConvolutionBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3(x, weight).grad_fn.name() != "_ConvolutionBackward"
    assert conv3x3(x[:, :8], weight[:, :8]).grad_fn.name() != "_ConvolutionBackward"
    for plain in (False, True):
        layer = Conv3x3(256, 256, plain=plain)
        assert (layer(x).grad_fn.name() == "_ConvolutionBackward") is not plain


@pytest.mark.parametrize(
    ("output_stride", "dtype", "replaced"),
    [(8, torch.float32, 12), (16, torch.float32, 11), (8, torch.bfloat16, 9)],
)
def test_evaluation_uses_it_in_the_broad_layers_of_stride_1(
    monkeypatch, output_stride, dtype, replaced
):
    monkeypatch.setitem(FEWEST_CHANNELS, torch.float64, FEWEST_CHANNELS[dtype])
    torch.manual_seed(0)
    model = fold_norms(build_model(output_stride=output_stride)).double()
    images = torch.randn(1, 3, 57, 72, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(images)
        use_winograd(model, torch.float64)
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    names = [name for name, module in model.named_modules() if isinstance(module, WinogradConv2d)]
    assert names.count("head.mod5_convolution") == 1
    assert len(names) - 1 == replaced


def test_training_with_it_has_the_gradients_of_the_plain_path(always):
    torch.manual_seed(0)
    plain, fast = (build_model(norm_act="iabn", plain=plain).double() for plain in (True, False))
    fast.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 72, dtype=torch.float64)
    for model in (plain, fast):
        for module in model.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
        logits, auxiliary = model(images)
        (logits.sin().sum() + auxiliary.cos().sum()).backward()
    for (name, expected), found in zip(plain.named_parameters(), fast.parameters(), strict=True):
        scale = expected.grad.abs().max()
        assert (found.grad - expected.grad).abs().max() <= 1e-7 * scale, name
