"""Checkpoints in the structure of the published code, read and written.

A published checkpoint is {epoch, model_state, optimizer_state, scheduler_state, best_score,
trainer_state}: names have DistributedDataParallel's prefix `module.`, `epoch` is the index of the
last completed epoch, and the optimizer has three parameter groups: body, head and cls.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from utils.checkpoint import CheckpointError

PARTS = ("body", "head", "cls")
_KEYS = {"epoch", "model_state", "optimizer_state", "scheduler_state"}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def is_published(content: Mapping[str, Any]) -> bool:
    """Whether this is a checkpoint of the published code with a training state."""
    return content.keys() >= _KEYS and "iteration" not in content


def from_published(
    content: Mapping[str, Any], model: nn.Module, steps_per_epoch: int, source: str
) -> dict[str, Any]:
    """Convert a published checkpoint to the structure of this code.

    Args:
        model: the network, with the parameters that this run trains.
        steps_per_epoch: of this run, for schedules without a step count.
        source: the file, for the error message.

    Raises:
        CheckpointError: the content does not have that structure or does not fit the network.
    """
    try:
        epochs = int(content["epoch"]) + 1
        steps = int(content["scheduler_state"].get("last_epoch", epochs * steps_per_epoch))
        names = [name for name, _ in model.named_parameters()]
        buffers = _momentum_by_name(content["optimizer_state"], names, dict(model.named_buffers()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} holds a state of training that does not fit ({type(error).__name__}); use "
            "another checkpoint, or begin with its weights alone: --restart --ckpt"
        ) from error
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    return {
        **content,
        "epoch": epochs,
        "iteration": steps,
        "steps_per_epoch": steps // max(epochs, 1),
        "optimizer_state": {"state": _by_number(buffers, trained)},
        "best_score": content.get("best_score", -1.0),
        "options": {},
    }


def to_published(content: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Convert a run's checkpoint to the published structure; for weights alone, only the names.

    Args:
        content: the whole checkpoint, of this code or of the published one.
        state: its weights under this code's names, in the network's order.
    """
    network = {"model_state": {f"module.{name}": value for name, value in state.items()}}
    if is_published(content):
        return {**content, **network}
    if "iteration" not in content:
        return {"epoch": content.get("epoch", -1), **network}
    (rate,) = {group["lr"] for group in content["optimizer_state"]["param_groups"]}
    return {
        "epoch": content["epoch"] - 1,
        **network,
        "optimizer_state": _published_optimizer(content, state, rate),
        "scheduler_state": {
            "base_lrs": [content["options"]["lr"]] * len(PARTS),
            "last_epoch": content["iteration"],
            "_step_count": content["iteration"] + 1,
            "_last_lr": [rate] * len(PARTS),
        },
        "best_score": content["best_score"],
        "trainer_state": {},
    }


def _published_optimizer(
    content: Mapping[str, Any], state: Mapping[str, Tensor], rate: float
) -> dict[str, Any]:
    """The optimizer state of a run of this code, in the three published groups."""
    names = [name for name in state if not name.endswith(_BUFFERS)]
    optimizer, options = content["optimizer_state"], content["options"]
    trained = _trained(optimizer, names, state)
    settings = {
        "lr": rate,
        "momentum": options["momentum"],
        "dampening": 0,
        "weight_decay": options["weight_decay"],
        "nesterov": options["momentum"] > 0,
        "initial_lr": options["lr"],
    }
    parts = [name.partition(".")[0] for name in trained]
    groups = [[i for i, part in enumerate(parts) if part == wanted] for wanted in PARTS]
    buffers = _momentum_by_name(optimizer, names, state)
    return {
        "state": _by_number(buffers, trained),
        "param_groups": [{**settings, "params": numbers} for numbers in groups],
    }


def _by_number(buffers: Mapping[str, Tensor], trained: Sequence[str]) -> dict[int, Any]:
    """Momentum in the form of torch's SGD state, for the parameters in order."""
    return {
        number: {"momentum_buffer": buffers[name]}
        for number, name in enumerate(trained)
        if name in buffers
    }


def _trained(
    optimizer: Mapping[str, Any], names: Sequence[str], state: Mapping[str, Tensor]
) -> list[str]:
    """The trained parameters: all, or with --fix_bn all but those of norms."""
    count = sum(len(group["params"]) for group in optimizer["param_groups"])
    others = [name for name in names if f"{name.rpartition('.')[0]}.running_mean" not in state]
    for trained in (list(names), others):
        if len(trained) == count:
            return trained
    raise ValueError(f"{count} parameters in the optimizer's groups")


def _momentum_by_name(
    optimizer: Mapping[str, Any], names: Sequence[str], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The momentum buffer by parameter name; groups list parameters in the network's order."""
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    pairs = zip(_trained(optimizer, names, state), numbers, strict=True)
    found = {name: optimizer["state"].get(number, {}) for name, number in pairs}
    return {
        name: values["momentum_buffer"]
        for name, values in found.items()
        if values.get("momentum_buffer") is not None
    }
