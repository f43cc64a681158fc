"""benchmarks.latency: its counts against the published shapes and a count by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from argparser import Options
from benchmarks.latency import flops_of, report, sizes_of
from build import model_of
from utils.errors import PansError

# The sum of the sizes of the published checkpoint's tensors, running statistics left out.
PUBLISHED_PARAMETERS = 51_314_752
COSINE = Options(classifier="cosine")


def test_flops_are_those_of_every_convolution_by_hand() -> None:
    options = replace(COSINE, plain=True)
    by_hand = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal by_hand
        assert isinstance(layer, nn.Conv2d)
        height, width = layer.kernel_size
        by_hand += 2 * output.numel() * layer.in_channels * height * width

    with torch.device("meta"):
        model = model_of(options).eval()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        model.head(model.body(torch.empty(1, 3, 64, 96))[1])
    classified = 2 * (8 * 12) * 512 * 13
    assert flops_of(options, [(64, 96)]) == by_hand + classified
    assert flops_of(options, [(64, 96)] * 2) == 2 * flops_of(options, [(64, 96)])


def test_report_counts_the_published_network(capsys: pytest.CaptureFixture[str]) -> None:
    report(["--size", "16x24", "--runs", "1", "--default"])
    with torch.device("meta"):
        parameters = sum(one.numel() for one in model_of(COSINE).parameters())
    assert parameters == PUBLISHED_PARAMETERS
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert lines["parameters"] == "51.3 M"
    assert float(lines["images/s"]) > 0


def test_sizes_of_the_test_scales() -> None:
    assert sizes_of("720x1280", multi_scale=False) == [(720, 1280)]
    assert sizes_of("720x1280", multi_scale=True) == [
        (304, 536), (376, 672), (456, 800), (528, 936), (568, 1000)
    ]  # fmt: skip


@pytest.mark.parametrize("size", ["720", "0x8", "axb", "-9x16", "1x2x3"])
def test_another_size_is_refused(size: str) -> None:
    with pytest.raises(PansError, match="expected HEIGHTxWIDTH"):
        sizes_of(size, multi_scale=False)
