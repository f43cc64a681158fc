"""The norm on CUDA: the CPU's values, one exchange a pass, and calls that CUDA takes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from modules import abn
from modules.abn import inplace_abn
from tests.gpu.pretend_gpu import CUDA, PretendGpu, lines

PACKAGE = abn.package_function
WEIGHT = torch.tensor([0.8, -1.3, 0.0, -0.2, 2.0])
BIAS = torch.tensor([0.1, -0.4, 0.0, 0.3, -1.0])
DOUBLE = {"rtol": 1e-12, "atol": 1e-12}


def step(x, grad, *, slope=0.01, training=True, group=None, dtype=None, learns=True, weight=WEIGHT):
    """Output, gradients of x, weight and bias, and running statistics, on the CPU."""
    dtype = dtype or x.dtype
    leaves = [x.clone(), *(vector.clone().to(x.device, dtype) for vector in (weight, BIAS))]
    for leaf, needs in zip(leaves, (True, learns, learns), strict=True):
        leaf.requires_grad_(needs)
    running = [torch.full((5,), value, dtype=dtype, device=x.device) for value in (0.3, 1.7)]
    y = inplace_abn(
        leaves[0] * 1, *leaves[1:], *running, training=training, slope=slope, group=group
    )
    y.backward(grad)
    gradients = [leaf.grad for leaf in leaves if leaf.requires_grad]
    return [tensor.detach().cpu() for tensor in (y, *gradients, *running)]


def data(shape=(3, 5, 4, 6), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (x * 2 + 1).to(dtype), grad.to(dtype)


@pytest.fixture(autouse=True)
def without_package(monkeypatch):
    monkeypatch.setattr(abn, "package_function", None)


@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (4, 5), (2, 5, 7), (2, 5, 1, 1)])
def test_values_are_those_of_the_cpu_in_float64(slope, training, shape):
    x, grad = data(shape)
    wanted = step(x, grad, slope=slope, training=training)
    with PretendGpu() as gpu:
        got = step(x.to(CUDA), grad.to(CUDA), slope=slope, training=training)
        assert gpu.launches["batch_norm_elemt"] == gpu.launches["batch_norm_backward_elemt"] == 1
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **DOUBLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_half_precision_keeps_its_statistics_in_float32(dtype, parameters):
    x, grad = data((8, 5, 16, 16), dtype)
    # Not 0: the output would be of a size that half precision resolves badly.
    given = {"dtype": parameters, "weight": WEIGHT + 0.5}
    wanted = step(x.double(), grad.double(), **given)
    with PretendGpu():
        got = step(x.to(CUDA), grad.to(CUDA), **given)
    assert got[0].dtype == got[1].dtype == dtype
    assert [tensor.dtype for tensor in got[2:]] == [parameters] * 4
    for ours, theirs in zip(got, wanted, strict=True):
        difference = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert difference < 2 * max(torch.finfo(t).eps for t in (dtype, parameters))


def test_frozen_weights_leave_the_other_gradient_as_it_is():
    x, grad = data()
    wanted = step(x, grad)
    with PretendGpu():
        got = step(x.to(CUDA), grad.to(CUDA), learns=False)
    for ours, theirs in zip(got, (*wanted[:2], *wanted[4:]), strict=True):
        torch.testing.assert_close(ours, theirs, **DOUBLE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (2, 5, 1, 1)])
def test_cuda_itself_accepts_every_call(layout, dtype, shape):
    x, grad = (tensor.contiguous(memory_format=layout) for tensor in data(shape, dtype))
    parameters = torch.promote_types(dtype, torch.float32)
    with PretendGpu(probe=True) as gpu:
        for training in (True, False):
            step(x.to(CUDA), grad.to(CUDA), training=training, dtype=parameters)
        assert not gpu.refusals


def test_the_probe_sees_what_cuda_refuses():
    """The norm's backward before the fused kernels: no saved statistics for channels-last data."""
    vector = torch.ones(5)
    with PretendGpu(probe=True) as gpu:
        x, vector = torch.ones(2, 5, 1, 1).to(CUDA), vector.to(CUDA)
        with pytest.raises(RuntimeError, match="save_mean"):
            torch.ops.aten.native_batch_norm_backward(
                x, x, vector, vector, vector, None, None, False, 0.0, [True] * 3
            )
        assert "save_mean" in str(gpu.refusals)


@pytest.mark.parametrize(
    ("given", "serves"),
    [
        ({"dtype": torch.float32, "learns": False}, True),
        ({"dtype": torch.float64, "learns": False}, True),
        ({"dtype": torch.float32, "learns": False, "training": False}, True),
        ({"dtype": torch.float32, "learns": False, "shape": (1, 5, 1, 1)}, False),
        ({"dtype": torch.bfloat16, "learns": False}, False),
        ({"dtype": torch.float16, "learns": False}, False),  # beside weights in float32
        ({"dtype": torch.float32, "learns": True}, False),  # it would wait
    ],
)
def test_the_package_is_used_where_it_neither_fails_nor_waits(monkeypatch, given, serves):
    calls = []

    def package(x, *rest):
        calls.append(rest)
        return x

    monkeypatch.setattr(abn, "package_function", package)
    monkeypatch.setattr(abn, "_require_two_values", lambda *_: None)
    monkeypatch.setattr(abn.FusedInPlaceABN, "apply", lambda x, *_: x)
    x, _ = data(given.get("shape", (2, 5, 3, 3)), given["dtype"])
    wide = torch.promote_types(x.dtype, torch.float32)
    with PretendGpu():
        weight, *vectors = (torch.ones(5, dtype=wide, device=CUDA) for _ in range(4))
        weight.requires_grad_(given["learns"])
        training = given.get("training", True)
        inplace_abn(x.to(CUDA), weight, *vectors, training=training, slope=0.01, group="group")
    assert len(calls) == serves
    if serves:  # without the group it would silently not synchronise
        assert calls[0][4:] == (training, 0.1, 1e-5, "leaky_relu", 0.01, "group")


@pytest.mark.skipif(
    PACKAGE is None, reason="the optional inplace-abn package is not built: make iabn"
)
def test_the_package_refuses_bf16():
    x = torch.ones(2, 5, 3, 3, dtype=torch.bfloat16)
    vectors = [torch.ones(5) for _ in range(4)]
    with pytest.raises(RuntimeError):
        PACKAGE(x, *vectors, False, 0.1, 1e-5, "identity", 1.0, None)


def test_start_up_says_which_kernels_run_and_why(monkeypatch):
    cuda, fused = torch.device("cuda"), "torch's fused kernels"
    assert fused in abn.describe_norm("iabn_sync", cuda, "fp32", learns=True)
    monkeypatch.setattr(abn, "package_function", print)
    for precision, learns, words in (
        ("bf16", False, f"{fused}: inplace-abn has no bf16"),
        ("fp32", True, f"{fused}: inplace-abn would wait for the GPU"),
        ("fp32", False, "kernels of the inplace-abn package"),
    ):
        assert words in abn.describe_norm("iabn_sync", cuda, precision, learns)
    assert fused not in abn.describe_norm("iabn_sync", torch.device("cpu"), "fp32", True)
    assert "BatchNorm2d" in abn.describe_norm("std", cuda, "fp32", True)


def _train_part(rank, sizes, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=len(sizes)
    )
    torch.set_num_threads(1)
    abn.package_function = None
    exchanges = []
    for name in ("all_gather_into_tensor", "all_reduce"):
        real = getattr(dist, name)

        def counted(*args, name=name, real=real, **kwargs):
            exchanges.append(name)
            return real(*args, **kwargs)

        setattr(dist, name, counted)
    start = sum(sizes[:rank])
    x, grad = (tensor[start : start + sizes[rank]] for tensor in data((4, 5, 3, 3)))
    with PretendGpu() as gpu:
        found = step(x.to(CUDA), grad.to(CUDA), group=dist.group.WORLD)
        # Sending the data in and taking results out are the test's own waits.
        waits = {place: times for place, times in gpu.waits.items() if "outside" not in place[1]}
    torch.save((found, exchanges, waits), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1)])
def test_two_processes_equal_one_with_the_whole_batch(tmp_path, sizes):
    mp.start_processes(_train_part, (sizes, tmp_path), 2, start_method="fork")
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    wanted = step(*data((4, 5, 3, 3)))
    for _, exchanges, waits in parts:
        assert exchanges == ["all_gather_into_tensor", "all_reduce"]
        assert not waits
    found = [part[0] for part in parts]
    for index in range(2):  # output and gradient of x: a share each
        torch.testing.assert_close(torch.cat([f[index] for f in found]), wanted[index], **DOUBLE)
    for index in (2, 3):  # gradients of weight and bias: added up
        torch.testing.assert_close(found[0][index] + found[1][index], wanted[index], **DOUBLE)
    for index in (4, 5):  # running statistics: of the whole batch on each
        for f in found:
            torch.testing.assert_close(f[index], wanted[index], **DOUBLE)


def test_a_wait_is_reported_with_operation_and_line():
    with PretendGpu() as gpu:
        x = torch.ones(3, device=CUDA)
        assert not gpu.waits
        x.sum().item()
        x[x > 0]
        x + torch.ones(3).to(CUDA)
        x + torch.ones(3).to(CUDA, non_blocking=True)
        what = {operation: times for (operation, _), times in gpu.waits.items()}
        with pytest.raises(RuntimeError, match=r"cuda.*cpu"):
            x + torch.ones(3)
    assert what == {
        "_local_scalar_dense": 1,
        "index by mask": 1,
        "copy from the host, not non_blocking": 1,
    }
    assert "1 x index by mask at outside the program" in lines(gpu.waits)
