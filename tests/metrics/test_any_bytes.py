"""Whatever the bytes: the readers of other people's files give what is there or one line."""

import io
import json
import os
import struct
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ablate import expand, read_grid
from metrics import AnomalyEvaluation
from metrics.evaluate import parse_arguments, read_maps
from metrics.maps import Entry, read_scores
from metrics.report import main as report
from metrics.report import write_results
from tests.dataset.trees import tiff
from utils.errors import PansError
from utils.reading import Unreadable

RUNS = int(os.environ.get("FUZZ_RUNS", "100"))
ANYTHING = settings(
    max_examples=RUNS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCORES = np.linspace(-1, 1, 96).reshape(8, 12)


def written(save):
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def saved_picture(array, form, **how):
    return written(lambda file: Image.fromarray(array).save(file, format=form, **how))


def saved_hdf5(file):
    with h5py.File(file, "w") as there:
        there["value"] = SCORES


BYTES = (SCORES * 100 + 100).astype(np.uint8)
WHOLE = {
    "npy": [written(lambda file: np.save(file, SCORES))],
    "npz": [
        written(lambda file: np.savez(file, a=SCORES)),
        written(lambda file: np.savez_compressed(file, a=SCORES)),
    ],
    "tif": [
        tiff(SCORES),
        tiff(BYTES),
        tiff(SCORES.astype(np.int32), order=">"),
        saved_picture(BYTES, "TIFF", compression="tiff_lzw"),
        saved_picture(SCORES.astype(np.float32), "TIFF", compression="tiff_adobe_deflate"),
    ],
    "png": [saved_picture(BYTES, "PNG"), saved_picture(BYTES.astype(np.uint16) * 99, "PNG")],
    "hdf5": [written(saved_hdf5)],
}


@st.composite
def damaged(draw, kinds):
    """A whole file with some bytes changed, cut out or put in, or cut off; or any bytes."""
    data = bytearray(draw(st.sampled_from(kinds)))
    for _ in range(draw(st.integers(1, 3))):
        # Half of all changes go to the head, where the structure is.
        place = draw(st.integers(0, min(160, len(data))) | st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 6))] = draw(st.binary(max_size=6))
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


def one_line(error, *paths):
    assert str(error).startswith(tuple(f"{path} " for path in paths))
    assert str(error).isprintable()


@pytest.mark.parametrize("suffix", ["npy", "npz", "tif", "png"])
@ANYTHING
@given(data=st.data())
def test_any_score_map_is_read_or_refused(tmp_path, suffix, data):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data.draw(damaged(WHOLE[suffix]) | st.binary()))
    try:
        found = read_scores(path)
    except Unreadable as error:
        one_line(error, path)
    else:
        assert found.ndim == 2
        assert found.size > 0
        assert found.dtype.kind in "buif"
        assert found.dtype.itemsize <= 8


# The C library of HDF5 itself crashes on some files: changes keep to what it reads as numbers.
@settings(ANYTHING, max_examples=min(RUNS, 100))
@given(size=st.integers(0, len(WHOLE["hdf5"][0])))
def test_any_cut_of_an_hdf5_file_is_read_or_refused(tmp_path, size):
    path = tmp_path / "a.hdf5"
    path.write_bytes(WHOLE["hdf5"][0][:size])
    try:
        np.testing.assert_array_equal(read_scores(path), SCORES)
    except Unreadable as error:
        one_line(error, path)


@ANYTHING
@given(label=damaged(WHOLE["png"]), prediction=damaged(WHOLE["png"]))
def test_any_label_and_prediction_are_read_or_refused(tmp_path, label, prediction):
    entry = Entry("a", *(tmp_path / name for name in ("a.npy", "label.png", "prediction.png")))
    np.save(entry.scores, SCORES)
    entry.label.write_bytes(label)
    entry.prediction.write_bytes(prediction)
    options = parse_arguments(["--scores", "s", "--labels", "l", "--num_classes", "200"])
    try:
        maps = read_maps(entry, options)
    except Unreadable as error:
        one_line(error, entry.label, entry.prediction)
    else:
        assert [one.shape for one in maps] == [(8, 12)] * 3


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text()
    | st.integers()
    | st.sampled_from([10**400, "\ud800", -0.0, 1e300, "percent", "fraction"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    evaluation = AnomalyEvaluation(2, 2)
    label = np.repeat([[0, 2]], 8, 0).repeat(6, 1).astype(np.uint8)
    evaluation.update(0, "a", SCORES.astype(np.float32), np.zeros_like(label), label)
    found = evaluation.results()
    path = tmp_path_factory.mktemp("results") / "results.json"
    write_results(path, found | {"scores": {"one": found, "two": found}})
    return path.read_text()


@ANYTHING
@given(data=st.data())
def test_any_results_file_is_shown_or_refused(tmp_path, capsys, results, data):
    found = json.loads(results)
    for _ in range(data.draw(st.integers(1, 2))):
        place = found
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(sorted(keys)))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
                break
            place = inner
        if data.draw(st.booleans()) and isinstance(place, dict) and len(place) > 1:
            del place[key]
        else:
            place[key] = data.draw(JSON)
    path, whole = tmp_path / "a.json", tmp_path / "whole.json"
    path.write_text(json.dumps(found))
    whole.write_text(results)
    for paths in ([path], [path, whole], [whole, path]):
        code = report([str(one) for one in paths])
        out, err = capsys.readouterr()
        assert (code, err.count("\n"), bool(out)) in ((0, 0, True), (2, 1, False))


VALUES = st.recursive(
    st.booleans()
    | st.floats()
    | st.integers(-(2**65), 2**65)
    | st.text(max_size=5)
    | st.sampled_from(["resnet50", "msp", "cosine", 0.007, 16, "1979-05-27"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
NAMES = st.text(max_size=4) | st.sampled_from(
    ["classifier", "lr", "score", "backbone", "epochs", "ignore_classes", "data_root", "predict"]
)


def as_toml(value):
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        value
        if value == "1979-05-27"
        else json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
    )


@st.composite
def grids(draw):
    lines = []
    if draw(st.booleans()):
        lines.append(f"seeds = {as_toml(draw(VALUES))}")
    for table in ("flags", "grid"):
        lines.append(f"[{table}]")
        for name, value in draw(st.dictionaries(NAMES, VALUES, max_size=3)).items():
            lines.append(f"{json.dumps(name)} = {as_toml(value)}")
    if draw(st.booleans()):
        lines.append("[[published]]")
        for name in draw(st.sets(st.sampled_from(["name", "source", "cell", "figures"]))):
            lines.append(f"{name} = {as_toml(draw(VALUES))}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@ANYTHING
@given(data=grids() | st.binary() | st.sampled_from([b"a = " + b"[" * 100_000]))
def test_any_grid_is_expanded_or_refused(tmp_path, data):
    path = tmp_path / "grid.toml"
    path.write_bytes(data)
    try:
        cells = expand(read_grid(path), {"ablate": str(path)})
    except PansError as error:
        one_line(error, f"{path}:", f"--ablate {path}")
    else:
        assert cells
        assert any(cell.runs for cell in cells)


def test_damaged_pixels_of_a_png_are_detected(tmp_path):
    """Pillow looks at no checksum of its pixels, but at that of their compression."""
    whole = saved_picture(BYTES, "PNG")
    start = whole.index(b"IDAT") - 4
    length = struct.unpack(">I", whole[start : start + 4])[0]
    pixels = bytearray(zlib.decompress(whole[start + 8 : start + 8 + length]))
    stored = zlib.compress(bytes(pixels), level=0)
    for place in (20, len(stored) // 2, len(stored) - 5):
        changed = bytearray(stored)
        changed[place] ^= 1
        chunk = struct.pack(">I", len(changed)) + b"IDAT" + changed
        chunk += zlib.crc32(b"IDAT" + changed).to_bytes(4)
        (tmp_path / "a.png").write_bytes(whole[:start] + chunk + whole[start + length + 12 :])
        with pytest.raises(Unreadable, match=r"a\.png can"):
            read_scores(tmp_path / "a.png")
