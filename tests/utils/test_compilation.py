"""torch.compile computes what the network itself does, in-place norms included."""

import pytest
import torch
from torch import nn

from modules.abn import norm_factory
from modules.residual import Bottleneck
from utils.errors import PansError
from utils.torch_settings import compiled


def test_a_compiled_block_has_the_same_gradients_and_statistics():
    images = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    found = []
    for wrap in (lambda network: network, compiled):
        torch.manual_seed(0)
        block = Bottleneck(8, 4, 1, 2, norm_factory("iabn")).double()
        output = wrap(block)(images)
        output.square().sum().backward()
        gradients = {name: weight.grad for name, weight in block.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in block.named_buffers()}
        found.append({"output": output.detach(), **gradients, **buffers})
    assert len(found[0]) > 20
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_without_a_compiler_it_says_what_to_do(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PansError, match="no-such-compiler was not found; install it"):
        compiled(nn.Identity())
