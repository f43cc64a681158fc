"""Fitted scores: one pass over the training images, and a file beside the checkpoint.

Every image gives a state of fixed size. States are merged over the images of a process, then over
the processes.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from modules.inference.network import Inference
from modules.scores.network_output import State
from modules.scores.registry import SCORES
from modules.scores.score_map import Fit
from modules.scores.scorer import Scorer
from utils.distributed import Process, from_main, gather_objects
from utils.files import replacing, sha256_of
from utils.progress import ProgressBar


def fitted_states(
    names: Sequence[str],
    inference: Inference,
    loader: Any,
    process: Process,
    checkpoint: Path,
    settings: Sequence[Any],
    seed: int = 0,
) -> dict[str, State]:
    """{name: fitted state}, from the files beside the checkpoint or from a pass now.

    To be called by every process; all get the same result.

    Args:
        names: fitted scores; one pass serves all of them.
        loader: a loader of `dataset`, with this process's share of the training images.
        checkpoint: the file of the weights.
        settings: settings of the network that affect its output, as JSON types.
        seed: seed of random samples, in 0..2**32 - 1.

    Raises:
        PansError: no training image has a pixel of a known class, or values are not finite.
    """

    def kept() -> tuple[str, dict[str, State]]:
        files = _files_key(loader.dataset.reader.pictures)
        found = {name: kept_state(name, checkpoint, settings, seed, files=files) for name in names}
        return files, {name: state for name, state in found.items() if state is not None}

    files, states = from_main(process, kept)
    fits = {name: _fit_of(name) for name in names if name not in states}
    if fits:
        merged = _merged(fits, inference, loader, process, seed)
        new = from_main(process, lambda: {name: fits[name].finish(merged[name]) for name in fits})
        states |= new
        if process.is_main:
            _keep(new, checkpoint, settings, seed, files)
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
    """Path of a score's fitted state for a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}.{name}.pt")


def kept_state(
    name: str, checkpoint: Path, settings: Sequence[Any], seed: int = 0, *, files: str | None = None
) -> State | None:
    """The fitted state beside the checkpoint, if weights, settings and data are the same.

    Args:
        files: digest of the training images; None accepts any.
    """
    try:
        kept = torch.load(state_path(name, checkpoint), map_location="cpu", weights_only=True)
        if kept["settings"] != _described(name, settings, seed):
            return None
        if files not in (None, kept["files"]) or kept["weights"] != sha256_of(checkpoint):
            return None
        state: State = {str(key): value.clone() for key, value in kept["state"].items()}
        return state
    # torch.load raises errors of many types on damaged files; the score is then fitted again.
    except Exception:
        return None


def _keep(
    states: Mapping[str, State], checkpoint: Path, settings: Sequence[Any], seed: int, files: str
) -> None:
    """Write fitted states to the files from which `kept_state` reads them."""
    shared = {"weights": sha256_of(checkpoint), "files": files}
    for name, state in states.items():
        content = {"settings": _described(name, settings, seed), "state": dict(state)}
        # The checkpoint's folder may be read-only; the next test then fits the score again.
        with contextlib.suppress(OSError), replacing(state_path(name, checkpoint)) as file:
            torch.save(shared | content, file)


def _described(name: str, settings: Sequence[Any], seed: int) -> str:
    fit = _fit_of(name)
    return json.dumps([*settings, *fit.settings, seed if fit.drawn else None])


def _files_key(pictures: Any) -> str:
    """SHA-256 of the names, sizes and times of a split's images and labels."""
    names = [*pictures.names, *pictures.label_names]
    files = [(name, *_version(pictures.folder / name)) for name in names]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _version(path: Path) -> tuple[int, int]:
    """Size and modification time of a file; zeros if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
