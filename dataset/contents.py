"""Which files a split has, kept in checkpoints: a run continues on the data that it began with."""

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
"""Name of each image in the split's order, bytes of the image and of its label (-1: missing)."""


def files_of(pictures: SegmentationDataset) -> Files:
    """What a split holds now."""
    folder, names = pictures.folder, pictures.names
    with ThreadPoolExecutor(_READERS) as readers:  # disks on a network answer slowly, but many
        images = readers.map(_size, (folder / name for name in names))
        labels = readers.map(_size, (folder / name for name in pictures.label_names))
        return list(zip(names, images, labels, strict=True))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def packed(files: Files) -> Tensor:
    """As a tensor of bytes, which takes some 20 a file."""
    content = zlib.compress(json.dumps(files).encode())
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def unpacked(content: Tensor) -> Files:
    """The inverse of `packed`.

    Raises:
        ValueError, zlib.error, TypeError: it is not of that form.
    """
    files = json.loads(zlib.decompress(content.numpy().tobytes()))
    return [(str(name), int(image), int(label)) for name, image, label in files]


def differences(split: str, before: Files, now: Files) -> list[str]:
    """What has changed, a phrase each; empty for the same files in the same order."""
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
    """The differences of every split to what a checkpoint holds of it, if it holds that.

    Args:
        kept: {split: `packed` files}, or None.
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
