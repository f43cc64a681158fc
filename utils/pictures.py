"""Files of pixels, read strictly: the one reader of pictures and of label maps.

A file is given as it stands there, or refused by one line that says what it is, what is expected
and how to convert it. Nothing is stretched, inverted, narrowed or left on its side in silence.
"""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile

from utils.errors import PansError

# Pillow hands some other formats to outside programs.
PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
# Pictures that need a conversion: found, so that they are refused and not overlooked.
FOREIGN_SUFFIXES = (
    ".heic",
    ".heif",
    ".avif",
    ".gif",
    ".jp2",
    ".jxl",
    ".exr",
    ".hdr",
    ".psd",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
)
SMALLEST_SIDE = 8

# Remarks about files that are read nevertheless.
warnings.filterwarnings("ignore", module="PIL")

_COLOUR_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")
_NOT_DATA = {"__macosx", "desktop.ini", "thumbs.db"}
# EXIF's word for how the camera was held -> what turns the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# (offset, bytes there, what the file is)
_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (8, b"WEBP", "a WEBP picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"GIF8", "a GIF picture"),
    (4, b"ftypheic", "a HEIC picture"),
    (4, b"ftypheix", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIF picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"jP  ", "a JPEG 2000 picture"),
    (4, b"JXL ", "a JPEG XL picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"v/1\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance HDR picture"),
    (0, b"8BPS", "a Photoshop picture"),
    (0, b"\x93NUMPY", "an NPY array"),
    (0, b"PK\x03\x04", "a ZIP or NPZ archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"%PDF", "a PDF document"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, 'git lfs pull' fetches the file"),
    (0, b"\0\x05\x16\x07", "macOS's notes about another file"),
    (0, b"<", "a text such as a web page, perhaps a failed download"),
)


class Unreadable(PansError):
    """A file that cannot be used; one printable line that names it and says why.

    A DataLoader raises a worker's error again with the worker's traceback as its message; only
    the words after the error's own name, on one line, are for the user.
    """

    def __init__(self, message: str) -> None:
        own_words = message.rpartition(f"{type(self).__name__}: ")[2]
        # Names of files may hold what no terminal should be given.
        super().__init__(
            "".join(
                letter if letter.isprintable() else letter.encode("unicode_escape").decode()
                for letter in " ".join(own_words.split())
            )
        )


# Finding


def is_hidden(path: PurePath) -> bool:
    """Whether a path, relative to a folder of the user's, is some program's own and no datum.

    Hidden files and folders (a part that starts with ".", such as macOS's `._1.png`), `__MACOSX`,
    desktop.ini, Thumbs.db.
    """
    return any(part[0] == "." or part.lower() in _NOT_DATA for part in path.parts)


def files_below(folder: Path, suffixes: Sequence[str] = ()) -> list[Path]:
    """All files below a folder but hidden ones, in the order of their paths.

    Links to folders are followed, each folder once; its own place comes before links to it.

    Args:
        suffixes: lower-case; files of other suffixes are left out, in either case. None: all files.
    """
    return sorted(
        path
        for path in _walk(folder)
        if not is_hidden(path.relative_to(folder))
        and (not suffixes or path.suffix.lower() in suffixes)
    )


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    waiting = [str(folder)]
    links: list[str] = []
    while waiting or links:
        # Whatever can be reached without a link is found under its own name.
        parent = waiting.pop() if waiting else links.pop(0)
        if (place := os.path.realpath(parent)) in seen:
            continue
        seen.add(place)
        for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
            if entry.is_dir() and not is_hidden(PurePath(entry.name)):
                (links if entry.is_symlink() else waiting).append(entry.path)
            elif not entry.is_dir():
                yield Path(entry.path)


def require_file(path: Path, remedy: str = "check its name") -> None:
    """Whether a path is a file that can be read without waiting for another program.

    Raises:
        Unreadable: it is missing, or a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unreadable(f"{path} is missing; {_found_instead(path)}{remedy}") from error
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be decoded ({error}); expected a file") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise Unreadable(f"{path} cannot be decoded (it is {kind}); expected a file")


def _found_instead(path: Path) -> str:
    """What lies where a missing file was looked for, under a name that is nearly its own."""
    if "\\" in str(path):
        return "its name holds backslashes, write / for them; or "
    if path.parent.is_dir():
        for other in sorted(path.parent.iterdir()):
            if other.stem.lower() == path.stem.lower() and not is_hidden(PurePath(other.name)):
                return f"{other.name} lies there, convert it or give it this name; or "
    parts = path.parts
    for start in range(1, len(parts) - 1):
        for end in range(start + 1, len(parts)):
            other = Path(*parts[:start], *parts[end:])
            if other.is_file():
                extra = "/".join(parts[start:end])
                return f"{other} is there, take {extra}/ out of the path; or "
    return ""


# Decoding


def read_picture(
    path: Path, formats: Sequence[str] = PICTURE_FORMATS, remedy: str = "check its name"
) -> Image.Image:
    """Decode a picture as RGB, alpha dropped, turned upright as its EXIF data says.

    Args:
        formats: Pillow's names of those that are taken, such as "PNG".
        remedy: what to do where the file is missing.

    Raises:
        Unreadable: missing, damaged, of several frames, of more than 8 bits a channel, of other
            colours than RGB and grey, or smaller than SMALLEST_SIDE.
    """
    picture, mode = decode(path, formats, remedy)
    if not is_colour_of_8_bits(picture, mode):
        out = f"{path.stem}_8_bit.png"
        raise Unreadable(
            f"{path} has mode {mode}; expected an 8-bit picture such as RGB(A), convert it, such "
            f"as by 'magick {path.name} -colorspace sRGB -depth 8 {out}'"
        )
    if min(picture.size) < SMALLEST_SIDE:
        raise Unreadable(
            f"{path} is {picture.width}x{picture.height}; expected {SMALLEST_SIDE} pixels a side"
        )
    return picture.convert("RGB")


def read_label(
    path: Path, modes: Sequence[str] = ("L",), remedy: str = "check its name"
) -> Image.Image:
    """Decode a PNG of one whole number a pixel, turned upright as its EXIF data says.

    Args:
        modes: those that are taken: "L", 8-bit grey; "I;16", 16-bit grey; "P", palette indices.

    Raises:
        Unreadable: missing, damaged, of several frames or of another mode. Pillow stretches grey
            of 1, 2 or 4 bits over 0..255, which would change the values.
    """
    label, mode = decode(path, ("PNG",), remedy)
    if mode not in modes:
        raise Unreadable(
            f"{path} has mode {mode}; expected an 8-bit grey label map (mode L), {_advice(mode)}"
        )
    return label


def _advice(mode: str) -> str:
    match mode:
        case "P":
            return (
                "if the indices of its palette are the values, write them with Pillow: "
                "Image.fromarray(np.asarray(Image.open(FILE))).save(FILE)"
            )
        case "1" | "L;2" | "L;4":
            return "write its array again as uint8; most programs stretch such values"
        case "I;16" | "I":
            return "write its array again as uint8"
    return "write class indices in one channel, not colours"


def decode(path: Path, formats: Sequence[str], remedy: str) -> tuple[Image.Image, str]:
    """A picture, upright, and its mode as the file has it, such as "RGB;16B" or "L;4".

    Raises:
        Unreadable: missing, damaged, of another format or of several frames.
    """
    require_file(path, remedy)
    try:
        with Image.open(path, formats=tuple(formats)) as picture:
            mode = mode_in_file(picture)
            # A phone's JPEG may hold a second picture for its own use (MPO).
            frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            picture.load()
            upright = _upright(picture)
    # Decoders meet damaged files with errors of many types; each means the same to the user.
    except Exception as error:
        raise _undecodable(path, formats, error) from error
    if frames > 1:
        raise Unreadable(f"{path} holds {frames} frames; expected one, save the one that is meant")
    return upright, mode


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(Base.Orientation)
    except Exception:  # EXIF data that cannot be read turns nothing, as in any viewer
        return picture
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def is_colour_of_8_bits(picture: Image.Image, file_mode: str) -> bool:
    """Whether a picture is colour or grey of at most 8 bits a channel, by its `mode_in_file`."""
    return picture.mode in _COLOUR_MODES and ";16" not in file_mode


def mode_in_file(picture: Image.Image) -> str:
    """The mode that the file of a picture has, such as "RGB;16B"; ask before it is decoded."""
    # In these modes Pillow also gives pixels of other depths, stretched or cut to 8 bits.
    if picture.mode in ("L", "LA", "RGB", "RGBA"):
        if isinstance(picture, PngImageFile):
            return str(picture.tile[0].args)
        if isinstance(picture, TiffImageFile):
            is_plain = set(picture.tag_v2.get(SAMPLEFORMAT, (1,))) == {1}
            if max(picture.tag_v2.get(BITSPERSAMPLE, (1,))) > 8 or not is_plain:
                return f"{picture.mode};16"
        if isinstance(picture, PpmImageFile):
            match picture.tile[0].args:
                case (_, int(largest)) if picture.tile[0].codec_name == "ppm" and largest > 255:
                    return f"{picture.mode};16"
    return picture.mode


# What a file is that cannot be decoded


def _undecodable(path: Path, formats: Sequence[str], error: Exception) -> Unreadable:
    kind = what_is(path)
    reason, remedy = f"it is {kind}", "restore the file"
    if any(kind.endswith(f" {form} picture") for form in formats):
        chunk, fault = _png_fault(path) if kind == "a PNG picture" else ("", "")
        reason = fault or _plain(error)
        if chunk[:1].islower():  # a note beside the pixels
            remedy = f"write it again, such as by 'magick {path.name} {path.stem}_new.png'"
    elif kind.endswith("picture"):
        remedy = f"convert it, such as by 'magick {path.name} {path.stem}_new.png'"
    elif kind == "":
        reason = _plain(error)
    return Unreadable(
        f"{path} cannot be decoded ({reason}); expected a {' or '.join(formats)} file, {remedy}"
    )


def _plain(error: Exception) -> str:
    is_unknown = isinstance(error, Image.UnidentifiedImageError)
    return "it is no picture" if is_unknown else f"{error}" or type(error).__name__


def what_is(path: Path) -> str:
    """What a file is by its first bytes, such as "a HEIC picture"; "" if they are not known."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        return ""
    if not start:
        return "empty"
    found = (
        kind for offset, mark, kind in _SIGNATURES if start[offset : offset + len(mark)] == mark
    )
    return next(found, "")


def _png_fault(path: Path) -> tuple[str, str]:
    """The first chunk of a PNG that is cut off or whose checksum is wrong, and what it has."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            body = file.read(length + 4)
            chunk = name.decode("latin-1")
            if len(body) < length + 4:
                return chunk, f"it is cut off within the PNG chunk {chunk}"
            if zlib.crc32(name + body[:-4]) != int.from_bytes(body[-4:]):
                return chunk, f"the PNG chunk {chunk} has a wrong checksum"
            if name == b"IEND":
                return "", ""
    return "", "it is cut off"
