"""Checkpoints for the published code, against the list of its names and shapes."""

import json
from pathlib import Path

import pytest
import torch

from modules.backbones import BACKBONES
from modules.segmentation import build_model
from modules.weights.pretrained import main
from modules.weights.published import to_published
from tests.reliability.tiny import ONE_BLOCK
from utils.checkpoint import WeightsError, load_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "pans_state_dict.json"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
KEYS = {"epoch", "model_state", "optimizer_state", "scheduler_state", "best_score", "trainer_state"}


def own_checkpoint(state, momentum):
    """What a run saves after 3 epochs of 5 steps."""
    return {
        "model_state": state,
        "optimizer_state": {
            "state": {number: {"momentum_buffer": value} for number, value in momentum.items()},
            "param_groups": [{"lr": 0.004, "params": list(momentum)}],
        },
        "scheduler_state": {},
        "epoch": 3,
        "iteration": 15,
        "steps_per_epoch": 5,
        "best_score": 0.25,
        "options": {"lr": 0.007, "momentum": 0.9, "weight_decay": 1e-4, "fix_bn": False},
    }


def test_names_and_groups_are_those_of_the_published_checkpoints():
    table = json.loads(GOLDEN.read_text())
    parameters = [name for name in table if not name.endswith(BUFFERS)]
    # Tensors of one value each, so that none takes any memory.
    state = {name: torch.zeros(()).expand(shape) for name, shape in table.items()}
    momentum = {i: torch.tensor(float(i)).expand(table[name]) for i, name in enumerate(parameters)}
    found = to_published(own_checkpoint(state, momentum), state)
    assert found.keys() == KEYS
    assert [name.removeprefix("module.") for name in found["model_state"]] == list(table)
    assert all(name.startswith("module.") for name in found["model_state"])
    shapes = [list(value.shape) for value in found["model_state"].values()]
    assert shapes == list(table.values())
    groups = found["optimizer_state"]["param_groups"]
    named = [[parameters[number] for number in group["params"]] for group in groups]
    # Counted in the list: 32 convolutions and 53 norms of body, and so on.
    assert [len(names) for names in named] == [159, 18, 2]
    for names, part in zip(named, ("body.", "head.", "cls."), strict=True):
        assert all(name.startswith(part) for name in names)
    buffers = found["optimizer_state"]["state"]
    for number, name in enumerate(parameters):
        assert list(buffers[number]["momentum_buffer"].shape) == table[name]
        assert float(buffers[number]["momentum_buffer"].flatten()[0]) == number
    assert found["epoch"] == 2  # the index of the last epoch that is done
    assert found["best_score"] == 0.25


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet50", ONE_BLOCK)
    torch.manual_seed(0)
    return build_model()


class Poly(torch.optim.lr_scheduler.LRScheduler):
    """The published schedule over 20 steps, which the published code steps by the step."""

    def get_lr(self):
        return [rate * (1 - self.last_epoch / 20) ** 0.9 for rate in self.base_lrs]


def published_optimizer(model):
    """As the published code makes it, with three groups."""
    parts = [model.body, model.head, model.cls]
    groups = [{"params": list(part.parameters())} for part in parts]
    optimizer = torch.optim.SGD(groups, 0.007, momentum=0.9, weight_decay=1e-4, nesterov=True)
    return optimizer, Poly(optimizer)


def test_the_published_optimizer_loads_momentum_and_schedule(small, tmp_path, capsys):
    momentum = {i: torch.randn_like(p) for i, p in enumerate(small.parameters())}
    torch.save(own_checkpoint(small.state_dict(), momentum), tmp_path / "own.pth")
    main([str(tmp_path / "own.pth"), "--out", str(tmp_path / "new.pth"), "--published"])
    assert f"written     {tmp_path / 'new.pth'}" in capsys.readouterr().out
    found = torch.load(tmp_path / "new.pth", weights_only=True)
    model = torch.nn.ModuleDict({"module": build_model()})
    model.load_state_dict(found["model_state"])  # every name, none left over
    optimizer, schedule = published_optimizer(model["module"])
    optimizer.load_state_dict(found["optimizer_state"])
    schedule.load_state_dict(found["scheduler_state"])
    for number, parameter in enumerate(model["module"].parameters()):
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum[number])
    assert schedule.last_epoch == 15
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.007 * (1 - 16 / 20) ** 0.9] * 3)


def test_frozen_norms_have_no_momentum(small, tmp_path):
    small.freeze_norms()
    trained = [p for p in small.parameters() if p.requires_grad]
    momentum = {i: torch.randn_like(p) for i, p in enumerate(trained)}
    torch.save(own_checkpoint(small.state_dict(), momentum), tmp_path / "own.pth")
    main([str(tmp_path / "own.pth"), "--out", str(tmp_path / "new.pth"), "--published"])
    groups = load_checkpoint(tmp_path / "new.pth")["optimizer_state"]["param_groups"]
    parts = (small.body, small.head, small.cls)
    expected = [sum(p.requires_grad for p in part.parameters()) for part in parts]
    assert [len(group["params"]) for group in groups] == expected


def test_a_published_checkpoint_is_kept_as_it_is_and_weights_alone_stay_weights(small, tmp_path):
    own = tmp_path / "own.pth"
    momentum = {i: torch.zeros_like(p) for i, p in enumerate(small.parameters())}
    torch.save(own_checkpoint(small.state_dict(), momentum), own)
    first, second, bare = (str(tmp_path / f"{name}.pth") for name in ("first", "second", "bare"))
    main([str(own), "--out", first, "--published"])
    main([first, "--out", second, "--published"])
    one, two = load_checkpoint(first), load_checkpoint(second)
    assert one.keys() == two.keys() == KEYS
    assert (one["epoch"], one["scheduler_state"]) == (two["epoch"], two["scheduler_state"])
    assert list(one["model_state"]) == list(two["model_state"])
    torch.save(small.state_dict(), bare)
    main([bare, "--out", second, "--published"])
    assert load_checkpoint(second).keys() == {"epoch", "model_state"}


def test_what_cannot_be_written_for_the_published_code_is_one_line(small, tmp_path):
    own = tmp_path / "own.pth"
    torch.save(small.state_dict(), own)
    with pytest.raises(WeightsError, match="--published writes a file: name it with --out"):
        main([str(own), "--published"])
    torch.save(small.body.state_dict(), own)
    with pytest.raises(WeightsError, match=r"ImageNet weights .*: --published takes a checkpoint"):
        main([str(own), "--published", "--out", str(tmp_path / "new.pth")])
    momentum = {0: torch.zeros(1)}  # of one parameter
    torch.save(own_checkpoint(small.state_dict(), momentum), own)
    with pytest.raises(WeightsError, match="a state of training that does not fit"):
        main([str(own), "--published", "--out", str(tmp_path / "new.pth")])
    assert not (tmp_path / "new.pth").exists()
