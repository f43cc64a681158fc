"""The parts of the ONNX export that need no exporter; the file itself: end_to_end/test_predict."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from modules.export import MatrixPooling, check_export_support
from utils.errors import PansError


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 6), (1, 1), (5, 17), (38, 67), (2, 100)])
def test_pooling_by_products_is_adaptive_average_pooling(cells, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_close(MatrixPooling(cells)(x), nn.AdaptiveAvgPool2d(cells)(x), rtol=0, atol=1e-14)


def test_missing_packages_are_named(monkeypatch):
    find = importlib.util.find_spec
    missing = {"onnxscript"}
    monkeypatch.setattr(
        "modules.export.find_spec", lambda name: None if name in missing else find(name)
    )
    with pytest.raises(PansError, match=r"needs the optional packages onnxscript.*pip install"):
        check_export_support()
