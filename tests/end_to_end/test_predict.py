"""--predict and --export as a user starts them, against the plain network and onnxruntime."""

import argparse
import json
import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights

import run
from dataset.demo.writer import write_demo
from dataset.loaders import evaluation_loader
from dataset.own_pictures import picture_sample
from dataset.readers.streethazards import STREETHAZARDS
from modules.backbones import BACKBONES, Backbone
from modules.normalisation import normalised as normalised_planes
from modules.scores.formulas import cosine_score, msp_score
from modules.segmentation import build_model
from tests.end_to_end import command
from tests.reliability.tiny import ONE_BLOCK

REPOSITORY = Path(__file__).parents[2]
SIZES = [(40, 72), (56, 88), (64, 104), (72, 120), (80, 128)]  # 96x160 at the five scales
KINDS = ("classes", "heat", "overlay", "panel")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Checkpoints of a network of one block per stage, and a tiny data set."""
    root = tmp_path_factory.mktemp("predict")
    write_demo(root / "data", train=2, validation=2, test=3, size=(160, 96), seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet50", ONE_BLOCK)
        torch.manual_seed(0)
        network = build_model()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.bias)
                torch.nn.init.normal_(module.running_mean)
        torch.save({"model_state": network.state_dict()}, root / "published.pth")
        options = {
            "classifier": "cosine",
            "output_stride": 16,
            "multi_scala": True,
            "cosine_scores": True,
        }
        torch.save({"model_state": network.state_dict(), "options": options}, root / "own.pth")
        yield root


def pictures_of(root):
    return sorted((root / "data/StreetHazards/test/images").rglob("*.png"))


def start(*words):
    return run.main([str(word) for word in words])


def normalised(picture):
    values = (np.asarray(picture) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(values).permute(2, 0, 1)[None].float()


def reference(root, path, output_stride, sizes):
    """Logits at each size and the mean softmax, straight from PIL and the plain network."""
    network = build_model(output_stride=output_stride, plain=True).eval()
    network.load_state_dict(torch.load(root / "published.pth")["model_state"])
    picture = Image.open(path).convert("RGB")
    scaled = [picture.resize((w, h), Image.Resampling.BILINEAR) for h, w in sizes]
    with torch.inference_mode():
        logits = [network(normalised(image)) for image in scaled]
    size = (picture.height, picture.width)
    softmax = [F.interpolate(one, size=size, mode="bilinear").softmax(1) for one in logits]
    return logits, torch.stack(softmax).mean(0)


def test_predictions_are_those_of_the_plain_network(root, capsys):
    folder, out = root / "data/StreetHazards/test/images", root / "own"
    ended = start(
        "--predict", folder, "--ckpt_test", root / "own.pth", "--out", out, "--threshold", 0.4
    )
    assert ended == 0, capsys.readouterr().err
    for path in pictures_of(root):
        name = path.relative_to(folder).with_suffix("").as_posix()
        logits, softmax = reference(root, path, output_stride=16, sizes=SIZES)
        score = np.load(out / "score" / f"{name}.npy")
        expected = cosine_score(logits, score.shape)[0].numpy()
        assert score.dtype == np.float32
        np.testing.assert_allclose(score, expected, atol=1e-4)
        classes = Image.open(out / "classes" / f"{name}.png")
        found = np.asarray(classes)
        assert (found == softmax.argmax(1)[0].numpy()).mean() > 0.999
        assert (np.asarray(classes.convert("RGB")) == STREETHAZARDS.palette[found]).all()
        mask = np.asarray(Image.open(out / "mask" / f"{name}.png"))
        assert ((mask == 255) == (score >= np.float32(0.4))).all()
        for kind in KINDS:
            Image.open(out / kind / f"{name}.png").load()
    summary = json.loads((out / "predictions.json").read_text())
    assert (summary["score"], summary["multi_scale"], summary["threshold"]) == (
        "prototype",
        True,
        0.4,
    )
    assert [one["size"] for one in summary["pictures"]] == [[160, 96]] * 3
    assert summary["pictures"][-1]["anomalous_share"] == pytest.approx((mask == 255).mean())
    sheet = Image.open(out / "contact_sheet_001.png")
    assert sheet.size == (2 * 3 * 320, 35 + 2 * (35 + 200) + 45)
    for one in summary["pictures"]:  # one scale for all, with the threshold in its middle
        assert one["heat_limits"] == pytest.approx([0, 0.8])
        assert_pictures_show_the_score(folder / f"{one['name']}.png", out, one["name"])


def assert_pictures_show_the_score(picture, out, name):
    """Heat, overlay and panel of a score on the scale of 0 to 0.8, and the threshold's outline."""
    score = np.load(out / "score" / f"{name}.npy")
    heat = np.asarray(Image.open(out / "heat" / f"{name}.png")).astype(float)
    colours = matplotlib.colormaps["inferno"](np.clip(score / 0.8, 0, 1))[..., :3] * 255
    assert np.abs(heat - colours).max() <= 5
    original = np.asarray(Image.open(picture).convert("RGB")).astype(float)
    opacity = 0.8 * np.clip(score / 0.8, 0, 1)[..., None] ** 2
    blended = (1 - opacity) * original + opacity * heat
    drawn = np.asarray(Image.open(out / "overlay" / f"{name}.png")).astype(float)
    outline = (drawn == 0).all(-1) | (drawn == 255).all(-1)
    assert np.abs(drawn - blended)[~outline].max() <= 1
    mask = np.asarray(Image.open(out / "mask" / f"{name}.png")) == 255
    right = mask[:, :-1] & ~mask[:, 1:]  # the mask ends between a pixel and the next in its row
    assert (drawn[:, :-1][right] == 255).all()
    assert (drawn[:, 1:][right] == 0).all()
    panel = np.asarray(Image.open(out / "panel" / f"{name}.png"))
    assert panel.shape[1] == 960
    for top, left, kind in ((35, 0, picture), (358, 0, "overlay"), (358, 480, "heat")):
        path = picture if kind == picture else out / kind / f"{name}.png"
        expected = np.asarray(Image.open(path).convert("RGB"))
        shown = panel[top : top + 288, left : left + 480]
        assert np.abs(shown.mean((0, 1)) - expected.mean((0, 1))).max() < 4, kind


def test_a_fitted_score_uses_the_state_stored_by_a_test(root, capsys):
    path, own = pictures_of(root)[0], root / "own.pth"
    words = ["--predict", path, "--ckpt_test", own, "--score", "class_mean"]
    assert start(*words, "--out", root / "none") == 2
    refusal = "class_mean needs a data set's training images; run --test --score class_mean"
    assert refusal in capsys.readouterr().err.splitlines()[-1]
    test = ["--test", "--name", "fitted", "--ckpt_test", own, "--data_root", root / "data"]
    test += ["--classifier", "cosine", "--output_stride", 16, "--multi_scala", "--num_workers", 0]
    test += ["--score", "class_mean", "--logdir", root / "logs"]
    assert start(*test) == 0, capsys.readouterr().err
    assert start(*words, "--out", root / "fitted") == 0, capsys.readouterr().err
    assert start(*words, "--out", root / "one", "--no_multi_scala") == 2
    assert refusal in capsys.readouterr().err.splitlines()[-1]
    found = np.load(root / "fitted/score" / f"{path.stem}.npy")
    np.testing.assert_allclose(found, distance_from_class_means(root, path), atol=1e-4)


def distance_from_class_means(root, path):
    """(H, W), by the plain network and numpy."""
    network = build_model(output_stride=16, plain=True).eval()
    network.load_state_dict(torch.load(root / "published.pth")["model_state"])

    def features(picture):
        scaled = [picture.resize((w, h), Image.Resampling.BILINEAR) for h, w in SIZES]
        with torch.inference_mode():
            return [network.features(normalised(one))[0].numpy() for one in scaled]

    sums, counts = np.zeros((13, 8 * ONE_BLOCK.width)), np.zeros(13)
    alone = {"multi_scale": False, "num_workers": 0, "rank": 0, "world_size": 1}
    for sample in evaluation_loader(root / "data", "train", **alone):
        for one in features(Image.fromarray(sample.picture.numpy())):
            height, width = one.shape[1:]
            rows = ((np.arange(height) + 0.5) * 96 / height).astype(int)
            columns = ((np.arange(width) + 0.5) * 160 / width).astype(int)
            label = sample.label.numpy()[np.ix_(rows, columns)]
            for index in range(13):
                sums[index] += one[:, label == index].sum(axis=1)
                counts[index] += (label == index).sum()
    means = sums[counts > 0] / counts[counts > 0, None]
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    maps = []
    for one in features(Image.open(path).convert("RGB")):
        cosines = np.einsum("kc,chw->khw", means, one / np.linalg.norm(one, axis=0))
        nearest = torch.from_numpy(1 - cosines.max(axis=0))[None, None]
        maps.append(F.interpolate(nearest, size=(96, 160), mode="bilinear")[0, 0].numpy())
    return np.mean(maps, axis=0)


def test_the_classifier_of_a_published_checkpoint_is_inferred_unless_passed(root, capsys):
    path = pictures_of(root)[0]
    flags = ["--predict", path, "--ckpt_test", root / "published.pth"]
    assert start(*flags, "--out", root / "p1") == 0, capsys.readouterr().err
    logits, softmax = reference(root, path, output_stride=8, sizes=SIZES[-1:])
    score = np.load(root / "p1/score" / f"{path.stem}.npy")
    np.testing.assert_allclose(score, cosine_score(logits, score.shape)[0], atol=1e-4)
    assert not (root / "p1/mask").exists()
    assert start(*flags, "--out", root / "p2", "--msp") == 0, capsys.readouterr().err
    score = np.load(root / "p2/score" / f"{path.stem}.npy")
    np.testing.assert_allclose(score, msp_score(softmax)[0], atol=1e-4)


def test_calibration_reaches_the_requested_false_positive_rate(root, capsys):
    flags = ["--ckpt_test", root / "own.pth", "--data_root", root / "data", "--num_workers", 0]
    share = ["--calibrate_fpr", 0.05]
    validation = root / "data/StreetHazards/train/images/validation"
    if not validation.is_dir():
        validation = root / "data/StreetHazards/validation/images"
    ended = start("--predict", validation, *flags, "--out", root / "calibrated", *share)
    assert ended == 0, capsys.readouterr().err
    reached = known = 0
    for mask_path in (root / "calibrated/mask").rglob("*.png"):
        name = mask_path.relative_to(root / "calibrated/mask")
        label_path = Path(str(validation).replace("images", "annotations")) / name
        is_known = np.asarray(Image.open(label_path)) > 0
        reached += int((np.asarray(Image.open(mask_path))[is_known] == 255).sum())
        known += int(is_known.sum())
    assert known > 0
    assert reached / known <= 0.05
    assert reached / known == pytest.approx(0.05, abs=1e-3)


def test_unreadable_pictures_are_named_and_the_rest_is_predicted(root, tmp_path, capsys):
    (tmp_path / "a.png").write_text("no picture")
    paths = [tmp_path / "a.png", tmp_path / "gone.jpg", pictures_of(root)[0]]
    flags = ["--ckpt_test", root / "own.pth", "--out", tmp_path / "out", "--no_multi_scale"]
    assert start("--predict", *paths, *flags) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert "2 could not be processed, the other 1 are done" in line
    assert "a.png cannot be decoded" in line
    assert "gone.jpg does not exist" in line
    assert len(list((tmp_path / "out/score").iterdir())) == 1
    summary = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(summary["unreadable"]) == 2


def write_lossless(av, path, pictures):
    """A video of five pictures of 160x96 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "bgr0"
        for picture in pictures:
            frame = np.asarray(Image.open(picture).convert("RGB"))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_every_second_frame_of_a_video_is_predicted_like_a_picture(root, tmp_path, capsys):
    av = pytest.importorskip("av", reason="reading videos is optional: pip install -e .[video]")
    pictures = pictures_of(root)
    write_lossless(av, tmp_path / "drive.mkv", pictures)
    flags = ["--ckpt_test", root / "own.pth", "--out", tmp_path / "out", "--no_multi_scale"]
    sources = [tmp_path / "drive.mkv", *pictures]
    assert start("--predict", *sources, *flags, "--frame_step", 2) == 0, capsys.readouterr().err
    scores, frames = tmp_path / "out/score", ["000000", "000002"]
    assert sorted(path.stem for path in (scores / "drive").iterdir()) == frames
    for frame, path in zip(frames, pictures[::2], strict=True):
        for kind, suffix in (("score", ".npy"), ("classes", ".png"), ("overlay", ".png")):
            folder = tmp_path / "out" / kind
            ours = (folder / "drive" / frame).with_suffix(suffix)
            assert ours.read_bytes() == (folder / path.stem).with_suffix(suffix).read_bytes()
    with av.open(str(tmp_path / "out/overlay/drive.mp4")) as container:
        assert container.streams.video[0].average_rate == 2.5  # of 5, every second
        decoded = [np.asarray(frame.to_image()) for frame in container.decode(video=0)]
    assert len(decoded) == 2
    assert_video_shows(decoded, tmp_path / "out/overlay/drive")


def assert_video_shows(decoded, folder):
    """Each decoded frame is the picture of the same place in the folder, and no other's."""
    pictures = [np.asarray(Image.open(path)).astype(float) for path in sorted(folder.iterdir())]
    for number, frame in enumerate(decoded):
        distances = [np.abs(frame - picture).mean() for picture in pictures]
        assert np.argmin(distances) == number
        assert distances[number] < 8


def test_calibration_lists_skipped_files(root, tmp_path, capsys):
    shutil.copytree(root / "data", tmp_path / "data")
    images = sorted((tmp_path / "data/StreetHazards").glob("**/images/validation/**/*.png"))
    flags = ["--predict", pictures_of(root)[0], "--ckpt_test", root / "own.pth"]
    flags += ["--out", tmp_path / "out", "--no_multi_scale", "--calibrate_fpr", 0.1]
    flags += ["--data_root", tmp_path / "data", "--skip_bad_files", "--num_workers", 0]
    images[0].write_text("no picture")
    assert start(*flags) == 0
    errors = capsys.readouterr().err
    assert "skipped 1 samples that cannot be read:\n" in errors
    assert f"  validation: {images[0]} cannot be decoded" in errors
    images[1].write_text("no picture")
    assert start(*flags) == 2
    errors = capsys.readouterr().err
    assert "validation.odgt: none of its 2 samples can be read, the first: " in errors


def deep_supervision(name):
    return "deepsup" in name


FOREIGN = {
    "torch.compile": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "Lightning": lambda state: {
        "state_dict": {f"model.{name}": value for name, value in state.items()}
        | {"criterion.weight": torch.ones(13)},
        "hyper_parameters": argparse.Namespace(lr=0.1, out=Path("runs")),
        "options": argparse.Namespace(score=3),
    },
    "both": lambda state: {
        "model": {f"module._orig_mod.{name}": value for name, value in state.items()},
        "options": {"score": "best", "backbone": "vit", "dataset": "cityscapes", "classifier": 1},
    },
    "without deep supervision": lambda state: {
        name: value for name, value in state.items() if not deep_supervision(name)
    },
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_checkpoints_of_other_programs_predict_the_same(root, tmp_path, capsys, kind):
    state = torch.load(root / "published.pth")["model_state"]
    torch.save(FOREIGN[kind](state), tmp_path / "foreign.pth")
    path = pictures_of(root)[0]
    for weights, out in ((root / "published.pth", "own"), (tmp_path / "foreign.pth", "foreign")):
        words = ["--predict", path, "--ckpt_test", weights, "--out", tmp_path / out]
        assert start(*words) == 0, capsys.readouterr().err
    scores = [np.load(tmp_path / out / f"score/{path.stem}.npy") for out in ("own", "foreign")]
    np.testing.assert_array_equal(*scores)


# The user's own files


def test_an_input_is_never_overwritten(root, tmp_path, capsys):
    own = tmp_path / "overlay/0.png"
    own.parent.mkdir()
    shutil.copy(pictures_of(root)[0], own)
    before = own.read_bytes()
    flags = ["--ckpt_test", root / "own.pth", "--no_multi_scale"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/overlay").symlink_to(own.parent, target_is_directory=True)
    video = tmp_path / "overlay/drive.mp4"  # would be that of its own frames
    video.write_bytes(b"video")
    assert start("--predict", video, "--out", tmp_path, *flags, "--overwrite") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: --out {tmp_path}: the results of {video} would overwrite")
    assert video.read_bytes() == b"video"
    video.unlink()
    for out in (tmp_path, tmp_path / "elsewhere"):
        for more in ([], ["--overwrite"]):
            assert start("--predict", own, "--out", out, *flags, *more) == 2
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith(
                f"error: --out {out}: the results of {own} would overwrite {own}"
            )
    assert own.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "overlay"]


def test_a_folder_of_the_users_own_needs_overwrite(root, tmp_path, capsys):
    (tmp_path / "contact_sheet_007.png").write_text("mine")
    (tmp_path / "predictions.json").write_text('{"mine": 1}')
    flags = ["--predict", pictures_of(root)[0], "--ckpt_test", root / "own.pth"]
    flags += ["--no_multi_scale", "--out", tmp_path]
    assert start(*flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: --out {tmp_path} holds contact_sheet_007.png, which is no ear")
    assert len(list(tmp_path.iterdir())) == 2
    assert start(*flags, "--overwrite") == 0
    assert (tmp_path / "contact_sheet_007.png").read_text() == "mine"
    capsys.readouterr()
    assert start(*flags) == 2  # a sheet that is not ours
    assert "holds contact_sheet_007.png" in capsys.readouterr().err
    (tmp_path / "contact_sheet_007.png").unlink()
    (tmp_path / "notes.txt").write_text("mine")  # which no result could overwrite
    assert start(*flags) == 0


def test_obsolete_contact_sheets_are_deleted(root, tmp_path):
    summary = {"checkpoint": "", "score": "", "pictures": [{"name": "x"}] * 17}
    (tmp_path / "predictions.json").write_text(json.dumps(summary))
    (tmp_path / "contact_sheet_002.png").write_text("old")
    flags = ["--predict", pictures_of(root)[0], "--ckpt_test", root / "own.pth"]
    assert start(*flags, "--no_multi_scale", "--out", tmp_path) == 0
    assert [path.name for path in sorted(tmp_path.glob("contact*"))] == ["contact_sheet_001.png"]


def test_a_video_without_its_package_does_not_stop_the_pictures(
    root, tmp_path, capsys, monkeypatch
):
    (tmp_path / "in").mkdir()
    shutil.copy(pictures_of(root)[0], tmp_path / "in/a.png")
    (tmp_path / "in/b.mp4").write_bytes(b"video")
    monkeypatch.setattr("dataset.own_pictures.find_spec", lambda name: None)
    flags = ["--ckpt_test", root / "own.pth", "--no_multi_scale", "--out", tmp_path / "out"]
    assert start("--predict", tmp_path / "in", *flags) == 2
    assert "1 could not be processed, the other 1 are done: " in capsys.readouterr().err
    assert (tmp_path / "out/score/a.npy").is_file()
    assert start("--predict", tmp_path / "in/b.mp4", *flags) == 2
    assert "--predict found nothing to read: " in capsys.readouterr().err


def test_errors_of_users_are_one_line(root, tmp_path, capsys, monkeypatch):
    picture, own = pictures_of(root)[0], root / "own.pth"
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    torch.save({"state_dict": build_model().body.state_dict()}, tmp_path / "imagenet.pth")
    predict = ["--predict", picture, "--out", tmp_path / "out", "--ckpt_test"]
    export = ["--export", "onnx", "--ckpt_test", own, "--out"]
    nowhere = "--data_root", tmp_path
    for words, message in (
        ([*predict, tmp_path / "gone.pth"], "there is no checkpoint"),
        ([*predict, tmp_path / "imagenet.pth"], "holds ImageNet weights with in-place ABN; name"),
        ([*predict, own, "--classifier", "standard"], "trained with --classifier cosine"),
        ([*predict, own, "--calibrate_fpr", 0.1, *nowhere], "validation.odgt is missing"),
        (["--predict", tmp_path / "empty", *predict[2:], own], "--predict found nothing to read: "),
        (
            [*predict[:2], "--out", tmp_path / "file", "--ckpt_test", own],
            "/file cannot be written to",
        ),
        (
            [*export, tmp_path / "file/a.onnx"],
            "could not be written",
        ),
        (
            [*export, tmp_path / "a.onnx", "--score", "knn"],
            "argument --score: knn needs more than logits, and no file holds it",
        ),
    ):
        assert start(*words) == 2, words
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, lines
        assert message in errors[0]
        assert not any("Traceback" in line for line in lines)


def test_training_from_torchvision_without_a_network_is_one_line(root, capsys, monkeypatch):
    monkeypatch.setattr(ResNet50_Weights, "url", "http://localhost:9/resnet50-0676ba61.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(root / "hub"))
    flags = ["--data_root", root / "data", "--logdir", root / "logs", "--crop_size", 64]
    assert start("--pretrained", "torchvision", *flags, "--num_workers", 0, "--nproc", 1) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: torchvision's weights of resnet50 could not be fetched")


@pytest.fixture(scope="module")
def exported(root):
    """The ONNX file of the checkpoint without options, once; exporting is slow."""
    path = root / "pans.onnx"
    assert start("--export", "onnx", "--ckpt_test", root / "published.pth", "--out", path) == 0
    return path


@pytest.mark.parametrize("shape", [(1, 96, 160), (2, 61, 83), (3, 304, 40)])
def test_onnxruntime_computes_the_same_numbers(root, exported, shape):
    batch, height, width = shape
    image = torch.randn(batch, 3, height, width)
    network = build_model(plain=True).eval()
    network.load_state_dict(torch.load(root / "published.pth")["model_state"])
    with torch.inference_mode():
        expected = network(image)
        expected_score = cosine_score([expected], (height, width))
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    logits, score, classes = session.run(None, {"image": image.numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(score, expected_score, atol=1e-4)
    full = F.interpolate(expected, size=(height, width), mode="bilinear")
    assert (classes == full.argmax(1).numpy()).mean() > 0.999


def test_of_several_processes_one_exports(root, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    path = tmp_path / "pans.onnx"
    assert start("--export", "onnx", "--ckpt_test", root / "published.pth", "--out", path) == 0
    assert not path.exists()


def test_the_onnx_file_is_valid_and_documents_its_preprocessing(exported):
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["mean"], told["std"]) == ("0.485 0.456 0.406", "0.229 0.224 0.225")
    assert "RGB / 255, then (value - mean) / std" in told["preprocessing"]
    assert told["classes"].startswith("unlabeled, building, fence")
    names = [dimension.dim_param for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    assert names == ["batch", "", "height", "width"]


@pytest.mark.parametrize("size", [(160, 96), (83, 61), (1281, 47)])
def test_the_snippet_in_the_docs_prepares_a_picture_of_any_size(
    exported, tmp_path, monkeypatch, size
):
    text = (REPOSITORY / "docs/predict.md").read_text()
    (snippet,) = re.findall(r"^```python\n(import numpy.*?)^```", text, re.MULTILINE | re.DOTALL)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "street.png")
    (tmp_path / "pans.onnx").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(snippet, found)
    (expected,) = picture_sample("", picture, multi_scale=False).images
    expected = normalised_planes(expected.reshape(1, *expected.shape[-3:]))[0].numpy()
    np.testing.assert_allclose(found["image"].transpose(2, 0, 1), expected, atol=1e-5)
    assert found["score"].shape == (1, *expected.shape[-2:])


def test_two_processes_write_each_picture_once(root, tmp_path):
    """The real network, as two processes from the shell, which share a video's frames too."""
    av = pytest.importorskip("av", reason="reading videos is optional: pip install -e .[video]")
    pictures = pictures_of(root)
    write_lossless(av, tmp_path / "drive.mkv", pictures)
    torch.save({"model_state": build_real().state_dict()}, tmp_path / "real.pth")
    folder = root / "data/StreetHazards/test/images"
    flags = ["--ckpt_test", tmp_path / "real.pth", "--out", tmp_path / "out", "--num_workers", 0]
    ended = command.start("--predict", folder, tmp_path / "drive.mkv", *flags, "--nproc", "2")
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "out/score").rglob("*.npy"))) == 6
    summary = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(summary["pictures"]) == 6
    with av.open(str(tmp_path / "out/overlay/drive.mp4")) as container:
        decoded = [np.asarray(frame.to_image()) for frame in container.decode(video=0)]
    assert len(decoded) == 3
    assert_video_shows(decoded, tmp_path / "out/overlay/drive")
    assert f"6 pictures in {tmp_path / 'out'}, score prototype" in ended.stdout


def build_real():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet50", Backbone((3, 4, 6, 3)))
        return build_model()
