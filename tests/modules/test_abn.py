"""In-place ABN against its formula in float64, the inplace-abn package and itself split in two."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from modules import abn
from modules.abn import ABN, InPlaceABN, inplace_abn, norm_factory


def make_input(shape=(3, 5, 4, 6), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1
    weight = torch.tensor([0.8, -1.3, 0.5, -0.2, 2.0], dtype=torch.float64)
    bias = torch.tensor([0.1, -0.4, 0.0, 0.3, -1.0], dtype=torch.float64)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [t.to(dtype) for t in (x, weight, bias, grad)]


def formula(x, weight, bias, mean, var, slope):
    """The definition, written out."""
    view = (1, -1, *[1] * (x.dim() - 2))
    x_hat = (x - mean.view(view)) / (var.view(view) + 1e-5).sqrt()
    z = x_hat * (weight.abs() + 1e-5).view(view) + bias.view(view)
    return torch.where(z >= 0, z, slope * z)


def run(function, x, weight, bias, grad):
    """Output and gradients of x, weight and bias."""
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = function(leaves[0] * 1, leaves[1], leaves[2])
    y.backward(grad)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (4, 5), (2, 5, 7)])
def test_values_and_gradients_follow_the_formula(slope, training, shape):
    x, weight, bias, grad = make_input(shape)
    mean, var = torch.linspace(-1, 1, 5).double(), torch.linspace(0.5, 2, 5).double()

    def ours(x, weight, bias):
        return inplace_abn(
            x, weight, bias, mean.clone(), var.clone(), training=training, slope=slope
        )

    def reference(x, weight, bias):
        if not training:
            return formula(x, weight, bias, mean, var, slope)
        dims = [d for d in range(x.dim()) if d != 1]
        return formula(x, weight, bias, x.mean(dims), x.var(dims, correction=0), slope)

    for got, wanted in zip(
        run(ours, x, weight, bias, grad), run(reference, x, weight, bias, grad), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_running_statistics_are_those_of_torch_batch_norm():
    ours, theirs = InPlaceABN(5), torch.nn.BatchNorm2d(5)
    for seed in range(3):
        x = make_input(dtype=torch.float32, seed=seed)[0]
        ours(x.clone())
        theirs(x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-6, atol=1e-6)
    assert ours.num_batches_tracked == 3
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_overwrites_its_input_and_saves_nothing_else_of_its_size():
    x, *_ = make_input(dtype=torch.float32)
    leaf = x.clone().requires_grad_()
    x = leaf * 1
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = InPlaceABN(5)(x)
    assert y.data_ptr() == x.data_ptr()
    large = [t for t in saved if t.numel() >= x.numel()]
    assert [t.data_ptr() for t in large] == [y.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_equals_float32_up_to_rounding(dtype):
    x, weight, bias, grad = make_input((4, 5, 16, 16), torch.float32)
    x, grad = x.to(dtype), grad.to(dtype)

    def ours(x, weight, bias):
        return inplace_abn(x, weight, bias, torch.zeros(5), torch.ones(5), training=True)

    low = run(ours, x, weight, bias, grad)
    wide = run(ours, x.float(), weight, bias, grad.float())
    assert low[0].dtype == low[1].dtype == dtype
    assert low[2].dtype == torch.float32
    step = torch.finfo(dtype).eps
    # Positive values are rounded once, negative ones before and after the activation.
    positive = wide[0] > 0
    torch.testing.assert_close(low[0][positive], wide[0].to(dtype)[positive], rtol=0, atol=0)
    torch.testing.assert_close(low[0].float(), wide[0], rtol=1.01 * step, atol=1e-7)
    for got, wanted in zip(low[1:], wide[1:], strict=True):
        # Backward starts from the rounded output: errors of a few roundings remain.
        difference = (got.float() - wanted).norm() / wanted.norm()
        assert difference < 2 * step


def test_channels_last_gives_the_same_numbers():
    x, weight, bias, grad = make_input(dtype=torch.float32)

    def ours(x, weight, bias):
        return inplace_abn(x, weight, bias, torch.zeros(5), torch.ones(5), training=True)

    contiguous = run(ours, x, weight, bias, grad)
    last = torch.channels_last
    other = run(ours, x.to(memory_format=last), weight, bias, grad.to(memory_format=last))
    for got, wanted in zip(other, contiguous, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
    abn.package_function is None, reason="the optional inplace-abn package is not built: make iabn"
)
@pytest.mark.parametrize("activation", ["leaky_relu", "identity"])
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_the_inplace_abn_package(activation, training):
    x, weight, bias, grad = make_input((4, 5, 16, 16), torch.float32)
    slope = 0.01 if activation == "leaky_relu" else 1.0
    statistics = [torch.full((5,), 0.3), torch.full((5,), 1.7)]
    ours_statistics = [t.clone() for t in statistics]
    their_statistics = [t.clone() for t in statistics]

    def ours(x, weight, bias):
        return inplace_abn(x, weight, bias, *ours_statistics, training=training, slope=slope)

    def theirs(x, weight, bias):
        return abn.package_function(
            x, weight, bias, *their_statistics, training, 0.1, 1e-5, activation, 0.01, None
        )

    for got, wanted in zip(
        run(ours, x, weight, bias, grad), run(theirs, x, weight, bias, grad), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(ours_statistics, their_statistics, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_one_value_per_channel_is_refused_in_training_only():
    norm = InPlaceABN(5)
    with pytest.raises(ValueError, match=r"more than one value.*\(1, 5, 1, 1\)"):
        norm(torch.zeros(1, 5, 1, 1))
    expected = torch.full((1, 5, 1, 1), -0.01 / (1 + 1e-5) ** 0.5 * (1 + 1e-5))
    torch.testing.assert_close(norm.eval()(torch.full((1, 5, 1, 1), -1.0)), expected)


@pytest.mark.parametrize("norm_act", ["abn", "std"])
def test_plain_norms_are_batch_norm_and_leaky_relu(norm_act):
    x, weight, bias, _ = make_input(dtype=torch.float32)
    norm = norm_factory(norm_act)(5)

    def ours(x, weight, bias):
        norm.weight, norm.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        return norm(x)

    def reference(x, weight, bias):
        return F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True), 0.01)

    torch.testing.assert_close(ours(x, weight, bias), reference(x, weight, bias))
    identity = norm_factory(norm_act)(5, slope=1.0).eval()
    torch.testing.assert_close(identity(x), x / (1 + 1e-5) ** 0.5)


def test_factory_names():
    assert norm_factory("iabn_sync")(4).synchronised
    assert not norm_factory("iabn")(4).synchronised
    assert isinstance(norm_factory("abn")(4), ABN)
    assert norm_factory("abn")(4).overwrite
    assert not norm_factory("std")(4).overwrite
    with pytest.raises(ValueError, match="iabn_sync, iabn, abn, std"):
        norm_factory("bn")


def _train_part(rank, sizes, init_file, results):
    dist.init_process_group(
        "gloo", init_method=f"file://{init_file}", rank=rank, world_size=len(sizes)
    )
    torch.set_num_threads(1)
    x, weight, bias, grad = make_input((4, 5, 6, 7), torch.float32)
    norm = norm_factory("iabn_sync")(5)
    norm.weight.data, norm.bias.data = weight, bias
    start = sum(sizes[:rank])
    part = slice(start, start + sizes[rank])
    leaf = x[part].clone().requires_grad_()
    y = norm(leaf * 1)
    y.backward(grad[part])
    gradients = torch.stack([norm.weight.grad, norm.bias.grad])
    dist.all_reduce(gradients)
    own = (y.detach(), leaf.grad)
    torch.save((own, gradients, norm.running_mean, norm.running_var), f"{results}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1)])
def test_two_processes_equal_one_with_the_whole_batch(tmp_path, sizes):
    mp.start_processes(
        _train_part, (sizes, tmp_path / "init", tmp_path / "rank"), 2, start_method="fork"
    )
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    x, weight, bias, grad = make_input((4, 5, 6, 7), torch.float32)
    running = [torch.zeros(5), torch.ones(5)]

    def whole(x, weight, bias):
        return inplace_abn(x, weight, bias, *running, training=True)

    y, grad_x, grad_weight, grad_bias = run(whole, x, weight, bias, grad)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([part[0][0] for part in parts]), y, **close)
    torch.testing.assert_close(torch.cat([part[0][1] for part in parts]), grad_x, **close)
    for _, gradients, running_mean, running_var in parts:
        torch.testing.assert_close(gradients, torch.stack([grad_weight, grad_bias]), **close)
        torch.testing.assert_close(running_mean, running[0], **close)
        torch.testing.assert_close(running_var, running[1], **close)
