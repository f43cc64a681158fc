"""Write pictures of one size as an MP4 file."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils.errors import PansError
from utils.files import replacing

_ENCODERS = ("libx264", "mpeg4")
_ITU_BT_709 = 1
_STUDIO_RANGE = 1
_LARGEST_RATE_TERM = 65535  # of MPEG-4


class NoVideo(PansError):
    """No MP4 file could be written."""


def write_video(path: Path, frames: Sequence[Path], rate: Fraction) -> None:
    """Write pictures as an MP4 file: H.264 if PyAV includes it, else MPEG-4 part 2.

    The file atomically replaces `path`, a link too. An odd width or height is padded by one
    column or row, a copy of the last; pictures of another size than the first are resized to it.

    Args:
        frames: picture files in order, at least one.
        rate: frames per second.

    Raises:
        NoVideo: PyAV has no encoder, the encoder refuses the size, or the disk is full.
    """
    import av  # optional, the extra `video`

    encoder = next((name for name in _ENCODERS if name in av.codecs_available), None)
    if encoder is None:
        raise NoVideo(f"{path} is not written: this PyAV has none of {', '.join(_ENCODERS)}")
    try:
        with (
            replacing(path, follow_link=False) as file,
            av.open(file, "w", format="mp4") as container,
        ):
            _encode(container, encoder, frames, rate)
    except (av.FFmpegError, OSError) as error:
        raise NoVideo(f"{path} could not be written ({error}); its frames are beside it") from error


def _encode(container: Any, encoder: str, frames: Sequence[Path], rate: Fraction) -> None:
    from av import VideoFrame

    stream = container.add_stream(encoder, rate=_plain(rate))
    first = _even(frames[0], None)
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt = "yuv420p"  # the only format that every player supports
    if encoder == "mpeg4":
        stream.bit_rate = 8_000_000
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _ITU_BT_709
    context.color_range = _STUDIO_RANGE
    for path in frames:
        rgb = VideoFrame.from_ndarray(_even(path, first.shape[:2]), format="rgb24")
        frame = rgb.reformat(format="yuv420p", dst_colorspace=_ITU_BT_709)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _even(path: Path, size: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """Read a picture file as (H, W, 3), padded to even sides."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    height, width = picture.shape[:2]
    even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    if size is None or even.shape[:2] == size:
        return even
    return np.asarray(Image.fromarray(even).resize((size[1], size[0])))


def _plain(rate: Fraction) -> Fraction:
    """The frame rate, limited to values that the encoders accept."""
    rate = rate.limit_denominator(1001)
    if rate <= 0 or rate.numerator > _LARGEST_RATE_TERM:
        return Fraction(max(1, min(round(rate), 1000)))
    return rate
