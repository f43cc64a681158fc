"""Winograd's 3x3 convolutions against torch's own, and where the network uses them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modules import build_model
from modules.inference.folding import fold_norms
from modules.inference.winograd import WinogradConv2d, use_winograd


def problem(dilation, size, dtype, channels=(7, 5)):
    torch.manual_seed(0)
    convolution = nn.Conv2d(*channels, 3, padding=dilation, dilation=dilation, dtype=dtype)
    own = WinogradConv2d(convolution.weight, convolution.bias, dilation)
    return convolution, own, torch.randn(2, channels[0], *size, dtype=dtype)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 13), (16, 24), (33, 18)])
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_it_is_the_convolution_at_any_size_and_dilation(dilation, size):
    convolution, own, x = problem(dilation, size, torch.float64)
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            out = own(x.contiguous(memory_format=layout))
            torch.testing.assert_close(out, convolution(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strip", [1, 20_000, 1 << 30])
def test_strips_fit_together(monkeypatch, strip):
    convolution, own, x = problem(2, (33, 18), torch.float64)
    monkeypatch.setattr("modules.inference.winograd.STRIP_BYTES", strip)
    with torch.inference_mode():
        torch.testing.assert_close(own(x), convolution(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 2.5), (torch.bfloat16, 3.0)])
def test_rounding_is_at_most_two_or_three_times_that_of_the_direct_sum(dtype, factor):
    convolution, own, x = problem(2, (24, 40), torch.float32, channels=(512, 64))
    with torch.inference_mode():
        exact = convolution.double()(x.double())
        direct = F.conv2d(
            x.to(dtype), convolution.weight.to(dtype), convolution.bias.to(dtype), 1, 2, 2
        )
        errors = [
            (out.double() - exact).square().mean().sqrt()
            for out in (direct, own.to(dtype)(x.to(dtype)))
        ]
    assert 0 < errors[1] < factor * errors[0]


@pytest.mark.parametrize(("output_stride", "replaced"), [(8, 9), (16, 8)])
def test_the_broad_layers_of_stride_1_use_it(output_stride, replaced):
    torch.manual_seed(0)
    model = fold_norms(build_model(output_stride=output_stride)).double()
    images = torch.randn(1, 3, 57, 72, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(images)
        use_winograd(model)
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    names = [name for name, module in model.named_modules() if isinstance(module, WinogradConv2d)]
    assert names.count("head.mod5_convolution") == 1
    in_body = [name for name in names if name.startswith(("body.mod4", "body.mod5"))]
    assert len(in_body) == len(names) - 1 == replaced
