"""Scores that are fitted: one pass over the training images, and a file beside the checkpoint.

Every image gives a state of fixed size, and states merge: over the images of a process, then over
the processes. Merging is exact, so that neither order nor number of processes changes a bit.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.inference.network import Inference
from modules.scores.network_output import NetworkOutput, State
from modules.scores.registry import SCORES
from modules.scores.scorer import Scorer
from utils.distributed import Process, from_main, gather_objects
from utils.errors import PansError
from utils.files import replacing, sha256_of
from utils.progress import ProgressBar

_FRACTION_BITS = 60
_LARGEST_SUM = 2.0**62


# Sums


def exact(values: Tensor) -> Tensor:
    """Float64 values (...) -> fixed-point numbers (2, ...): whole part and 2^-60ths, both int64.

    Raises:
        PansError: a value is not finite, or its magnitude is 2^62 or more.
    """
    if not bool((values.abs() < _LARGEST_SUM).all()):
        raise PansError(
            "the network's output for a training image is not finite, or too large to be summed; "
            "its training had failed, use an earlier checkpoint"
        )
    whole = values.floor()
    fraction = ((values - whole) * 2.0**_FRACTION_BITS).round()
    return torch.stack([whole, fraction]).to(torch.int64)


def add_exact(first: State, second: State) -> State:
    """Entry by entry the sums of `exact` numbers, which depend on no order."""
    return {name: _carried(first[name] + second[name]) for name in first}


def _carried(total: Tensor) -> Tensor:
    carry = total[1] >> _FRACTION_BITS
    return torch.stack([total[0] + carry, total[1] - (carry << _FRACTION_BITS)])


def rounded(total: Tensor) -> Tensor:
    """`exact` numbers (2, ...) -> (...) float64."""
    return total[0].double() + total[1].double() / 2.0**_FRACTION_BITS


# Fitting


@dataclass(frozen=True)
class Fit:
    """How a score learns from the training images.

    Attributes:
        observe: (network output, label (H, W) uint8, seed) -> the state of one image. The seed
            depends on that of the run and on the image's index.
        finish: merged state -> what the score keeps, on the main process alone.
        merge: two states -> their state together; by default sums of `exact` numbers.
        drawn: whether the seed matters.
        settings: constants of the fit; others take the pass again.
    """

    observe: Callable[[NetworkOutput, Tensor, int], State]
    finish: Callable[[State], State]
    merge: Callable[[State, State], State] = add_exact
    drawn: bool = False
    settings: tuple[Any, ...] = ()


def labelled_features(output: NetworkOutput, label: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the pixels with a known class, of all scales together, and these classes.

    Args:
        label: (H, W) uint8; resized to the features' resolution, each pixel the nearest.

    Returns:
        (P, D), float32 at least, and (P,) int64 below the number of classes.
    """
    features, classes = [], []
    for one in output.features:
        own = F.interpolate(label[None, None].to(one.device), one.shape[2:], mode="nearest-exact")
        known = own.flatten() < output.logits[0].shape[1]
        features.append(pixels(one)[known])
        classes.append(own.flatten()[known].long())
    return torch.cat(features), torch.cat(classes)


def pixels(features: Tensor) -> Tensor:
    """(1, D, h, w) features -> (h * w, D), float32 at least."""
    rows = features.flatten(2)[0].T
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def class_sums(features: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(P, D) features and (P,) classes -> their numbers (C,) and sums (C, D), float64."""
    indicator = F.one_hot(classes, count).double()
    return indicator.sum(0), indicator.T @ features.double()


def fitted_states(
    names: Sequence[str],
    inference: Inference,
    loader: Any,
    process: Process,
    checkpoint: Path,
    settings: Sequence[Any],
    seed: int = 0,
) -> dict[str, State]:
    """{name: what the score has learned}: kept beside the checkpoint, or from one pass now.

    Every process calls this function, and all get the same, whatever their number.

    Args:
        names: of fitted scores; one pass serves all of them.
        loader: of `dataset`, with this process's share of the training images and their labels.
        checkpoint: the weights' file.
        settings: how the network is run, in types that JSON takes.
        seed: of random samples, in 0..2**32 - 1.

    Raises:
        PansError: no training image has a pixel of a known class, or values are not finite.
    """

    def kept() -> tuple[str, dict[str, State | None]]:
        files = _files_key(loader.dataset.reader.pictures)
        return files, {
            name: kept_state(name, checkpoint, settings, seed, files=files) for name in names
        }

    files, found = from_main(process, kept)
    states = {name: state for name, state in found.items() if state is not None}
    missing = [name for name in names if name not in states]
    if missing:
        fits = {name: _fit_of(name) for name in missing}
        merged = _merged(fits, inference, loader, process, seed)
        new = from_main(process, lambda: {name: fits[name].finish(merged[name]) for name in fits})
        states |= new
        if process.is_main:
            weights = sha256_of(checkpoint)
            for name, state in new.items():
                described = _described(name, settings, seed)
                content = {"weights": weights, "settings": described, "files": files}
                _write(state_path(name, checkpoint), content | {"state": dict(state)})
    return {name: states[name] for name in names}


def _fit_of(name: str) -> Fit:
    fit = SCORES[name].map.fit
    assert fit is not None
    return fit


@torch.inference_mode()
def _merged(
    fits: Mapping[str, Fit], inference: Inference, loader: Any, process: Process, seed: int
) -> dict[str, State]:
    """{name: the state of all training images of all processes}, on the CPU."""
    scorer, own = Scorer(inference, ()), dict[str, State]()
    for sample in ProgressBar(loader, "training images", shown=process.is_main):
        output = scorer.forward(sample.images, sample.label.shape)
        for name, fit in fits.items():
            state = fit.observe(output, sample.label, (seed << 31) + sample.index)
            own[name] = fit.merge(own[name], state) if name in own else state
    own = {name: {key: value.cpu() for key, value in state.items()} for name, state in own.items()}
    merged: dict[str, State] = {}
    for shared in gather_objects(own):
        for name, state in shared.items():
            merged[name] = fits[name].merge(merged[name], state) if name in merged else state
    if not merged:
        raise loader.dataset.reader.nothing_readable()
    return merged


# The file beside the checkpoint


def state_path(name: str, checkpoint: Path) -> Path:
    """Where what a score has learned for a checkpoint is kept."""
    return checkpoint.with_name(f"{checkpoint.name}.{name}.pt")


def kept_state(
    name: str, checkpoint: Path, settings: Sequence[Any], seed: int = 0, *, files: str | None = None
) -> State | None:
    """What is kept beside the checkpoint, if it is of the same weights, settings and data.

    Args:
        files: digest of the training images; None takes the state whatever they were.
    """
    try:
        kept = torch.load(state_path(name, checkpoint), map_location="cpu", weights_only=True)
        if kept["settings"] != _described(name, settings, seed):
            return None
        if files not in (None, kept["files"]) or kept["weights"] != sha256_of(checkpoint):
            return None
        state: State = {str(key): value.clone() for key, value in kept["state"].items()}
        return state
    # A damaged file meets torch.load with errors of many types; the pass is taken again then.
    except Exception:
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    # Checkpoints may lie where nothing can be written; the next test takes the pass again then.
    with contextlib.suppress(OSError), replacing(path) as file:
        torch.save(content, file)


def _described(name: str, settings: Sequence[Any], seed: int) -> str:
    fit = _fit_of(name)
    return json.dumps([*settings, *fit.settings, seed if fit.drawn else None])


def _files_key(pictures: Any) -> str:
    """SHA-256 of the names, sizes and times of a split's images and labels."""
    names = [*pictures.names, *pictures.label_names]
    files = [(name, *_version(pictures.folder / name)) for name in names]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _version(path: Path) -> tuple[int, int]:
    """What differs when a file has been written anew: its size and time; zeros if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
