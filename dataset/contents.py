"""The list of a split's files, stored in checkpoints so that a run resumes on the same data."""

import json
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.base import SegmentationDataset

_READERS = 16
_SHOWN = 3

Files = list[tuple[str, int, int]]
"""Per image, in the split's order: name, size of the image file and of its label (-1: missing)."""


def files_of(pictures: SegmentationDataset) -> Files:
    """List the files of a split as they are on disk now."""
    folder, names = pictures.folder, pictures.names
    with ThreadPoolExecutor(_READERS) as readers:  # network disks have high latency
        images = readers.map(_size, (folder / name for name in names))
        labels = readers.map(_size, (folder / name for name in pictures.label_names))
        return list(zip(names, images, labels, strict=True))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def packed(files: Files) -> Tensor:
    """Compress to a tensor of bytes, about 20 per file."""
    content = zlib.compress(json.dumps(files).encode())
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def unpacked(content: Tensor) -> Files:
    """The inverse of `packed`.

    Raises:
        ValueError, zlib.error, TypeError: `content` does not have that form.
    """
    files = json.loads(zlib.decompress(content.numpy().tobytes()))
    return [(str(name), int(image), int(label)) for name, image, label in files]


def differences(split: str, before: Files, now: Files) -> list[str]:
    """Describe each change in a phrase; empty if files and order are the same."""
    sizes_before = {name: sizes for name, *sizes in before}
    sizes_now = {name: sizes for name, *sizes in now}
    gone = [name for name in sizes_before if name not in sizes_now]
    new = [name for name in sizes_now if name not in sizes_before]
    resized = [name for name, sizes in sizes_now.items() if sizes_before.get(name, sizes) != sizes]
    found = [
        f"{split} images {kind}: {_listed(names)}"
        for kind, names in (("gone", gone), ("new", new), ("of other files", resized))
        if names
    ]
    common_before = [name for name, *_ in before if name in sizes_now]
    common_now = [name for name, *_ in now if name in sizes_before]
    if common_before != common_now:
        place = next(
            (one for one, other in zip(common_now, common_before, strict=False) if one != other),
            "an image more than once",
        )
        found.append(f"{split} images in another order, from {place} on")
    return found


def changes(kept: Any, now: dict[str, Files]) -> Iterable[str]:
    """The changes of every split since the checkpoint.

    Args:
        kept: {split: `packed` files} from the checkpoint, None if it has none.
    """
    if not isinstance(kept, dict):
        return
    for split, files in now.items():
        content = kept.get(split)
        if isinstance(content, Tensor):
            try:
                before = unpacked(content)
            except (ValueError, TypeError, zlib.error):
                yield f"the list of {split} images cannot be read there"
            else:
                yield from differences(split, before, files)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
