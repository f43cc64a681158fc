"""The exact pyramid head against the reference implementation."""

import pytest
import torch
from torch.nn import functional as F

from modules.abn import norm_factory
from modules.pyramid import PyramidHead, convolve_upsampled, upsampling_matrix


def test_upsampling_matrix_by_hand():
    # Two cells to four pixels: centres at 0.25 and 0.75 of the axis, clamped outside.
    expected = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    like = torch.zeros(1)
    torch.testing.assert_close(upsampling_matrix(2, 4, like), expected)
    torch.testing.assert_close(upsampling_matrix(1, 3, like), torch.ones(3, 1))


@pytest.mark.parametrize("size", [(7, 12), (1, 5), (13, 2)])
def test_convolve_upsampled_is_the_convolution_of_the_upsampled(size):
    torch.manual_seed(0)
    grids = [torch.randn(2, 4, cells, cells, dtype=torch.float64) for cells in (1, 2, 3, 6)]
    weights = [torch.randn(5, 4, 3, 3, dtype=torch.float64) for _ in grids]
    expected = sum(
        F.conv2d(F.interpolate(grid, size=size, mode="bilinear"), weight, padding=1)
        for grid, weight in zip(grids, weights, strict=True)
    )
    torch.testing.assert_close(convolve_upsampled(grids, weights, size), expected)


@pytest.mark.parametrize("size", [(9, 13), (5, 6)])
def test_exact_head_equals_the_plain_one_values_and_gradients(size):
    torch.manual_seed(0)
    plain = PyramidHead((1024, 2048), norm_factory("iabn"), plain=True).double()
    exact = PyramidHead((1024, 2048), norm_factory("iabn")).double()
    exact.load_state_dict(plain.state_dict())
    mod5 = torch.randn(2, 2048, *size, dtype=torch.float64)
    grad = torch.randn(2, 512, *size, dtype=torch.float64)
    results = []
    for head in (plain, exact):
        torch.manual_seed(1)  # the same dropout
        leaf = mod5.clone().requires_grad_()
        output = head(leaf)
        output.backward(grad)
        gradients = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
        results.append((output, leaf.grad, gradients))
    (output, grad_mod5, gradients), (exact_output, exact_grad_mod5, exact_gradients) = results
    torch.testing.assert_close(exact_output, output)
    torch.testing.assert_close(exact_grad_mod5, grad_mod5)
    assert exact_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(exact_gradients[name], gradient, msg=name)
    assert float((output == 0).double().mean()) == pytest.approx(0.1, abs=0.05)  # Dropout2d 0.1
