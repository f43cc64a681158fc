"""Small trees in the official layouts of data sets, with known pixels, and odd PNG files."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray


def save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(pixels).save(path, **lossless)


def noise(number: int, size: tuple[int, int] = (96, 64)) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)


def label(values: tuple[int, ...], size: tuple[int, int] = (96, 64)) -> Pixels:
    """Upright stripes of equal width of the given values."""
    columns = np.arange(size[0]) * len(values) // size[0]
    return np.tile(np.array(values, dtype=np.uint8)[columns], (size[1], 1))


BDD_LAYOUTS = (
    ("seg/images", "seg/labels", "_train_id"),
    ("images/10k", "seg/labels", "_train_id"),
    ("images/10k", "labels/sem_seg/masks", ""),
    ("seg/images", "labels/sem_seg/masks", ""),
)
BDD_SHIFTED = ("seg/images", "seg/train_labels", "_train_id")


def write_bdd100k(root: Path, layout: tuple[str, str, str] = BDD_LAYOUTS[0]) -> None:
    """Four training and three validation images; train/b, train/d and val/c hold anomalies.

    In the layout `BDD_SHIFTED` the labels hold train id + 2, and 1 in place of 255.
    """
    images, labels, ending = layout
    contents = {
        "train": {"a": (0, 1), "b": (0, 16), "c": (15, 255), "d": (17, 18)},
        "val": {"a": (3, 4), "b": (5, 6), "c": (10, 18, 255)},
    }
    for split, files in contents.items():
        for number, (name, values) in enumerate(files.items()):
            pixels = label(values)
            if layout == BDD_SHIFTED:
                pixels += 2  # 255 becomes 1
            save(root / "bdd100k" / images / split / f"{name}.jpg", noise(number))
            save(root / "bdd100k" / labels / split / f"{name}{ending}.png", pixels)


def write_fishyscapes(root: Path, images: str = "leftImg8bit") -> None:
    frames = {
        "train/04_Maurener_Weg_8": "04_Maurener_Weg_8_000000_000030",
        "test/02_Hanns_Klemm_Str_44": "02_Hanns_Klemm_Str_44_000001_000190",
    }
    for number, (folder, frame) in enumerate(frames.items()):
        save(root / images / folder / f"{frame}_leftImg8bit.png", noise(number))
        name = f"{number:04d}_{frame}_labels.png"
        save(root / "fishyscapes_lostandfound" / name, label((0, 1, 255)))


def write_road_anomaly(root: Path, name: str = "RoadAnomaly_jpg", suffix: str = ".jpg") -> None:
    folder = root / name
    for number, frame in enumerate(("animals01_cow", "rock02_road")):
        save(folder / "frames" / f"{frame}{suffix}", noise(number))
        save(folder / "frames" / f"{frame}.labels" / "labels_semantic.png", label((0, 2)))
    frames = [f"animals01_cow{suffix}", f"rock02_road{suffix}"]
    (folder / "frame_list.json").write_text(json.dumps(frames))


def write_track(root: Path, track: str, suffix: str) -> None:
    """Two validation images with labels (and their coloured copies), one test image without."""
    folder = root / track
    for number in range(2):
        name = f"validation{number:04d}"
        save(folder / "images" / f"{name}{suffix}", noise(number))
        save(folder / "labels_masks" / f"{name}_labels_semantic.png", label((0, 1, 255)))
        save(folder / "labels_masks" / f"{name}_labels_semantic_color.png", noise(number))
    save(folder / "images" / f"airplane0000{suffix}", noise(9))


CLASSES = "road 128 64 128\ntraffic sign 220 220 0\n\ncar 0 0 142\nanomaly 3\n"


def write_folder(root: Path, *, train: int = 4, validation: int = 1, test: int = 2) -> None:
    """Three classes; labels hold them, 255 and, in the test split, 3, named as the anomaly."""
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        for number in range(count):
            suffix = (".png", ".jpg", ".webp")[number % 3]
            values = (0, 1, 2, 255) + (3,) * (split == "test")
            save(root / "images" / split / "town" / f"{number}{suffix}", noise(number))
            save(root / "labels" / split / "town" / f"{number}.png", label(values))
    (root / "classes.txt").write_text(CLASSES)


def png(bits: int, colour_type: int, size: tuple[int, int] = (96, 64), body: bytes = b"") -> bytes:
    """A PNG file of zeros (or of `body`), of kinds that Pillow itself does not write."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    rows = (b"\0" + bytes(-(-size[0] * channels * bits // 8))) * min(size[1], 64)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0),
        b"IDAT": body or zlib.compress(rows),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def tiff(pixels: Pixels, *, order: str = "<", photometric: int = 1, more: Any = ()) -> bytes:
    """An uncompressed TIFF of one strip, as its specification has it, of any type of numbers.

    Args:
        pixels: (H, W) or (H, W, channels).
        order: "<" little-endian, ">" big-endian.
        photometric: 0 white is zero, 1 black is zero; of channels RGB in any case.
        more: (tag, value) that are added or take another's place.
    """
    height, width, *channels = pixels.shape
    samples = channels[0] if channels else 1
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    tags = {256: width, 257: height, 259: 1, 262: 2 if channels else photometric, 277: samples}
    tags |= {278: height, 279: len(data), 258: pixels.dtype.itemsize * 8, 339: kind, 273: 0}
    tags |= dict(more)
    entries, extra = b"", b""
    end = 10 + 12 * len(tags) + 4
    start = end + (samples * 4 if samples > 2 else 0)
    for tag, value in sorted(tags.items()):
        if tag in (258, 339):  # one for each channel
            words = struct.pack(f"{order}{samples}H", *[value] * samples)
            if len(words) > 4:
                extra += words
                words = struct.pack(f"{order}I", end + len(extra) - len(words))
            entries += struct.pack(f"{order}HHI", tag, 3, samples) + words.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, start if tag == 273 else value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + extra + data
