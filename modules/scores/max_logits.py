"""Statistics of the max logits on the training images, kept in a file beside the checkpoint."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modules.inference.network import Inference
from modules.scores.statistics import MaxLogitStatistics, max_logit_sums, statistics_of
from utils.distributed import Process, gather_objects
from utils.files import write_text
from utils.progress import ProgressBar


def statistics_path(checkpoint: Path) -> Path:
    """Where the statistics of a checkpoint are kept."""
    return checkpoint.with_name(f"{checkpoint.name}.max_logits.json")


def training_statistics(
    inference: Inference,
    loader: Any,
    process: Process,
    checkpoint: Path,
    settings: Any,
) -> MaxLogitStatistics:
    """Those in the file beside the checkpoint, or those of one pass over the training images.

    Every process calls this function, and all get the same statistics, whatever their number.

    Args:
        loader: of `dataset`, with this process's share of the training images.
        checkpoint: the weights' file; statistics of other weights are replaced.
        settings: how the images are looked at, in types that JSON takes; as for the weights.
    """
    path, key = statistics_path(checkpoint), ""
    kept = None
    if process.is_main:
        pictures = loader.dataset.reader.pictures
        files = [(name, *_version(pictures.folder / name)) for name in pictures.names]
        key = _key(checkpoint, files, settings)
        kept = _read(path, key)
    kept = gather_objects(kept)[0]
    if kept is not None:
        return kept
    progress = ProgressBar(loader, "max logits", shown=process.is_main)
    own = [(sample.index, max_logit_sums(inference.logits(sample.images))) for sample in progress]
    gathered = [pair for pairs in gather_objects(own) for pair in pairs]
    if not gathered:
        raise loader.dataset.reader.nothing_readable()
    # Added up in the order of the images, so that rounding does not depend on who saw which.
    sums = torch.stack([found for _, found in sorted(gathered, key=lambda pair: pair[0])]).sum(0)
    statistics = statistics_of(sums)
    if process.is_main:
        _write(path, key, statistics)
    return statistics


def _version(path: Path) -> tuple[int, int]:
    """What differs when a file has been written anew: its size and time; zeros if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _key(checkpoint: Path, files: Sequence[tuple[str, int, int]], settings: Any) -> str:
    """SHA-256 of all that the statistics depend on: weights, images and `settings`."""
    with checkpoint.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps([weights, files, settings]).encode()).hexdigest()


def _read(path: Path, key: str) -> MaxLogitStatistics | None:
    try:
        kept = json.loads(path.read_text())
        if kept["key"] != key:
            return None
        return MaxLogitStatistics(*(_vector(kept[name]) for name in ("mean", "deviation")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, key: str, statistics: MaxLogitStatistics) -> None:
    content = {
        "key": key,
        "mean": statistics.mean.tolist(),
        "deviation": statistics.deviation.tolist(),
    }
    # Checkpoints may lie where nothing can be written; the next test takes the pass again then.
    with contextlib.suppress(OSError):
        write_text(path, json.dumps(content) + "\n")


def _vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
