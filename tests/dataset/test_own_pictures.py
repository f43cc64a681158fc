"""Pictures and videos of the user's own: found, named, decoded, or refused one by one."""

import gc
import os
import struct

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataset.own_pictures import (
    PictureSample,
    find_sources,
    samples_of,
    video_frames,
    without_label_maps,
    without_support,
)
from tests.dataset.trees import png, tiff
from utils.pictures import read_picture, require_size
from utils.reading import Unreadable

av = pytest.importorskip("av", reason="reading videos is optional: pip install -e .[video]")
FRAMES = 5


def save(path, size=(40, 24), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 1).save(path)
    return path


@pytest.fixture
def video(tmp_path):
    """Five grey frames of 64x32, each 40 lighter than the last."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(FRAMES):
            grey = np.full((32, 64, 3), 40 * number + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    del container, stream
    gc.collect()
    return path


@pytest.fixture(autouse=True)
def no_codec_is_left():
    """One that is freed by a forked loader process would wait there for its threads for ever."""
    yield
    gc.collect()


def test_folders_are_searched_and_names_are_unique(tmp_path):
    folder = tmp_path / "in"
    for name in ("b.png", "a/c.JPG", "a/c.png", "a/d.mp4", "notes.txt", ".hidden.png", "out/e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    paths = [str(folder), str(folder / "b.png"), str(tmp_path / "gone"), str(folder / "notes.txt")]
    sources, problems = find_sources(paths, folder / "out")
    assert [(str(source.path.relative_to(folder)), source.name) for source in sources] == [
        ("a/c.JPG", "a/c"),
        ("a/c.png", "a/c_2"),
        ("a/d.mp4", "a/d"),
        ("b.png", "b"),
        ("b.png", "b_2"),
        ("notes.txt", "notes"),
    ]
    assert [source.is_video for source in sources] == [False, False, True, False, False, False]
    assert [str(problem) for problem in problems] == [f"{tmp_path}/gone does not exist"]


def test_a_video_s_frames_never_take_a_picture_s_name(tmp_path):
    paths = [tmp_path / "in/v.mp4", tmp_path / "in/v/000000.png", tmp_path / "v.mp4"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    sources, _ = find_sources([str(tmp_path / "v.mp4"), str(tmp_path / "in")], tmp_path / "out")
    assert [source.name for source in sources] == ["v_2", "v/000000", "v_3"]
    assert [source.path for source in sources] == [paths[2], paths[1], paths[0]]


def test_a_folder_in_that_of_the_results_is_refused(tmp_path):
    save(tmp_path / "in/a.png")
    for out in (tmp_path / "in", tmp_path):
        sources, (problem,) = find_sources([str(tmp_path / "in")], out)
        assert sources == []
        assert str(problem) == f"{tmp_path}/in is the output folder; choose another --out"


def test_a_folder_without_pictures_is_a_problem(tmp_path):
    sources, (problem,) = find_sources([str(tmp_path)], tmp_path / "out")
    assert sources == []
    assert str(problem).startswith(f"{tmp_path} contains no picture or video (.png, ")


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGBA"), ("png", "P"), ("jpg", "L"), ("bmp", "RGB"), ("tif", "L")]
)
def test_pictures_of_many_formats_become_rgb(tmp_path, suffix, mode):
    picture = read_picture(save(tmp_path / f"a.{suffix}", mode=mode))
    assert (picture.mode, picture.size) == ("RGB", (40, 24))


def test_pictures_are_turned_upright(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left is up
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(read_picture(tmp_path / "a.png"))
    assert upright.shape == (32, 16, 3)
    assert upright[:16].min() == 255
    assert upright[16:].max() == 0


def test_unreadable_pictures_say_why(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = save(tmp_path / "cut.png", (200, 200)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "deep.png", mode="I;16")
    save(tmp_path / "tiny.png", (40, 7))
    for name, reason in {
        "text.png": "cannot be decoded (it is no picture)",
        "cut.png": "cannot be decoded (",
        "deep.png": "has mode I;16; expected an 8-bit picture",
        "tiny.png": "is 40x7; expected at least 8 pixels per side",
        "gone.png": "is missing; ",
    }.items():
        with pytest.raises(Unreadable) as caught:
            require_size(tmp_path / name, read_picture(tmp_path / name))
        assert str(caught.value).startswith(f"{tmp_path / name} {reason}")


def test_colour_of_16_bits_is_refused(tmp_path):
    (tmp_path / "deep.png").write_bytes(png(16, 2))
    with pytest.raises(Unreadable, match=r"deep\.png has mode RGB;16B; expected an 8-bit picture"):
        read_picture(tmp_path / "deep.png")


def test_every_second_frame_of_a_video(video):
    frames = list(video_frames(video, 2))
    assert [number for number, _ in frames] == [0, 2, 4]
    assert [number for number, _ in video_frames(video, 4, 2)] == [2]
    for number, frame in frames:
        assert frame.size == (64, 32)
        assert np.asarray(frame).mean() == pytest.approx(40 * number + 20, abs=4)


def test_an_invalid_video_is_reported(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(Unreadable, match=r"a\.mp4 cannot be decoded \("):
        list(video_frames(tmp_path / "a.mp4", 1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("multi_scale", "sizes"), [(True, 5), (False, 1)])
def test_samples_continue_after_unreadable_files(tmp_path, video, workers, multi_scale, sizes):
    save(tmp_path / "in/a.png", (160, 96))
    (tmp_path / "in/b.png").write_text("no picture")
    save(tmp_path / "in/c.jpg", (40, 24))
    paths = [str(video), str(tmp_path / "in")]
    sources, _ = find_sources(paths, tmp_path / "out")
    samples = list(
        samples_of(
            sources,
            multi_scale=multi_scale,
            frame_step=4,
            num_workers=workers,
            timeout=60,
            rank=0,
            world_size=1,
        )
    )
    names = [s.name if isinstance(s, PictureSample) else str(s).split()[0] for s in samples]
    assert names == ["a", str(tmp_path / "in/b.png"), "c", "clip/000000", "clip/000004"]
    first = samples[0]
    assert tuple(first.picture.shape) == (96, 160, 3)
    assert len(first.images) == sizes
    assert tuple(first.images[-1].shape) == (3, 80, 128)  # 1000/1280, rounded up to 8


def test_processes_share_pictures_and_frames(tmp_path, video):
    for name in ("a", "b", "c"):
        save(tmp_path / f"in/{name}.png")
    sources, _ = find_sources([str(video), str(tmp_path / "in")], tmp_path / "out")

    def share(rank):
        settings = {"multi_scale": False, "frame_step": 2, "num_workers": 0, "timeout": 0}
        samples = samples_of(sources, rank=rank, world_size=2, **settings)
        return [sample.name for sample in samples]

    assert share(0) == ["a", "c", "clip/000000", "clip/000004"]
    assert share(1) == ["b", "clip/000002"]


def test_without_its_package_every_video_is_a_problem(video, monkeypatch):
    picture = save(video.parent / "a.png")
    sources, _ = find_sources([str(video), str(picture)], video.parent / "out")
    assert without_support(sources) == []
    monkeypatch.setattr("dataset.own_pictures.find_spec", lambda name: None)
    (problem,) = without_support(sources)
    assert str(problem).startswith(f"{video} is a video, and the optional package av")
    assert str(problem).endswith("pip install -e '.[video]'")


# Turned pictures and videos

CORNERS = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [0, 0, 0]]], np.uint8)
# EXIF orientation -> where the matrix of a video puts x and y for the same turn.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
# The corners of CORNERS as EXIF 2.32 says that they are shown: row 0 is the visual top, and so on.
SHOWN = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.swapaxes(0, 1),
    6: CORNERS[::-1].swapaxes(0, 1),
    7: CORNERS[::-1, ::-1].swapaxes(0, 1),
    8: CORNERS[:, ::-1].swapaxes(0, 1),
}


def corners_of(picture):
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    return pixels[height // 4 :: height // 2, width // 4 :: width // 2]


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_every_orientation_of_a_camera_is_turned_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(CORNERS.repeat(16, 0).repeat(32, 1)).save(path, exif=exif, quality=95)
    picture = read_picture(path)
    assert picture.size == ((64, 32) if orientation < 5 else (32, 64))
    np.testing.assert_allclose(corners_of(picture), SHOWN[orientation], atol=30)


@pytest.mark.parametrize("orientation", MATRICES)
def test_every_display_matrix_of_a_video_is_applied(tmp_path, orientation):
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        pixels = CORNERS.repeat(16, 0).repeat(32, 1)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in MATRICES[orientation])
    start = data.index(b"tkhd") + 44  # of the matrix, in a track header of version 0
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    ((_, picture),) = video_frames(path, 1)
    np.testing.assert_allclose(corners_of(picture), SHOWN[orientation], atol=40)
    data[start : start + 36] = struct.pack(">9i", 46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    with pytest.raises(Unreadable, match="at an angle that is no multiple of 90 degrees"):
        list(video_frames(path, 1))


def frames_and_error(path):
    numbers = []
    with pytest.raises(Unreadable) as caught:
        numbers += [number for number, _ in video_frames(path, 1)]
    return str(caught.value).removeprefix(f"{path} ")


def test_truncated_and_empty_videos_are_reported(tmp_path, video):
    copy = tmp_path / "start.mp4"  # with its index first, so that a part of it plays
    with (
        av.open(str(video)) as there,
        av.open(str(copy), "w", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream_from_template(there.streams.video[0])
        for packet in there.demux(there.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-20])
    assert frames_and_error(copy) == "is cut off: 4 of 5 frames; copy it again"
    copy.write_bytes(whole[:100])
    assert frames_and_error(copy).startswith("holds no video stream; it may be cut off")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert frames_and_error(tmp_path / "sound.mp4").startswith("holds sound alone and no picture;")
    with av.open(str(tmp_path / "tiny.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 4, 2, "bgr0"
        pixels = np.zeros((2, 4, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    assert frames_and_error(tmp_path / "tiny.mkv") == "is 4x2; expected at least 8 pixels per side"


def test_a_truncated_video_without_an_index_names_its_duration(tmp_path):
    path = tmp_path / "drive.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(40):
            pixels = np.full((32, 64, 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    assert len(list(video_frames(path, 1))) == 40
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Unreadable, match=r"drive\.mkv is cut off: \d\.\d of 8\.0 seconds"):
        list(video_frames(path, 1))


# What is found, and what is refused


def test_links_are_followed_once_and_hidden_files_are_skipped(tmp_path):
    save(tmp_path / "elsewhere/a.png")
    for name in ("b.png", "._b.png", "__MACOSX/b.png", ".thumbs/b.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in/again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "in", target_is_directory=True)
    sources, problems = find_sources([str(tmp_path / "in")], tmp_path / "out")
    assert [source.name for source in sources] == ["again/a", "b"]
    assert problems == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(40), "(it is a HEIC picture); expected a PNG or"),
        ("a.jpg", b"\0\0\0\x18ftypheic" + bytes(40), "'magick a.jpg a_new.png'"),
        ("a.gif", b"GIF89a" + bytes(40), "(it is a GIF picture)"),
        ("a.png", b"version https://git-lfs.github.com/spec/v1", "'git lfs pull' fetches the file"),
        ("a.png", b"<html>404</html>", "a failed download"),
        ("a.png", b"", "(it is empty)"),
        ("a.ppm", b"P6 16 16 65535\n" + bytes(1536), "has mode RGB;16; expected an 8-bit"),
    ],
)
def test_what_a_file_is_and_how_to_convert_it(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    sources, _ = find_sources([str(tmp_path)], tmp_path / "out")
    assert [source.path.name for source in sources] == [name]
    with pytest.raises(Unreadable) as caught:
        read_picture(sources[0].path)
    assert str(caught.value).startswith(f"{tmp_path / name} ")
    assert expected in str(caught.value)


def test_deep_float_and_cmyk_pictures_are_refused(tmp_path):
    (tmp_path / "deep.tif").write_bytes(tiff(np.full((16, 16, 3), 30000, np.uint16)))
    Image.new("F", (16, 16)).save(tmp_path / "float.tif")
    Image.new("CMYK", (16, 16)).save(tmp_path / "print.jpg")
    for name, mode in {"deep.tif": "RGB;16", "float.tif": "F", "print.jpg": "CMYK"}.items():
        with pytest.raises(Unreadable) as caught:
            read_picture(tmp_path / name)
        assert str(caught.value).startswith(
            f"{tmp_path / name} has mode {mode}; expected an 8-bit picture such as RGB(A), convert"
        )


def test_a_damaged_note_in_a_png_is_named(tmp_path):
    info = PngInfo()
    info.add_text("Comment", "words")
    path = tmp_path / "a.png"
    Image.new("L", (16, 16)).save(path, pnginfo=info)
    path.write_bytes(path.read_bytes().replace(b"words", b"worms"))
    with pytest.raises(Unreadable, match=r"chunk tEXt has a wrong checksum.*magick a\.png a_new"):
        read_picture(path)


def test_several_frames_are_refused(tmp_path):
    pages = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for name in ("a.tif", "a.png", "a.webp"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        with pytest.raises(Unreadable, match="holds 2 frames; expected one"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_a_pipe_is_refused_and_nothing_waits_for_it(tmp_path, name):
    os.mkfifo(tmp_path / name)
    sources, _ = find_sources([str(tmp_path)], tmp_path / "out")
    settings = {"multi_scale": False, "frame_step": 1, "num_workers": 0, "timeout": 0}
    (problem,) = samples_of(sources, rank=0, world_size=1, **settings)
    assert "it is a pipe, a socket or a device" in str(problem)


LAYOUTS = {
    "streethazards": (["images/t/1.png"], ["annotations/t/1.png"]),
    "folder": (["images/test/a/1.jpg"], ["labels/test/a/1.png"]),
    "bdd_anomaly": (["images/10k/val/1.jpg"], ["labels/sem_seg/masks/val/1.png"]),
    "bdd_anomaly, older": (
        ["seg/images/val/1-a.jpg"],
        ["seg/color_labels/val/1-a_train_color.png", "seg/labels/val/1-a_train_id.png"],
    ),
    "road_anomaly": (["frames/1_a.webp"], ["frames/1_a.labels/labels_semantic.png"]),
    "road_anomaly_21": (["images/1.jpg"], ["labels_masks/1_labels_semantic.png"]),
    "fishyscapes_lostandfound": (
        ["leftImg8bit/test/04/04_1_2_leftImg8bit.png"],
        ["fishyscapes_lostandfound/0001_04_1_2_labels.png"],
    ),
    "beside": (["a/1.JPG", "a/2.jpg"], ["a/1.png", "a/2_mask.png"]),
    "pictures": (["labels/2.png", "masks/3.jpg", "mask_1.png", "4.png", "4_1.jpg"], []),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_label_maps_of_a_data_set_are_no_pictures(layout, tmp_path):
    pictures, labels = LAYOUTS[layout]
    for name in (*pictures, *labels):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if name in pictures else "L", (16, 16)).save(path)
    sources, _ = find_sources([str(tmp_path)], tmp_path / "out")
    left, found = without_label_maps(sources, [str(tmp_path)])
    assert [[str(one.path.relative_to(tmp_path)) for one in some] for some in (left, found)] == [
        sorted(pictures),
        sorted(labels),
    ]
    named = [str(tmp_path / name) for name in labels]
    sources, _ = find_sources([str(tmp_path), *named], tmp_path / "out")
    assert without_label_maps(sources, [str(tmp_path), *named]) == (sources, [])


def test_only_a_grey_png_beside_its_picture_is_a_label_map(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "1.jpg")
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    sources, _ = find_sources([str(tmp_path)], tmp_path / "out")
    assert without_label_maps(sources, [str(tmp_path)]) == (sources, [])
    Image.new("P", (16, 16)).save(tmp_path / "1.png")
    left, labels = without_label_maps(sources, [str(tmp_path)])
    assert ([one.path.name for one in left], [one.path.name for one in labels]) == (
        ["1.jpg"],
        ["1.png"],
    )
