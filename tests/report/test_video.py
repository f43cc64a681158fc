"""Pictures as an MP4 file, decoded again."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from report.video import NoVideo, write_video

av = pytest.importorskip("av", reason="videos are optional: pip install -e .[video]")
COLOURS = [(200, 40, 40), (40, 180, 60), (50, 60, 210), (240, 240, 240)]


def frames_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [np.asarray(frame.to_image()) for frame in container.decode(stream)]
        return stream, frames


def flat_pictures(folder, size):
    paths = []
    for number, colour in enumerate(COLOURS):
        paths.append(folder / f"{number}.png")
        Image.new("RGB", size, colour).save(paths[-1])
    return paths


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("size", [(97, 61), (64, 48), (8, 8), (9, 600)])
def test_frames_come_back_in_order_with_their_colours(tmp_path, monkeypatch, encoder, size):
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    monkeypatch.setattr("report.video._ENCODERS", (encoder,))
    path = tmp_path / "video.mp4"
    write_video(path, flat_pictures(tmp_path, size), Fraction(30000, 1001) / 7)
    stream, frames = frames_of(path)
    assert float(stream.average_rate) == pytest.approx(30000 / 7007, rel=1e-5)
    assert stream.codec_context.name == {"libx264": "h264", "mpeg4": "mpeg4"}[encoder]
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert len(frames) == len(COLOURS)
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert frame.shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
        np.testing.assert_allclose(frame, np.broadcast_to(colour, frame.shape), atol=8)
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


@pytest.mark.parametrize(
    ("told", "written"), [(Fraction(0), 1), (Fraction(90000), 1000), (Fraction(25, 2), "25/2")]
)
def test_frame_rates_of_broken_headers_are_corrected(tmp_path, told, written):
    write_video(tmp_path / "video.mp4", flat_pictures(tmp_path, (16, 16)), told)
    assert frames_of(tmp_path / "video.mp4")[0].average_rate == Fraction(written)


def test_without_an_encoder_one_line_says_so_and_nothing_is_left(tmp_path, monkeypatch):
    frames = flat_pictures(tmp_path, (16, 16))
    monkeypatch.setattr("report.video._ENCODERS", ("no_such_encoder",))
    with pytest.raises(NoVideo, match=r"video\.mp4 is not written: this PyAV has none of"):
        write_video(tmp_path / "video.mp4", frames, Fraction(5))
    monkeypatch.undo()
    (tmp_path / "video.mp4").write_text("earlier")
    with pytest.raises(NoVideo, match=r"could not be written .*gone\.png"):
        write_video(tmp_path / "video.mp4", [*frames, tmp_path / "gone.png"], Fraction(5))
    assert (tmp_path / "video.mp4").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == len(frames) + 1
