"""The user's own pictures and videos as inputs of the network, without labels."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from dataset.loaders import BoundedLoader, Calls, sample_bytes, worker_options
from dataset.shared_memory import in_shared_memory
from dataset.transforms import LARGEST_SCALE, TEST_SCALES, byte_tensor, scaled_images
from utils.pictures import FOREIGN_SUFFIXES, PICTURE_SUFFIXES, read_picture, require_size
from utils.reading import Unreadable, files_below, require_file

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
_SUFFIXES = (*PICTURE_SUFFIXES, *FOREIGN_SUFFIXES, *VIDEO_SUFFIXES)
_LABEL_WORD = re.compile(
    "labels?|label?led|(train|val|test)?annot|annotations?|masks?|segmentations?|gt(fine|coarse)?|"
    "groundtruth"
)
_USUAL_FRAME_RATE = 25
# By display matrix (a, b, c, d): x' = a x + c y, y' = b x + d y.
_TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # Pillow rotates anticlockwise
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class Source:
    """A picture or a video; `name` is the name of its results, without a suffix."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


class PictureSample(NamedTuple):
    """A picture at every scale.

    Attributes:
        name: the name of its results.
        images: one (3, h, w) uint8 RGB tensor per scale.
        picture: (H, W, 3) uint8 RGB, upright.
    """

    name: str
    images: list[Tensor]
    picture: Tensor


def find_sources(paths: Sequence[str], without: Path) -> tuple[list[Source], list[Unreadable]]:
    """Find the files that are named, and all pictures and videos below the folders, in order.

    Results are named after the file, or after its path inside the folder; a name that is taken
    gets a number. Files that `utils.reading.files_below` skips are not found.

    Args:
        without: a folder to leave out, that of the results.

    Returns:
        The sources, and an error per path without any.
    """
    found: list[tuple[Path, str]] = []
    problems: list[Unreadable] = []
    for path in map(Path, paths):
        files = _files_below(path, without.resolve()) if path.is_dir() else [path]
        if not path.exists():
            problems.append(Unreadable(f"{path} does not exist"))
        elif path.is_dir() and path.resolve().is_relative_to(without.resolve()):
            problems.append(Unreadable(f"{path} is the output folder; choose another --out"))
        elif not files:
            known = ", ".join((*PICTURE_SUFFIXES, *VIDEO_SUFFIXES))
            problems.append(Unreadable(f"{path} contains no picture or video ({known})"))
        else:
            for file in files:
                relative = file.relative_to(path) if path.is_dir() else Path(file.name)
                found.append((file, relative.with_suffix("").as_posix()))
    return _named(found), problems


def _named(found: Sequence[tuple[Path, str]]) -> list[Source]:
    """Sources with unique names; a video's name also differs from the folders in other names."""
    sources = [Source(path, name) for path, name in found]
    names: set[str] = set()
    folders: set[str] = set()
    # Pictures first: a video's name becomes the folder of its frames, which must not be theirs.
    for index in sorted(range(len(sources)), key=lambda index: sources[index].is_video):
        source = sources[index]
        name = _free_name(source.name, names | folders if source.is_video else names)
        names.add(name)
        if not source.is_video:
            folders.update(parent.as_posix() for parent in Path(name).parents)
        sources[index] = Source(source.path, name)
    return sources


def _files_below(folder: Path, without: Path) -> list[Path]:
    return [
        path
        for path in files_below(folder, _SUFFIXES)
        if not path.resolve().is_relative_to(without)
    ]


def _free_name(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def without_label_maps(
    sources: Sequence[Source], paths: Sequence[str]
) -> tuple[list[Source], list[Source]]:
    """Sources apart from the label maps among them, by the layouts in which data sets come.

    A label map is a PNG whose folder or name says so (labels/1.png, 1_mask.png, 1.labels/) where a
    picture begins with the same name, or a PNG of one channel beside a picture of its own name and
    another suffix. A file that `paths` names itself is none.

    Returns:
        The sources that are left, and the label maps.
    """
    said = {source: _says_label(source.name) for source in sources}
    pictures = {
        PurePosixPath(source.name).name.removesuffix("_leftImg8bit")
        for source in sources
        if not said[source] and not source.is_video
    }
    places = {source.path.with_suffix("") for source in sources if not _is_png(source)}
    named = {Path(path) for path in paths}

    def is_label_map(source: Source) -> bool:
        if not _is_png(source) or source.path in named:
            return False
        if said[source]:
            return not pictures.isdisjoint(_beginnings(source.name))
        return source.path.with_suffix("") in places and _has_one_channel(source.path)

    labels = dict.fromkeys(source for source in sources if is_label_map(source))
    return [source for source in sources if source not in labels], list(labels)


def _is_png(source: Source) -> bool:
    return source.path.suffix.lower() == ".png"


def _says_label(name: str) -> bool:
    return any(_LABEL_WORD.fullmatch(word) for word in re.split(r"[^a-z0-9]+", name.lower()))


def _beginnings(name: str) -> set[str]:
    """The names that pictures of a label map may have: 1_b of 1_b_mask, x/1_b.labels/mask."""
    *_, folder, stem = f"/{name}".split("/")
    found = {folder.removesuffix(".labels")} if folder.endswith(".labels") else set()
    for whole in (stem, stem.partition("_")[2]):  # Fishyscapes numbers its label maps in front
        found |= {whole, *(whole[: cut.start()] for cut in re.finditer(r"[^A-Za-z0-9]", whole))}
    return found - {""}


def _has_one_channel(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return len(picture.getbands()) == 1
    except (OSError, ValueError, SyntaxError):  # told when it is read
        return False


def without_support(sources: Sequence[Source]) -> list[Unreadable]:
    """An error per video among the sources if PyAV is not installed."""
    if find_spec("av") is not None:
        return []
    return [
        Unreadable(
            f"{source.path} is a video, and the optional package av, which reads videos, is not "
            "installed: pip install -e '.[video]'"
        )
        for source in sources
        if source.is_video
    ]


def video_frames(path: Path, step: int, first: int = 0) -> Iterator[tuple[int, Image.Image]]:
    """Yield (number, RGB picture) of every `step`-th frame of the first video stream.

    Starts at frame `first`. Frames are turned upright according to the display matrix.

    Raises:
        Unreadable: the video cannot be decoded, at the start or later, or its frames are tiny.
    """
    import av  # optional, see without_support

    require_file(path)
    number = -1
    try:
        with av.open(f"file:{path}") as container:
            for number, frame in enumerate(_all_frames(path, container)):
                if number % step == first:
                    yield number, _upright(path, frame)
    except (av.FFmpegError, OSError) as error:
        where = "" if number < 0 else f" after frame {number}"
        raise Unreadable(
            f"{path} cannot be decoded{where} ({error}); it may be truncated, copy it again"
        ) from error


def frame_rate(path: Path) -> Fraction:
    """Frames per second of the first video stream; 25 if the file does not say."""
    import av  # optional, see without_support

    try:
        with av.open(f"file:{path}") as container:
            streams = container.streams.video
            told = streams and (streams[0].average_rate or streams[0].guessed_rate)
    except (av.FFmpegError, OSError):
        told = None
    return Fraction(told or _USUAL_FRAME_RATE)


def _all_frames(path: Path, container: Any) -> Iterator[Any]:
    """All frames of the first video stream; raises at the end if there are fewer than announced."""
    if not container.streams.video:
        if container.streams.audio:
            raise Unreadable(f"{path} holds sound alone and no picture; take it away")
        raise Unreadable(f"{path} holds no video stream; it may be cut off, copy it again")
    stream = container.streams.video[0]
    packets, end = 0, 0.0
    for packet in container.demux(stream):
        packets += packet.size > 0 and not packet.is_corrupt
        for frame in packet.decode():
            end = max(end, frame.time or 0.0)
            yield frame
    if not packets:
        raise Unreadable(f"{path} holds no frame; copy it again")
    # Some formats store the number of frames, others the duration of the longest stream.
    expected = (container.duration or 0) / 1_000_000 if len(container.streams) == 1 else 0.0
    if packets < stream.frames:
        raise Unreadable(f"{path} is cut off: {packets} of {stream.frames} frames; copy it again")
    if not stream.frames and end < 0.98 * expected - 1:
        raise Unreadable(f"{path} is cut off: {end:.1f} of {expected:.1f} seconds; copy it again")


def _upright(path: Path, frame: Any) -> Image.Image:
    picture: Image.Image = frame.to_image()
    require_size(path, picture)
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return picture
    a, b, _, c, d, *_ = np.sign(np.frombuffer(data, np.int32)).tolist()
    if (a, b, c, d) == (1, 0, 0, 1):
        return picture
    if (a, b, c, d) not in _TURNS:
        raise Unreadable(
            f"{path} is shown at an angle that is no multiple of 90 degrees; turn it, such as by "
            f"'ffmpeg -i {path.name} {path.stem}_upright.mp4'"
        )
    return picture.transpose(_TURNS[a, b, c, d])


def picture_sample(name: str, picture: Image.Image, *, multi_scale: bool) -> PictureSample:
    """A decoded picture at the five scales of the test, or at the largest alone."""
    return PictureSample(name, scaled_images(picture, _scales(multi_scale)), byte_tensor(picture))


def _scales(multi_scale: bool) -> tuple[float, ...]:
    return TEST_SCALES if multi_scale else (LARGEST_SCALE,)


def _read_sample(
    sources: Sequence[Source], multi_scale: bool, index: int
) -> PictureSample | Unreadable:
    """Source `index`, a picture, as a sample; or the error, so that the rest go on."""
    source = sources[index]
    try:
        picture = read_picture(source.path)
        require_size(source.path, picture)
    except Unreadable as error:
        return error
    return picture_sample(source.name, picture, multi_scale=multi_scale)


def samples_of(
    sources: Sequence[Source],
    *,
    multi_scale: bool,
    frame_step: int,
    num_workers: int,
    timeout: float,
    rank: int,
    world_size: int,
) -> Iterator[PictureSample | Unreadable]:
    """This process's share of the pictures, then of the videos' frames, errors included.

    Frames are named NAME/000000 and so on. Every process decodes the whole videos and yields
    their errors.
    """
    pictures = [source for source in sources if not source.is_video][rank::world_size]
    if pictures:
        files, scales = [source.path for source in pictures], _scales(multi_scale)
        yield from BoundedLoader(
            Calls(partial(_read_sample, pictures, multi_scale)),
            batch_size=None,
            sampler=range(len(pictures)),
            collate_fn=in_shared_memory,
            **worker_options(num_workers, timeout, sample_bytes(files, scales), rank),
        )
    for source in sources:
        if source.is_video:
            try:
                step, first = frame_step * world_size, frame_step * rank
                for number, frame in video_frames(source.path, step, first):
                    name = f"{source.name}/{number:06d}"
                    yield picture_sample(name, frame, multi_scale=multi_scale)
            except Unreadable as error:
                yield error
