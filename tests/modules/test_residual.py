"""Recomputed activations change memory and nothing else."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modules.abn import NORMS, norm_factory
from modules.residual import Bottleneck
from modules.segmentation import build_model

EXACT = {"rtol": 0, "atol": 1e-13}


def blocks(norm_act, checkpointed):
    """A projection with a stride, a plain block, and a dilated one with a projection."""
    torch.manual_seed(0)
    shapes = [(12, 4, 2, 1), (16, 4, 1, 1), (16, 8, 1, 2)]
    norm = norm_factory(norm_act)
    stack = [Bottleneck(*shape, norm, checkpoint_activations=checkpointed) for shape in shapes]
    return nn.Sequential(*stack).double()


def trained(model, batches):
    """Outputs of all batches, the gradients of one loss of them all, and the model's buffers."""
    torch.manual_seed(1)  # for dropout
    outputs = [output for images in batches for output in model(images)]
    loss = sum(
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() for output in outputs
    )
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return outputs, gradients, dict(model.named_buffers())


def assert_same(found, expected):
    for ours, theirs in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            scale = max(1.0, theirs[name].abs().max().item())
            torch.testing.assert_close(ours[name] / scale, theirs[name] / scale, **EXACT, msg=name)


@pytest.mark.parametrize("norm_act", NORMS)
def test_values_gradients_and_statistics_are_those_of_plain_blocks(norm_act):
    torch.manual_seed(2)
    # Two forward passes before one backward pass: their recomputations must not mix.
    batches = [torch.randn(3, 12, 9, 10).double() for _ in range(2)]
    expected = trained(blocks(norm_act, False), batches)
    found = trained(blocks(norm_act, True), batches)
    assert_same(found, expected)
    counters = [value for name, value in found[2].items() if name.endswith("num_batches_tracked")]
    assert {int(value) for value in counters} == {2}


def test_the_whole_network_trains_alike():
    torch.manual_seed(2)
    images = [torch.randn(2, 3, 33, 40).double()]
    parts = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = build_model(checkpoint_activations=checkpointed).double()
        parts.append(trained(model, images))
    assert_same(parts[1], parts[0])


def test_statistics_are_tracked_again_after_the_recomputation():
    model = blocks("iabn", True)
    images = torch.randn(3, 12, 9, 10).double()
    trained(model, [images])
    norm = model[0].convs.bn1
    before = norm.running_mean.clone()
    trained(model, [images])
    assert not torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 2


def test_only_the_input_of_a_block_is_kept():
    torch.manual_seed(0)
    kept = {}
    for checkpointed in (False, True):
        block = Bottleneck(
            64, 16, 1, 1, norm_factory("iabn"), checkpoint_activations=checkpointed
        ).double()
        saved = {}

        def pack(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor.shape
            return tensor

        x = torch.randn(2, 64, 8, 8).double()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(x)
        kept[checkpointed] = sum(
            len(shape) == 4 and shape[-2:] == (8, 8) for shape in saved.values()
        )
    # The input, three norms' outputs and the activated sum; or the input alone.
    assert kept == {False: 5, True: 1}


def test_evaluation_and_gradientless_passes_recompute_nothing(monkeypatch):
    monkeypatch.setattr("modules.residual.checkpoint", None)  # calling it would fail
    model = blocks("std", True)
    images = torch.randn(3, 12, 9, 10).double()
    with torch.no_grad():
        model(images)
    model.eval()(images)


def _train_part(rank, init_file, results):
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(2)
        images = torch.randn(2, 3, 12, 9, 10).double()[rank]  # each process has its own images
        model = DistributedDataParallel(blocks("iabn_sync", checkpointed))
        found.append(trained(model, [images]))
    torch.save(found, f"{results}{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_synchronise_while_recomputing(tmp_path):
    mp.start_processes(_train_part, (tmp_path / "init", tmp_path / "rank"), 2, start_method="fork")
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for plain, checkpointed in parts:
        assert_same(checkpointed, plain)
    for index in (1, 2):  # gradients and running statistics are the same on both
        for name, value in parts[0][1][index].items():
            torch.testing.assert_close(parts[1][1][index][name], value, rtol=1e-9, atol=1e-12)
    assert not torch.equal(parts[0][1][0][0], parts[1][1][0][0])
