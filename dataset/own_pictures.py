"""Pictures and videos of the user's own, as inputs of the network: no labels, no data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from dataset.loaders import BoundedLoader, sample_bytes, worker_options
from dataset.pictures import is_colour_of_8_bits, mode_in_file
from dataset.shared_memory import in_shared_memory
from dataset.transforms import LARGEST_SCALE, TEST_SCALES, byte_tensor, scaled_images
from utils.errors import PansError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
# Pillow hands some other formats to outside programs.
PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
SMALLEST_SIDE = 8


class Unreadable(PansError):
    """A picture or a video that cannot be looked at; the message names it and says why."""


class VideoSupportMissing(PansError):
    """There is a video, and the package that reads videos is not installed."""


@dataclass(frozen=True)
class Source:
    """A picture or a video; `name` is what its results are called, without a suffix."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


class PictureSample(NamedTuple):
    """A picture at every scale it is looked at.

    Attributes:
        name: of its results.
        images: one (3, h, w) uint8 RGB tensor a scale.
        picture: (H, W, 3) uint8 RGB, upright.
    """

    name: str
    images: list[Tensor]
    picture: Tensor


def find_sources(paths: Sequence[str], without: Path) -> tuple[list[Source], list[Unreadable]]:
    """Files as they are named, and all pictures and videos below the folders, in order.

    A file's results go by its name, those of a file in a folder by its path in that folder; a
    name that is taken gets a number. Hidden files are left out.

    Args:
        without: a folder to leave out: that of the results.

    Returns:
        What was found, and what was not.
    """
    found: list[tuple[Path, str]] = []
    problems: list[Unreadable] = []
    for path in map(Path, paths):
        files = _files_below(path, without.resolve()) if path.is_dir() else [path]
        if not path.exists():
            problems.append(Unreadable(f"{path} does not exist"))
        elif path.is_dir() and path.resolve().is_relative_to(without.resolve()):
            problems.append(Unreadable(f"{path} is where the results go; name another --out"))
        elif not files:
            known = ", ".join((*PICTURE_SUFFIXES, *VIDEO_SUFFIXES))
            problems.append(Unreadable(f"{path} holds no picture and no video ({known})"))
        else:
            for file in files:
                relative = file.relative_to(path) if path.is_dir() else Path(file.name)
                found.append((file, relative.with_suffix("").as_posix()))
    return _named(found), problems


def _named(found: Sequence[tuple[Path, str]]) -> list[Source]:
    """Sources of names that differ: those of videos also from the folders in others' names."""
    sources = [Source(path, name) for path, name in found]
    names: set[str] = set()
    folders: set[str] = set()
    # Pictures first: the folder of a video's frames, its name, shall be none of theirs.
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
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)
        and path.is_file()
        and not path.name.startswith(".")
        and not path.resolve().is_relative_to(without)
    ]


def _free_name(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def check_video_support(sources: Sequence[Source]) -> None:
    """Whether every source could be read at all.

    Raises:
        VideoSupportMissing: there is a video and PyAV is not installed.
    """
    video = next((source for source in sources if source.is_video), None)
    if video is not None and find_spec("av") is None:
        raise VideoSupportMissing(
            f"{video.path} is a video, and the optional package av, which reads videos, is not "
            "installed; pip install -e '.[video]'"
        )


def read_picture(path: Path) -> Image.Image:
    """Decode a picture as RGB, alpha dropped, turned upright as its EXIF data says.

    Raises:
        Unreadable: missing, damaged, of more than 8 bits a channel, or tiny.
    """
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            mode = mode_in_file(picture)
            is_readable = is_colour_of_8_bits(picture, mode)
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    # Decoders meet damaged files with errors of many types; each means the same to the user.
    except Exception as error:
        reason = "it is no picture" if isinstance(error, Image.UnidentifiedImageError) else error
        raise Unreadable(f"{path} cannot be decoded ({reason})") from error
    if not is_readable:
        raise Unreadable(f"{path} has mode {mode}; expected an 8-bit picture such as RGB")
    if min(upright.size) < SMALLEST_SIDE:
        raise Unreadable(
            f"{path} is {upright.width}x{upright.height}; expected {SMALLEST_SIDE} pixels a side"
        )
    return upright


def video_frames(path: Path, step: int, first: int = 0) -> Iterator[tuple[int, Image.Image]]:
    """(number, RGB picture) of every `step`-th frame of the first video stream, from `first` on.

    Raises:
        Unreadable: it cannot be decoded, from the start or any further.
    """
    import av  # optional, see check_video_support

    number = -1
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % step == first:
                    yield number, frame.to_image()
    except (av.FFmpegError, OSError, IndexError) as error:
        where = "" if number < 0 else f" after frame {number}"
        raise Unreadable(f"{path} cannot be decoded{where} ({error})") from error
    if number < 0:
        raise Unreadable(f"{path} holds no frame")


def picture_sample(name: str, picture: Image.Image, *, multi_scale: bool) -> PictureSample:
    """A decoded picture at the scales of the test: five, or the largest of them alone."""
    return PictureSample(name, scaled_images(picture, _scales(multi_scale)), byte_tensor(picture))


def _scales(multi_scale: bool) -> tuple[float, ...]:
    return TEST_SCALES if multi_scale else (LARGEST_SCALE,)


class Pictures(Dataset[PictureSample | Unreadable]):
    """Pictures as samples; one that cannot be read is the error, so that the others go on."""

    def __init__(self, sources: Sequence[Source], *, multi_scale: bool) -> None:
        self.sources, self.multi_scale = sources, multi_scale

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> PictureSample | Unreadable:
        source = self.sources[index]
        try:
            picture = read_picture(source.path)
        except Unreadable as error:
            return error
        return picture_sample(source.name, picture, multi_scale=self.multi_scale)


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
    """This process's share of all pictures, then of the videos' frames; errors among them.

    A frame's name is NAME/000000 and on. Every process decodes the videos whole, and tells what is
    wrong with them.
    """
    pictures = [source for source in sources if not source.is_video][rank::world_size]
    if pictures:
        files, scales = [source.path for source in pictures], _scales(multi_scale)
        yield from BoundedLoader(
            Pictures(pictures, multi_scale=multi_scale),
            batch_size=None,
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
