"""The strict reader of pictures and label maps.

A file is read exactly, or refused in one line that says what it is, what is expected and how to
convert it. Nothing is silently stretched, inverted, narrowed or left rotated.
"""

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile

from utils.reading import Unreadable, require_file, what_is

# Pillow passes some other formats to external programs.
PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
# Formats that need a conversion: found, so that they are refused instead of overlooked.
_GRAPHICS_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".exr", ".hdr", ".psd")
_RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw")
FOREIGN_SUFFIXES = _GRAPHICS_SUFFIXES + _RAW_SUFFIXES
SMALLEST_SIDE = 8

# Warnings about files that are read nevertheless.
warnings.filterwarnings("ignore", module="PIL")

_COLOUR_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")
# Transposition that turns the picture upright, by EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(
    path: Path, formats: Sequence[str] = PICTURE_FORMATS, remedy: str = "check its name"
) -> Image.Image:
    """Decode a picture as RGB, alpha dropped, turned upright as its EXIF data says.

    Args:
        formats: Pillow's names of the accepted formats, such as "PNG".
        remedy: what to do if the file is missing.

    Raises:
        Unreadable: missing, damaged, with several frames, with more than 8 bits per channel, or
            neither RGB nor grey.
    """
    picture, mode = decode(path, formats, remedy)
    if picture.mode not in _COLOUR_MODES or ";16" in mode:
        out = f"{path.stem}_8_bit.png"
        raise Unreadable(
            f"{path} has mode {mode}; expected an 8-bit picture such as RGB(A), convert it, such "
            f"as by 'magick {path.name} -colorspace sRGB -depth 8 {out}'"
        )
    return picture.convert("RGB")


def require_size(path: Path, picture: Image.Image) -> None:
    """Raise Unreadable if a side is shorter than SMALLEST_SIDE, too small for the network."""
    if min(picture.size) < SMALLEST_SIDE:
        raise Unreadable(
            f"{path} is {picture.width}x{picture.height}; expected at least {SMALLEST_SIDE} pixels "
            "per side"
        )


def read_label(
    path: Path, modes: Sequence[str] = ("L",), remedy: str = "check its name"
) -> Image.Image:
    """Decode a PNG with one integer per pixel, turned upright as its EXIF data says.

    Args:
        modes: accepted modes: "L", 8-bit grey; "I;16", 16-bit grey; "P", palette indices.

    Raises:
        Unreadable: missing, damaged, with several frames or of another mode. Pillow stretches grey
            of 1, 2 or 4 bits to 0..255, which would change the values.
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
    """Decode a picture, upright, with the file's mode, such as "RGB;16B" or "L;4".

    Raises:
        Unreadable: missing, damaged, of another format or with several frames.
    """
    require_file(path, remedy)
    try:
        with Image.open(path, formats=tuple(formats)) as picture:
            mode = mode_in_file(picture)
            # A phone's JPEG may contain a second picture for its own use (MPO).
            frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            picture.load()
            turned = upright(picture)
    # Decoders raise errors of many types on damaged files.
    except Exception as error:
        raise _undecodable(path, formats, error) from error
    if frames > 1:
        raise Unreadable(f"{path} holds {frames} frames; expected one, save the one that is meant")
    return turned, mode


def upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF data says."""
    try:
        orientation = picture.getexif().get(Base.Orientation)
    except Exception:  # EXIF data that cannot be read turns nothing, as in any viewer
        return picture
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def mode_in_file(picture: Image.Image) -> str:
    """The mode of a picture's file, such as "RGB;16B"; to be called before decoding."""
    # In these modes Pillow also returns other depths, stretched or cut to 8 bits.
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


def _undecodable(path: Path, formats: Sequence[str], error: Exception) -> Unreadable:
    kind = what_is(path)
    reason, remedy = f"it is {kind}", "restore the file"
    if any(kind.endswith(f" {form} picture") for form in formats):
        chunk, fault = _png_fault(path) if kind == "a PNG picture" else ("", "")
        reason = fault or _plain(error)
        if chunk[:1].islower():  # metadata
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


def _png_fault(path: Path) -> tuple[str, str]:
    """The first truncated or corrupt chunk of a PNG, and what is wrong with it."""
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
