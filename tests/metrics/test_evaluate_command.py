"""python -m metrics.evaluate: equal to the state that a test fills, and plain about bad files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.readers.streethazards import STREETHAZARDS
from metrics import AnomalyEvaluation, InvalidScores
from metrics.evaluate import CLASS_NAMES, evaluate, main, parse_arguments
from utils.errors import PansError

REPOSITORY = Path(__file__).parents[2]
IMAGES = ("t5/1", "t5/10", "t6/1")


def make_maps(name):
    """(scores, prediction, raw label) of 40x56 pixels: raw 14 is the anomaly, 0 ignored."""
    rng = np.random.default_rng(sum(name.encode()))
    raw = np.kron(rng.integers(1, 14, (5, 7)), np.ones((8, 8))).astype(np.uint8)
    raw[10:25, 20:40] = 14
    raw[:3] = 0
    scores = rng.normal(size=raw.shape) + 2 * (raw == 14)
    return scores.astype(np.float32), np.minimum(raw, 12).astype(np.uint8), raw


def write_score(path, scores):
    if path.suffix == ".npy":
        np.save(path, scores)
    else:
        Image.fromarray(scores).save(path)


@pytest.fixture
def folders(tmp_path):
    """Folders of scores, labels and predictions, and the arguments that name them."""
    for name in IMAGES:
        scores, prediction, raw = make_maps(name)
        for kind in ("scores", "labels", "predictions"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        write_score(tmp_path / "scores" / f"{name}.npy", scores)
        Image.fromarray(prediction).save(tmp_path / "predictions" / f"{name}.png")
        Image.fromarray(raw).save(tmp_path / "labels" / f"{name}.png")
    return tmp_path


def arguments(folder, *more):
    found = ["--scores", str(folder / "scores"), "--labels", str(folder / "labels"), *more]
    return [*found, "--min_predicted_size", "9", "--min_true_size", "4"]


def in_run(**options):
    evaluation = AnomalyEvaluation(13, min_predicted_size=9, min_true_size=4, **options)
    for index, name in enumerate(IMAGES):
        scores, prediction, raw = make_maps(name)
        evaluation.update(index, name, scores, prediction, raw - 1)
    return evaluation.results()


def error_of(folder, *more):
    with pytest.raises(PansError) as caught:
        evaluate(parse_arguments(arguments(folder, *more)))
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "")


def test_the_metrics_equal_those_of_a_run(folders):
    predictions = ("--predictions", str(folders / "predictions"))
    results = evaluate(parse_arguments(arguments(folders, *predictions)))
    assert results == in_run(class_names=CLASS_NAMES)
    ignoring = arguments(folders, *predictions, "--ignore_classes", "other, unlabeled,12")
    assert evaluate(parse_arguments(ignoring)) == in_run(
        class_names=CLASS_NAMES, ignore_classes=(3, 0, 12)
    )


@pytest.mark.parametrize(
    ("suffix", "convert"),
    [
        (".npy", lambda s: s.astype(np.float64)),
        (".npy", lambda s: s.astype(np.float16)),
        (".png", lambda s: np.clip(128 + 25 * s, 0, 255).astype(np.uint8)),
        (".png", lambda s: (32768 + 5000 * s).astype(np.uint16)),
        (".tif", lambda s: s),
        (".tif", lambda s: (32768 + 5000 * s).astype(np.uint16)),
        (".tiff", lambda s: np.clip(128 + 25 * s, 0, 255).astype(np.uint8)),
    ],
)
def test_every_format(folders, suffix, convert):
    evaluation = AnomalyEvaluation(13, min_predicted_size=9, min_true_size=4)
    for index, name in enumerate(IMAGES):
        scores, _, raw = make_maps(name)
        (folders / "scores" / f"{name}.npy").unlink()
        write_score(folders / "scores" / f"{name}{suffix}", convert(scores))
        evaluation.update(index, name, convert(scores), None, raw - 1)
    kind = suffix[1:4]
    results = evaluate(parse_arguments(arguments(folders, "--format", kind)))
    assert results["protocols"] == evaluation.results()["protocols"]


def test_labels_as_they_are(folders):
    """As other data sets have them: 0 normal, 1 anomalous, 255 ignored."""
    for name in IMAGES:
        raw = make_maps(name)[2]
        label = np.select([raw == 14, raw == 0], [1, 255], 0).astype(np.uint8)
        Image.fromarray(label).save(folders / "labels" / f"{name}.png")
    options = arguments(folders, "--label_offset", "0", "--anomaly_index", "1")
    results = evaluate(parse_arguments([*options, "--num_classes", "1"]))
    assert results["protocols"]["pooled"] == in_run()["protocols"]["pooled"]


def test_the_command_prints_a_table_and_writes_the_results(folders):
    out = folders / "results.json"
    ended = subprocess.run(
        [sys.executable, "-m", "metrics.evaluate", *arguments(folders, "--out", str(out))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads(out.read_text())
    assert results["AUROC"] == in_run()["AUROC"]
    assert results["Mean IoU"] is None
    assert f"| per image | AUROC | {results['AUROC']:.2f} |" in ended.stdout
    assert "9/9" in ended.stderr  # the progress bar: three images, read three times


def test_the_command_ends_with_one_line_on_an_error(folders):
    (folders / "labels/t6/1.png").unlink()
    ended = subprocess.run(
        [sys.executable, "-m", "metrics.evaluate", *arguments(folders)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: 1 score maps without a label in ")
    assert ended.stderr.count("\n") == 1


def test_needs_nothing_of_the_network(folders):
    """Not even an import: it serves other people's models."""
    code = (
        "import sys; from metrics.evaluate import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'modules', 'dataset', 'report', 'train'} & set(sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments(folders)], cwd=REPOSITORY, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr


def test_class_names_are_those_of_the_data_set():
    assert STREETHAZARDS.class_names == CLASS_NAMES


def test_files_without_a_counterpart_are_named(folders):
    (folders / "labels/t5/1.png").unlink()
    (folders / "scores/t6/1.npy").unlink()
    assert error_of(folders) == (
        "1 score maps without a label in /labels: t5/1; 1 labels without a score map in /scores: "
        "t6/1; files are matched by relative path and name"
    )


def test_long_lists_of_missing_files_are_cut(folders):
    for number in range(9):
        np.save(folders / f"scores/more{number}.npy", np.zeros((2, 2)))
    assert "9 score maps without a label in /labels: more0, more1, more2, more3, more4, ...;" in (
        error_of(folders)
    )


def test_predictions_without_a_counterpart_are_named(folders):
    (folders / "predictions/t5/10.png").unlink()
    message = error_of(folders, "--predictions", str(folders / "predictions"))
    assert message.startswith("1 names with only a score map or only a prediction")
    assert "t5/10" in message


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("labels/t5/1.png", np.ones((40, 55), np.uint8), "is 55x40 but its score map is 56x40"),
        ("scores/t5/1.npy", np.ones((40, 56, 2)), "float64 of shape (40, 56, 2)"),
        ("scores/t5/1.npy", np.ones((40, 56)) * 1j, "complex128"),
        ("scores/t5/1.npy", np.ones((0, 56)), "shape (0, 56)"),
        ("scores/t5/1.npy", np.array([[None]]), "can't be read"),
        ("scores/t5/1.npy", b"", "can't be read"),
        ("labels/t5/1.png", b"no picture", "cannot be decoded (it is no picture)"),
        ("labels/t5/1.png", np.ones((40, 56, 3), np.uint8), "has mode RGB; expected an 8-bit"),
        ("labels/t5/1.png", np.full((40, 56), 300, np.uint16), "goes up to 300; at most 255"),
    ],
)
def test_bad_files_are_named(folders, path, content, expected):
    if isinstance(content, bytes):
        (folders / path).write_bytes(content)
    elif path.endswith("npy"):
        np.save(folders / path, content, allow_pickle=True)
    else:
        Image.fromarray(content).save(folders / path)
    message = error_of(folders)
    assert f"/{path}" in message
    assert expected in message


def test_predictions_out_of_range_are_named(folders):
    Image.fromarray(np.full((40, 56), 13, np.uint8)).save(folders / "predictions/t6/1.png")
    message = error_of(folders, "--predictions", str(folders / "predictions"))
    assert message == "/predictions/t6/1.png goes up to 13; at most 12 is possible"


def test_non_finite_scores_are_named(folders):
    scores = make_maps("t5/10")[0]
    scores[20, 20] = np.inf
    np.save(folders / "scores/t5/10.npy", scores)
    with pytest.raises(InvalidScores, match=r"^t5/10: 1 of 2072 anomaly scores"):
        evaluate(parse_arguments(arguments(folders)))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--format", "tif"), "no tif file in /scores"),
        (("--scores", "nowhere"), "nowhere is no folder"),
        (("--ignore_classes", "sky"), "there is no class 'sky'; known: unlabeled, building"),
        (
            ("--label_offset", "0", "--anomaly_index", "20"),
            "the 3 images in /labels hold only one of normal and",
        ),
    ],
)
def test_bad_options_are_explained(folders, more, expected):
    assert expected in error_of(folders, *more)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--out", "missing/results.json"), "--out: the folder missing is missing"),
        (("--num_classes", "0"), "--num_classes: should be 1 to 255, got 0"),
        (("--label_offset", "-1"), "--label_offset: should be 0 to 254, got -1"),
        (("--anomaly_index", "255"), "--anomaly_index: should be 1 to 254, got 255"),
        (("--anomaly_index", "12"), "--anomaly_index: 12 is one of the 13 known classes"),
        (("--format", "tif"), "no tif file in "),
    ],
)
def test_errors_end_with_one_line_and_exit_code_2(folders, capsys, more, expected):
    assert main(arguments(folders, *more)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(f"error: {expected}")


def test_scores_concentrated_at_a_value_get_a_further_pass(folders, capsys):
    """Saturated ones: their ties are not seen at the first pass."""
    for name in IMAGES:
        scores = 1 - np.exp(-9 * np.abs(make_maps(name)[0])) * 0.7
        np.save(folders / "scores" / f"{name}.npy", np.where(scores > 0.999, 0.7, scores))
    assert main(arguments(folders, "--out", str(folders / "results.json"))) == 0
    assert "9/9" in capsys.readouterr().err
    results = json.loads((folders / "results.json").read_text())
    assert max(results["protocols"]["pooled"]["largest_error"].values()) < 0.01
