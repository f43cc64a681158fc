"""Resuming a run: from which checkpoint, whether it is this run's own, and at which step.

A checkpoint is only resumed by the run that wrote it, which means with the same flags, as far as
they affect the weights, and the same number of processes, unless --accept_changes is passed.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from argparser import Options, flags_that_affect
from modules.weights.published import is_published
from utils.checkpoint import (
    CheckpointError,
    DamagedCheckpoint,
    checkpoint_places,
    find_checkpoint,
    load_checkpoint,
    model_state,
    peek,
    previous_path,
    refuse_no_file,
)
from utils.distributed import Process
from utils.step_guard import StepGuard, start_momentum_at_zero

_WEIGHTS_ALONE = "use another checkpoint, or start with its weights alone: --restart --ckpt"
_RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


class RunSize(NamedTuple):
    """Steps per epoch and number of processes, which define what a step is."""

    steps_per_epoch: int
    world_size: int


@dataclass(frozen=True)
class Progress:
    """Completed epochs, including their validation, and completed steps of the whole run.

    `notes` are sentences on the differences from the checkpoint.
    """

    epoch: int
    iteration: int
    notes: tuple[str, ...] = ()

    def first_step(self, shape: RunSize) -> int:
        """The completed steps of the unfinished epoch."""
        return self.iteration - self.epoch * shape.steps_per_epoch

    def first_logged(self, shape: RunSize) -> int:
        """The first step whose TensorBoard points will be written again.

        Those of the current step exist already, unless its validation is still due.
        """
        validation_is_due = self.first_step(shape) == shape.steps_per_epoch
        return self.iteration if self.iteration == 0 or validation_is_due else self.iteration + 1


def starting_checkpoint(options: Options) -> Path | None:
    """The file to start from: the run's own checkpoint, else --ckpt, else None.

    With --restart the run's own files are first renamed, unless a launcher restarted the command;
    so is a best checkpoint without a newest one. A damaged file of the run is renamed too, and the
    previous one is used.

    Raises:
        CheckpointError: all candidates are damaged, or --ckpt is missing.
    """
    own, given = options.checkpoint_path, options.ckpt
    _refuse_files_of_others(options)
    is_relaunched = any(os.environ.get(name, "0") != "0" for name in _RESTART_COUNTS)
    is_new = not own.exists() and not previous_path(own).exists()
    from_scratch = options.restart and not is_relaunched
    if not is_new and not from_scratch:
        return _undamaged(own)
    if from_scratch or options.best_checkpoint_path.exists():
        if given is not None:
            _undamaged(find_checkpoint(given, own.parent))  # before anything is moved
        set_aside(options)
    return None if given is None else _undamaged(_place_aside(given, options))


def _refuse_files_of_others(options: Options) -> None:
    """Raise if another run's files have this run's names."""
    for path in own_files(options):
        refuse_no_file(path)
        if path != options.checkpoint_path and path.exists():
            saved = peek(path).get("options")
            if isinstance(saved, Mapping) and saved.get("name") == path.stem:
                raise CheckpointError(
                    f"{path} is the newest checkpoint of a run named {path.stem}, and run "
                    f"{options.name} would overwrite it; choose another --name"
                )


def _undamaged(path: Path) -> Path:
    previous = previous_path(path)
    try:
        load_checkpoint(path)
    except DamagedCheckpoint as damage:
        if not previous.is_file():
            raise
        load_checkpoint(previous)
        print(f"WARNING: {damage}; {previous}, the one before, is taken")
        # Otherwise the next checkpoint would replace the good one by the damaged one.
        with suppress(OSError):
            path.replace(path.with_stem(f"{path.stem}_damaged"))
        return previous
    return path


def set_aside(options: Options) -> None:
    """Rename the checkpoints of an earlier run of this name to NAME_old1 and so on."""
    number = _times_set_aside(options) + 1
    for path in own_files(options):
        if path.is_file():
            aside = path.replace(_aside(path, options, number))
            print(f"{path} is kept as {aside}")


def _place_aside(given: str, options: Options) -> Path:
    """The file of --ckpt, or its new path if --restart has renamed it."""
    folder, number = options.checkpoint_path.parent, _times_set_aside(options)
    places = {place.resolve() for place in checkpoint_places(given, folder)}
    for own in own_files(options):
        if number and own.resolve() in places:
            return _aside(own, options, number)
    return find_checkpoint(given, folder)


def own_files(options: Options) -> tuple[Path, Path, Path]:
    """A run's checkpoints: the one before the newest, the best and the newest."""
    own = options.checkpoint_path
    return previous_path(own), options.best_checkpoint_path, own


def _aside(path: Path, options: Options, number: int) -> Path:
    rest = path.stem.removeprefix(options.checkpoint_path.stem)
    return path.with_stem(f"{options.checkpoint_path.stem}_old{number}{rest}")


def _times_set_aside(options: Options) -> int:
    """The highest number that --restart has given to files of this run; 0 if there are none."""
    own = options.checkpoint_path
    pattern = re.compile(re.escape(own.stem) + r"_old(\d+)(_best|_previous)?")
    names = (pattern.fullmatch(path.stem) for path in own.parent.glob("*.pth"))
    return max((int(name[1]) for name in names if name), default=0)


def is_continued(checkpoint: Mapping[str, Any], path: Path, options: Options) -> bool:
    """Whether to resume: not from weights alone, nor from the --ckpt of a --restart."""
    has_state = "iteration" in checkpoint or is_published(checkpoint)
    return has_state and (is_own(path, options) or not options.restart)


def describe_start(path: Path, position: Progress | None, options: Options, shape: RunSize) -> str:
    """The start-up line about a checkpoint, with notes on accepted changes."""
    if position is None:
        return f"starts with the weights of {path}"
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
    """The options for the next checkpoint; those of the run's start are kept."""
    values, saved = options.to_dict(), checkpoint["options"]
    if is_own(path, options):
        values |= {name: saved[name] for name in flags_that_affect("start") if name in saved}
    return values


def position_in(
    checkpoint: Mapping[str, Any],
    path: Path,
    options: Options,
    shape: RunSize,
    data_changes: Iterable[str] = (),
) -> Progress:
    """Where to resume, in steps of this run.

    Args:
        data_changes: differences of the data from those of the checkpoint's run.

    Raises:
        CheckpointError: another run wrote the checkpoint, and --accept_changes is not passed.
    """
    epoch, iteration = (_count(checkpoint, name, path) for name in ("epoch", "iteration"))
    saved = RunSize(
        _count(checkpoint, "steps_per_epoch", path, shape.steps_per_epoch),
        _count(checkpoint, "world_size", path, shape.world_size),
    )
    changes = [*_changed_flags(checkpoint, path, options), *_changed_shape(saved, shape)]
    changes += data_changes
    if changes and not options.accept_changes:
        raise CheckpointError(
            f"{path} is of another run: {'; '.join(changes)}; use what it was written with, take "
            "the change with --accept_changes, or start from scratch with --restart, which keeps it"
        )
    done = iteration - epoch * saved.steps_per_epoch
    if not 0 <= done <= saved.steps_per_epoch:
        raise CheckpointError(
            f"{path} is at step {iteration} and epoch {epoch}, which do not fit to "
            f"{saved.steps_per_epoch} steps an epoch; {_WEIGHTS_ALONE}"
        )
    done = done * shape.steps_per_epoch // max(saved.steps_per_epoch, 1)
    here = epoch * shape.steps_per_epoch + done
    if not changes:
        unknown = f"{path} tells no flags of its run: those of this command hold"
        return Progress(epoch, here, () if checkpoint["options"] else (unknown,))
    notes = (
        f"--accept_changes takes {path} with {'; '.join(changes)}",
        f"its step {iteration} is step {here} here: the learning rate is that of --lr, --epochs "
        "and this step, and is not scaled to the number of images in a step",
    )
    return Progress(epoch, here, notes)


def _count(checkpoint: Mapping[str, Any], name: str, path: Path, default: int | None = None) -> int:
    value = checkpoint.get(name, default)
    if type(value) is not int or value < 0:
        raise CheckpointError(
            f"{path} should hold a whole number as {name}, got {value!r:.50}; {_WEIGHTS_ALONE}"
        )
    return value


def best_score_of(score: float, path: Path, options: Options) -> float:
    """The best score so far if its checkpoint still exists, else the initial value.

    Otherwise later weights might never beat the lost best ones and would not be kept.

    Args:
        score: the best score stored in the checkpoint `path`.
    """
    if score < 0:
        return score
    try:
        model_state(load_checkpoint(options.best_checkpoint_path))
    except CheckpointError as error:
        if is_own(path, options):
            print(f"WARNING: {error}; the best of the following weights are kept instead")
        return -1.0
    return score


def is_own(path: Path, options: Options) -> bool:
    """Whether `path` is the run's newest checkpoint or the one before."""
    own = options.checkpoint_path
    return path.absolute() in {own.absolute(), previous_path(own).absolute()}


def _names_own(options: Options) -> bool:
    """Whether --ckpt names the run's own checkpoint."""
    if options.ckpt is None:
        return False
    places = checkpoint_places(options.ckpt, options.checkpoint_path.parent)
    return any(is_own(place, options) for place in places)


def _changed_flags(checkpoint: Mapping[str, Any], path: Path, options: Options) -> list[str]:
    saved, own = checkpoint.get("options"), options.to_dict()
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path} tells no options of its run; {_WEIGHTS_ALONE}")
    free = flags_that_affect("test", "nothing")
    if not is_own(path, options) or _names_own(options):
        free |= flags_that_affect("start")
    elif options.ckpt is None:
        free |= {"ckpt"}
    return [
        f"--{name} {saved[name]} there, {value} here"
        for name, value in own.items()
        if name in saved
        and name not in free
        and saved[name] != value
        # Older checkpoints do not store which precision the default was.
        and (name, saved[name]) != ("precision", None)
    ]


def _changed_shape(saved: RunSize, shape: RunSize) -> list[str]:
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
        CheckpointError: the stored state does not fit the network.
    """
    processes = checkpoint.get("processes", [])
    try:
        momentum = checkpoint["optimizer_state"]["state"]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": momentum})
        start_momentum_at_zero(optimizer)  # if the file has none
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                # In the layout of the parameter, which may have differed on another device.
                state[name] = torch.empty_like(parameter).copy_(value.view_as(parameter))
                if not state[name].isfinite().all():
                    raise ValueError("momentum is not finite")
        if len(processes) == process.world_size:
            own = processes[process.rank]
            guard.load_state_dict(own["guard"])
            restore_random_state(own["random"], process.device)
        return float(checkpoint["best_score"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds a state of training that does not fit ({type(error).__name__}); "
            f"{_WEIGHTS_ALONE}"
        ) from error


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators of dropout, on the CPU and on `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Restore the generators from `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
