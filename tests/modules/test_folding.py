"""Folding norms into convolutions changes no number but by rounding."""

import pytest
import torch
from torch import nn

from modules.inference.folding import fold_norms
from modules.segmentation import build_model


@pytest.mark.parametrize("norm_act", ["iabn_sync", "std"])
@pytest.mark.parametrize("plain", [True, False])
def test_folded_model_gives_the_same_logits(norm_act, plain):
    torch.manual_seed(0)
    model = build_model(norm_act=norm_act, plain=plain)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0, 1)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    model.double()
    images = torch.randn(1, 3, 41, 56, dtype=torch.float64)
    folded = fold_norms(model)
    assert model.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model.eval()(images), rtol=1e-9, atol=1e-9)
