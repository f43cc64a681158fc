"""Pictures and videos of the user's own: found, named, decoded, or refused one by one."""

import numpy as np
import pytest
from PIL import Image

from dataset.own_pictures import (
    PictureSample,
    Unreadable,
    VideoSupportMissing,
    check_video_support,
    find_sources,
    read_picture,
    samples_of,
    video_frames,
)
from tests.dataset.trees import png

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
    return path


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
        assert str(problem) == f"{tmp_path}/in is where the results go; name another --out"


def test_a_folder_without_pictures_is_a_problem(tmp_path):
    sources, (problem,) = find_sources([str(tmp_path)], tmp_path / "out")
    assert sources == []
    assert str(problem).startswith(f"{tmp_path} holds no picture and no video (.png, ")


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
        "tiny.png": "is 40x7; expected 8 pixels a side",
        "gone.png": "cannot be decoded (",
    }.items():
        with pytest.raises(Unreadable) as caught:
            read_picture(tmp_path / name)
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


def test_what_is_no_video_says_so(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(Unreadable, match=r"a\.mp4 cannot be decoded \("):
        list(video_frames(tmp_path / "a.mp4", 1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("multi_scale", "sizes"), [(True, 5), (False, 1)])
def test_samples_go_on_past_what_cannot_be_read(tmp_path, video, workers, multi_scale, sizes):
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


def test_videos_without_their_package_are_refused_before_the_work(video, monkeypatch):
    monkeypatch.setattr("dataset.own_pictures.find_spec", lambda name: None)
    sources, _ = find_sources([str(video)], video.parent / "out")
    with pytest.raises(
        VideoSupportMissing, match=r"clip\.mp4 is a video.*pip install -e '\.\[video\]'"
    ):
        check_video_support(sources)
