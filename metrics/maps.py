"""Score maps, labels and predictions of any model: files matched by name, read exactly.

A score map keeps the number type of its file, so that distinct scores stay distinct.

| Format | What is read |
| --- | --- |
| .npy | an array (H, W) of any integer or float of up to 8 bytes |
| .npz | the same, alone in its archive |
| .png | grey of 8 or 16 bits |
| .tif, .tiff | one page of any integer or float of 8 bits and more |
| .h5, .hdf5 | the array "value" (SegmentMeIfYouCan's files), or the only one; needs h5py |
"""

import math
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from utils.errors import PansError
from utils.pictures import decode
from utils.reading import Unreadable, files_below, require_file, what_is

SUFFIXES = {
    "npy": (".npy",),
    "npz": (".npz",),
    "png": (".png",),
    "tif": (".tif", ".tiff"),
    "hdf5": (".h5", ".hdf5"),
}
MOST_BYTES = 1 << 32
"""Larger maps are treated as damaged files."""

# Suffixes of official label names.
_ENDINGS = re.compile(
    r"(\.labels/labels_semantic|_labels_semantic|_labels|_leftImg8bit|_train_id)$"
)
_NUMBER = re.compile(r"^\d{4}_(?=.+_\d{6}_\d{6}$)")  # of Fishyscapes' label maps
# Bits per sample and TIFF's SampleFormat (1 unsigned, 2 signed, 3 float) that Pillow reads exactly.
_EXACT_IN_PILLOW = {(8, 1), (16, 1), (16, 2), (32, 2), (32, 3)}
_TIFF_KINDS = {1: "u", 2: "i", 3: "f"}
_TIFF_TAGS = {  # name: tag, and its default if it may be absent
    "width": (256,),
    "height": (257,),
    "bits": (258, 1),
    "compression": (259, 1),
    "photometric": (262, 1),
    "fill order": (266, 1),
    "strips": (273,),
    "orientation": (274, 1),
    "samples": (277, 1),
    "counts": (279,),
    "predictor": (317, 1),
    "format": (339, 1),
}
_DEFLATE = ((8,), (32946,))


@dataclass(frozen=True)
class Entry:
    """The files of one image."""

    name: str
    scores: Path
    label: Path
    prediction: Path | None


# Matching


def match_files(
    scores: Path,
    labels: Path,
    predictions: Path | None,
    form: str | None,
    *,
    labelled: str = "",
    left_out: tuple[str, ...] = (),
) -> list[Entry]:
    """Match the score maps, sorted by name, with their labels and predictions.

    Names are compared by relative path without suffix; if none match, without the suffixes of
    official names (`_labels_semantic` and so on), and then without the folders of one side.

    Args:
        form: a key of SUFFIXES; None takes the one found in the folder.
        labelled: prefix of names that need a label; others are left out if they have none.
        left_out: prefixes of names to leave out.

    Raises:
        PansError: there are no score maps, two files share a name, or one has no counterpart.
    """
    folders = {"scores": scores, "labels": labels}
    if predictions is not None:
        folders["predictions"] = predictions
    alike = _named_alike(_find(folders, form))
    unlabelled = alike["scores"].keys() - alike["labels"].keys()

    def is_wanted(name: str) -> bool:
        last = PurePosixPath(name).name
        is_left_out = last.startswith(left_out)
        return not is_left_out and (name not in unlabelled or last.startswith(labelled))

    named = {
        kind: {name: path for name, path in files.items() if is_wanted(name)}
        for kind, files in alike.items()
    }
    _require_counterparts(named, folders)
    return [
        Entry(name, path, named["labels"][name], named.get("predictions", {}).get(name))
        for name, path in sorted(named["scores"].items())
    ]


def _find(folders: Mapping[str, Path], form: str | None) -> dict[str, dict[str, list[Path]]]:
    """{kind: {relative path without suffix: paths}} of the files below each folder.

    Raises:
        PansError: a folder is missing, or there are no score maps.
    """
    for folder in folders.values():
        if not folder.is_dir():
            raise PansError(f"{folder} is no folder; see --help for what goes where")
    suffixes = {"scores": SUFFIXES[form or _format_of(folders["scores"])]}
    found = {
        kind: _files(folder, suffixes.get(kind, (".png",))) for kind, folder in folders.items()
    }
    if not found["scores"]:
        raise PansError(
            f"no {form or 'npy'} file in {folders['scores']}; pass the folder as --scores and the "
            "kind of file as --format"
        )
    return {**found, "labels": _official(found["labels"])}


def _bare(name: str) -> str:
    return _ENDINGS.sub("", name)


def _last(name: str) -> str:
    return PurePosixPath(_bare(name)).name


def _named_alike(found: Mapping[str, Mapping[str, list[Path]]]) -> dict[str, dict[str, Path]]:
    """{kind: {name: path}}, by the first naming scheme in which score maps and labels match.

    Raises:
        PansError: two files of a kind share a name.
    """
    keys: list[Callable[[str], str]] = [str, _bare]
    # Different folders may have images of the same names: ignored only if one side has no folders.
    if any(all("/" not in _bare(name) for name in found[kind]) for kind in ("scores", "labels")):
        keys += [_last, lambda name: _NUMBER.sub("", _last(name))]
    named = [_by_key(found, key) for key in keys]
    if named[0] is None:
        one, other = next(
            paths[:2] for files in found.values() for paths in files.values() if len(paths) > 1
        )
        raise PansError(f"{one} and {other} share a name; keep one of them there")
    shared = (one for one in named if one and one["scores"].keys() & one["labels"].keys())
    return next(shared, named[0])


def _format_of(folder: Path) -> str:
    """The only kind of score maps in a folder; "npy" if there are none."""
    held = {path.suffix.lower() for path in files_below(folder)}
    kinds = [kind for kind, suffixes in SUFFIXES.items() if held.intersection(suffixes)]
    if len(kinds) > 1:
        raise PansError(
            f"{folder} holds files of several kinds, {' and '.join(kinds)}; choose by --format"
        )
    return kinds[0] if kinds else "npy"


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """{relative path without suffix: paths} of the files below a folder."""
    found: dict[str, list[Path]] = {}
    for path in files_below(folder, suffixes):
        name = path.relative_to(folder).with_suffix("").as_posix()
        found.setdefault(name, []).append(path)
    return found


def _official(labels: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Only the label maps, if official names distinguish them from pictures and coloured copies."""
    semantic = {name: paths for name, paths in labels.items() if name.endswith("labels_semantic")}
    return semantic or dict(labels)


def _by_key(
    found: Mapping[str, Mapping[str, list[Path]]], key: Callable[[str], str]
) -> dict[str, dict[str, Path]] | None:
    """{kind: {key: path}}; None if two files of a kind share a key."""
    named: dict[str, dict[str, Path]] = {}
    for kind, files in found.items():
        pairs = [(key(name), path) for name, paths in files.items() for path in paths]
        named[kind] = dict(pairs)
        if len(named[kind]) < len(pairs):
            return None
    return named


def _require_counterparts(
    named: Mapping[str, Mapping[str, Path]], folders: Mapping[str, Path]
) -> None:
    scores, labels = named["scores"].keys(), named["labels"].keys()
    predicted = named.get("predictions", named["scores"]).keys()
    problems = (
        (scores - labels, f"score maps without a label in {folders['labels']}"),
        (labels - scores, f"labels without a score map in {folders['scores']}"),
        (
            scores ^ predicted,
            f"names with only a score map or only a prediction in {folders.get('predictions')}",
        ),
    )
    lines = [
        f"{len(names)} {problem}: {', '.join(sorted(names)[:5])}{', ...' * (len(names) > 5)}"
        for names, problem in problems
        if names
    ]
    if lines:
        raise PansError(f"{'; '.join(lines)}; files are matched by relative path and name")


# Reading


def read_scores(path: Path) -> np.ndarray:
    """Read a score map (H, W) without rounding: bool, integers or floats.

    Raises:
        Unreadable: it is missing, damaged, not one number per pixel, or cannot be read exactly.
    """
    require_file(path)
    read = _READERS[path.suffix.lower()]
    try:
        array = read(path)
    except Unreadable:
        raise
    # Damaged files meet the decoders with errors of many types.
    except Exception as error:
        kind = what_is(path)
        reason = f"it is {kind}; " * bool(kind) + (str(error) or type(error).__name__)
        raise Unreadable(f"{path} can't be read ({reason}); write it again") from error
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise Unreadable(
            f"{path} holds {array.dtype} of shape {array.shape}; expected one number per pixel"
        )
    if array.dtype.itemsize > 8:
        raise Unreadable(f"{path} holds {array.dtype}, more than 8 bytes per number; use float64")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _read_npy(path: Path) -> np.ndarray:
    # Memory-mapped, so that a header that claims more than the file contains costs nothing.
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray):
        found.close()
        raise Unreadable(f"{path} is an NPZ archive, not an NPY array; rename it to .npz")
    if isinstance(found, np.memmap) and path.stat().st_size > found.offset + found.nbytes:
        raise _more_than_one(path)
    return np.array(found)


def _more_than_one(path: Path) -> Unreadable:
    return Unreadable(f"{path} holds more than one array; keep the scores alone")


def _read_npz(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:5])
            raise Unreadable(f"{path} holds {len(members)} arrays ({names}); keep the scores alone")
        if members[0].file_size > MOST_BYTES:
            raise Unreadable(f"{path} unpacks to {members[0].file_size} bytes; write it again")
        with archive.open(members[0]) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise _more_than_one(path)
            return array


def _read_png(path: Path) -> np.ndarray:
    picture, mode = decode(path, ("PNG",), "check its name")
    if mode not in ("L", "I;16"):
        raise Unreadable(f"{path} has mode {mode}; expected grey of 8 or 16 bits")
    return np.asarray(picture)


def _read_hdf5(path: Path) -> np.ndarray:
    if find_spec("h5py") is None:
        raise Unreadable(
            f"{path} is read by the optional package h5py, which is not installed; "
            "pip install -e '.[hdf5]'"
        )
    import h5py

    with h5py.File(path, "r") as file:
        names = ["value"] if "value" in file else list(file)
        if len(names) != 1 or not isinstance(file[names[0]], h5py.Dataset):
            raise Unreadable(
                f"{path} holds {', '.join(names[:5]) or 'nothing'}; name the array of the scores "
                "'value'"
            )
        found = file[names[0]]
        if found.dtype.kind not in "buif" or math.prod(found.shape or (0,)) * 8 > MOST_BYTES:
            raise Unreadable(f"{path} holds {found.dtype} of shape {found.shape}; make it (H, W)")
        return np.asarray(found[()])


def _read_tiff(path: Path) -> np.ndarray:
    tags, order = _tiff_tags(path)
    (bits, *others), (form, *_) = tags["bits"], tags["format"]
    if others or tags["samples"] != (1,):
        raise Unreadable(f"{path} holds {len(tags['bits'])} numbers per pixel; expected one")
    is_plain = tags["fill order"] == tags["orientation"] == tags["predictor"] == (1,)
    is_plain &= tags["photometric"] in ((0,), (1,))  # numbers, no indices into a palette
    is_plain &= tags["compression"] in ((1,), *_DEFLATE) and "strips" in tags
    if is_plain and bits in (8, 16, 32, 64) and form in _TIFF_KINDS:
        return _read_strips(path, tags, np.dtype(f"{order}{_TIFF_KINDS[form]}{bits // 8}"))
    if (bits, form) in _EXACT_IN_PILLOW and tags["photometric"] == (1,):
        return np.asarray(decode(path, ("TIFF",), "check its name")[0])
    raise Unreadable(
        f"{path} is a TIFF of {bits} bits, sample format {form}, compression "
        f"{tags['compression'][0]}, predictor {tags['predictor'][0]}, photometric interpretation "
        f"{tags['photometric'][0]}, which cannot be read exactly; save it uncompressed, or as .npy"
    )


def _tiff_tags(path: Path) -> tuple[dict[str, tuple[int, ...]], str]:
    """The tags of a TIFF's only page, with defaults, and its byte order."""
    with path.open("rb") as file:
        header = file.read(8)
        if 43 in header[2:4]:  # BigTIFF
            header += file.read(8)
        directory = ImageFileDirectory_v2(header)
        start = directory.next
        file.seek(start)
        directory.load(file)
    if directory.next == start or 256 not in directory or 257 not in directory:
        raise Unreadable(f"{path} is a damaged TIFF, without a size; write it again")
    if directory.next:
        raise Unreadable(f"{path} holds several pages; keep the scores alone")
    found = {}
    for name, (tag, *default) in _TIFF_TAGS.items():
        value = directory.get(tag, tuple(default))
        found[name] = value if isinstance(value, tuple) else (value,)
    order = "<" if header[:2] == b"II" else ">"
    return {name: value for name, value in found.items() if value}, order


def _read_strips(path: Path, tags: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> np.ndarray:
    """The raw numbers of an uncompressed or deflated TIFF, also where white is zero."""
    shape = tags["height"][0], tags["width"][0]
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= MOST_BYTES:
        raise Unreadable(f"{path} is {shape[1]}x{shape[0]} by its header; write it again")
    data = b""
    with path.open("rb") as file:
        for start, count in zip(tags["strips"], tags["counts"], strict=True):
            file.seek(start)
            strip = file.read(count)
            if tags["compression"] in _DEFLATE:
                strip = zlib.decompressobj().decompress(strip, size)
            data += strip
            if len(data) > size:
                break
    if len(data) != size:
        raise Unreadable(f"{path} is truncated: {len(data)} of {size} bytes; write it again")
    return np.frombuffer(data, dtype).reshape(shape)


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".png": _read_png,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
