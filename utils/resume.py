"""Going on with a run: from which checkpoint, whether it is this very run's, and at which step.

A checkpoint is continued only by the run that wrote it, that is with the same flags wherever they
bear on the weights and with the same number of processes, unless --accept_changes asks otherwise.
"""

import glob
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from argparser import Options
from utils.checkpoint import CheckpointError, DamagedCheckpoint, load_checkpoint, previous_path
from utils.distributed import Process
from utils.step_guard import StepGuard

# Flags that bear on where things lie, on what is shown, on the test or on how fast it goes.
FREE_FLAGS = {
    *("name", "default", "logdir", "checkpoints", "restart", "accept_changes", "print_interval"),
    *("data_root", "num_workers", "unk_class", "ckpt_interval", "ckpt_minutes", "max_bad_steps"),
    *("test", "ckpt_test", "val_interval", "val_on_trainset", "multi_scala", "cosine_scores"),
    *("msp", "ignore_classes", "sample_num", "visualize", "opt_level", "nproc", "local_rank"),
    *("timeout", "score", "mc_dropout", "checkpoint_activations", "predict", "export", "out"),
    *("threshold", "calibrate_fpr", "frame_step", "ablate"),
}
# Flags that bear on the weights at the start alone.
START_FLAGS = {"ckpt", "no_pretrained", "pretrained"}
_WEIGHTS_ALONE = "use another checkpoint, or begin with its weights alone: --restart --ckpt"
_RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


class ResumeError(CheckpointError):
    """A checkpoint that this run can't go on from as it is."""


class Shape(NamedTuple):
    """What decides how far a step leads: the steps of an epoch and the processes that make them."""

    steps_per_epoch: int
    world_size: int


@dataclass(frozen=True)
class Position:
    """Epochs that are wholly done, their validation included, and steps done in the whole run.

    `notes` tell, a sentence each, how it differs from that in the checkpoint.
    """

    epoch: int
    iteration: int
    notes: tuple[str, ...] = ()

    def first_step(self, shape: Shape) -> int:
        """The steps of the unfinished epoch that are done."""
        return self.iteration - self.epoch * shape.steps_per_epoch

    def first_logged(self, shape: Shape) -> int:
        """The step from which TensorBoard's points will be written again.

        Those of the position itself are there already, but for a validation that is still due.
        """
        validation_is_due = self.first_step(shape) == shape.steps_per_epoch
        return self.iteration if self.iteration == 0 or validation_is_due else self.iteration + 1


def starting_checkpoint(options: Options) -> Path | None:
    """The file to start from: the run's own checkpoint, else --ckpt, else None.

    With --restart the run's own files are set aside first, unless it is a launcher that starts the
    command again. A damaged file of the run is set aside too, and the one before it serves.

    Raises:
        CheckpointError: every file that would serve is damaged, or --ckpt is missing.
    """
    own = options.checkpoint_path
    given = None if options.ckpt is None else Path(options.ckpt)
    if options.restart and not any(os.environ.get(name, "0") != "0" for name in _RESTART_COUNTS):
        given = given and _undamaged(given)  # before anything is moved
        moved = set_aside(options)
        return given and moved.get(given.absolute(), given)
    if own.exists() or previous_path(own).exists():
        return _undamaged(own)
    return given and _undamaged(given)


def _undamaged(path: Path) -> Path:
    previous = previous_path(path)
    try:
        load_checkpoint(path)
    except DamagedCheckpoint as damage:
        if not previous.is_file():
            raise
        load_checkpoint(previous)
        print(f"WARNING: {damage}; {previous}, the one before, is taken")
        # Or the next checkpoint would replace the good one by the damaged one.
        with suppress(OSError):
            path.replace(path.with_stem(f"{path.stem}_damaged"))
        return previous
    return path


def set_aside(options: Options) -> dict[Path, Path]:
    """Rename the checkpoints of an earlier run of this name to those of a run NAME_old1.

    Returns:
        Old to new path of each, absolute.
    """
    moved = {}
    own, best = options.checkpoint_path, options.best_checkpoint_path
    number = 1
    while any(own.parent.glob(f"{glob.escape(own.stem)}_old{number}*")):
        number += 1
    for path in (previous_path(own), best, own):
        if path.is_file():
            rest = path.stem.removeprefix(own.stem)
            aside = path.replace(path.with_stem(f"{own.stem}_old{number}{rest}"))
            moved[path.absolute()] = aside.absolute()
            print(f"--restart: {path} is kept as {aside}")
    return moved


def is_continued(checkpoint: Mapping[str, Any], path: Path, options: Options) -> bool:
    """Whether to go on where it stands: not if it holds weights alone, or if --restart names it."""
    return "iteration" in checkpoint and (is_own(path, options) or not options.restart)


def describe_start(path: Path, position: Position | None, options: Options, shape: Shape) -> str:
    """Start-up's line about a checkpoint, and the notes on what is taken otherwise than it was."""
    if position is None:
        return f"begins with the weights of {path}"
    notes = "".join(f"\nnote: {note}" for note in position.notes)
    if position.epoch >= options.epochs:
        return f"{path} has done its {position.epoch} epochs: on to the test{notes}"
    step = position.first_step(shape)
    return (
        f"continues {path}: epoch {position.epoch + 1} of {options.epochs}, "
        f"{step} of {shape.steps_per_epoch} steps done{notes}"
    )


def options_to_record(
    checkpoint: Mapping[str, Any], path: Path, options: Options
) -> dict[str, Any]:
    """The options for the next checkpoint: how the run began stays what it was."""
    values, saved = options.to_dict(), checkpoint["options"]
    if is_own(path, options):
        values |= {name: saved[name] for name in START_FLAGS if name in saved}
    return values


def position_in(
    checkpoint: Mapping[str, Any], path: Path, options: Options, shape: Shape
) -> Position:
    """Where to go on, in steps of this run.

    Raises:
        ResumeError: another run has written the checkpoint, and --accept_changes is not given.
    """
    epoch, iteration = (_count(checkpoint, name, path) for name in ("epoch", "iteration"))
    saved = Shape(
        _count(checkpoint, "steps_per_epoch", path, shape.steps_per_epoch),
        _count(checkpoint, "world_size", path, shape.world_size),
    )
    changes = [*_changed_flags(checkpoint, path, options), *_changed_shape(saved, shape)]
    if changes and not options.accept_changes:
        raise ResumeError(
            f"{path} is of another run: {'; '.join(changes)}; use what it was written with, take "
            "the change with --accept_changes, or start anew with --restart, which keeps the file"
        )
    done = iteration - epoch * saved.steps_per_epoch
    if not 0 <= done <= saved.steps_per_epoch:
        raise ResumeError(
            f"{path} is at step {iteration} and epoch {epoch}, which do not fit to "
            f"{saved.steps_per_epoch} steps an epoch; {_WEIGHTS_ALONE}"
        )
    done = done * shape.steps_per_epoch // max(saved.steps_per_epoch, 1)
    here = epoch * shape.steps_per_epoch + done
    if not changes:
        return Position(epoch, here)
    notes = (
        f"--accept_changes takes {path} with {'; '.join(changes)}",
        f"its step {iteration} is step {here} here: the learning rate is that of --lr, --epochs "
        "and this step, and is not scaled to the number of images in a step",
    )
    return Position(epoch, here, notes)


def _count(checkpoint: Mapping[str, Any], name: str, path: Path, default: int | None = None) -> int:
    value = checkpoint.get(name, default)
    if type(value) is not int or value < 0:
        raise ResumeError(
            f"{path} should hold a whole number as {name}, got {value!r:.50}; {_WEIGHTS_ALONE}"
        )
    return value


def is_own(path: Path | str | None, options: Options) -> bool:
    """Whether `path` is the run's newest checkpoint or the one before."""
    own = options.checkpoint_path
    return path is not None and Path(path).absolute() in {
        own.absolute(),
        previous_path(own).absolute(),
    }


def _changed_flags(checkpoint: Mapping[str, Any], path: Path, options: Options) -> list[str]:
    saved, own = checkpoint.get("options"), options.to_dict()
    if not isinstance(saved, Mapping):
        raise ResumeError(f"{path} tells no options of its run; {_WEIGHTS_ALONE}")
    free = FREE_FLAGS
    if not is_own(path, options) or is_own(options.ckpt, options):
        free = free | START_FLAGS
    elif options.ckpt is None:
        free = free | {"ckpt"}
    return [
        f"--{name} {saved[name]} there, {value} here"
        for name, value in own.items()
        if name in saved and name not in free and saved[name] != value
    ]


def _changed_shape(saved: Shape, shape: Shape) -> list[str]:
    changes = []
    if saved.world_size != shape.world_size:
        changes.append(f"{saved.world_size} processes there, {shape.world_size} here")
    if saved.steps_per_epoch != shape.steps_per_epoch:
        changes.append(
            f"{saved.steps_per_epoch} steps an epoch there, {shape.steps_per_epoch} here"
        )
    return changes


def load_training_state(
    checkpoint: Mapping[str, Any],
    path: Path,
    optimizer: Optimizer,
    guard: StepGuard,
    process: Process,
) -> float:
    """Restore momentum, random generators and counts; returns the best score so far.

    The optimizer keeps its own rates and penalties, which are the flags'. Generators and counts
    are restored only among as many processes as have written them.

    Raises:
        ResumeError: what is stored fits neither the network nor this code.
    """
    processes = checkpoint.get("processes", [])
    try:
        momentum = checkpoint["optimizer_state"]["state"]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": momentum})
        for parameter, state in optimizer.state.items():
            for value in state.values():
                value.view_as(parameter)
        if len(processes) == process.world_size:
            own = processes[process.rank]
            guard.load_state_dict(own["guard"])
            restore_random_state(own["random"], process.device)
        return float(checkpoint["best_score"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ResumeError(
            f"{path} holds a state of training that does not fit ({type(error).__name__}); "
            f"{_WEIGHTS_ALONE}"
        ) from error


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators that dropout draws from, on the CPU and on `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Set the generators to what `random_state` has found."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
