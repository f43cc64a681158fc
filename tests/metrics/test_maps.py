"""Other people's score maps, labels and predictions: read to the last bit or refused in a line."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from metrics.evaluate import evaluate, main, parse_arguments
from metrics.maps import match_files, read_scores
from tests.dataset.trees import png, tiff
from utils.errors import PansError
from utils.reading import Unreadable

h5py = pytest.importorskip("h5py", reason="reading HDF5 is optional: pip install -e .[hdf5]")

TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
FLOATS = ["f2", "f4", "f8"]


def numbers(kind):
    """(6, 9) numbers from the least to the greatest of a type, neighbours at both ends."""
    if kind in FLOATS:
        one = np.ones(27, kind)
        steps = np.arange(27).astype(kind) * np.finfo(kind).eps
        return np.concatenate([-one - steps, one + steps]).reshape(6, 9)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    values = [low + step for step in range(27)] + [high - step for step in range(27)]
    return np.array(values, dtype=kind).reshape(6, 9)


def assert_exact(path, array):
    found = read_scores(path)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", TYPES)
def test_arrays_are_stored_losslessly(tmp_path, kind, order):
    array = numbers(kind)
    there = array.astype(array.dtype.newbyteorder(order))
    np.save(tmp_path / "a.npy", there)
    np.savez_compressed(tmp_path / "a.npz", scores=there)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("value", data=there, compression=9)
        file["other"] = 1
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["any name"] = there
    np.save(tmp_path / "columns.npy", np.asfortranarray(there))
    for name in ("a.npy", "a.npz", "a.hdf5", "a.h5", "columns.npy"):
        assert_exact(tmp_path / name, array)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", TYPES)
def test_tiffs_keep_every_number(tmp_path, kind, order, photometric):
    array = numbers(kind)
    (tmp_path / "a.tif").write_bytes(tiff(array, order=order, photometric=photometric))
    assert_exact(tmp_path / "a.tif", array)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_tiffs_of_pillow_keep_every_number(tmp_path, kind, compression):
    array = np.tile(numbers(kind), (30, 40))
    Image.fromarray(array).save(tmp_path / "a.tiff", compression=compression)
    assert_exact(tmp_path / "a.tiff", array)


def test_a_deflated_tiff_in_several_strips(tmp_path):
    array = numbers("f8")
    halves = [zlib.compress(half.tobytes()) for half in (array[:3], array[3:])]
    head = b"II*\0" + struct.pack("<I", 8)
    tags = {256: 9, 257: 6, 258: 64, 259: 8, 262: 1, 277: 1, 278: 3, 339: 3}
    size = 10 + 12 * (len(tags) + 2) + 4
    where = [size + 16, size + 16 + len(halves[0])]
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    entries[273] = struct.pack("<HHII", 273, 4, 2, size)
    entries[279] = struct.pack("<HHII", 279, 4, 2, size + 8)
    table = b"".join(entries[tag] for tag in sorted(entries))
    counts = struct.pack("<4I", *where, *map(len, halves))
    data = head + struct.pack("<H", len(entries)) + table + bytes(4) + counts + b"".join(halves)
    (tmp_path / "a.tif").write_bytes(data)
    assert_exact(tmp_path / "a.tif", array)


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_pngs_keep_every_number(tmp_path, kind):
    Image.fromarray(numbers(kind)).save(tmp_path / "a.png")
    assert_exact(tmp_path / "a.png", numbers(kind))


def save_long_double(path):
    np.save(path, np.ones((4, 4), np.longdouble))


def save_two_arrays(path):
    np.savez(path, a=np.ones((4, 4)), b=np.ones((4, 4)))


def save_named_npy(path):
    with path.open("wb") as file:
        np.savez(file, a=np.ones((4, 4)))


def save_header(header):
    def save(path):
        body = header.encode() + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(body)) + body)

    return save


def save_group(path):
    with h5py.File(path, "w") as file:
        file.create_group("value")


def save_text_in_hdf5(path):
    with h5py.File(path, "w") as file:
        file["value"] = "no scores"


def save_pages(path):
    pages = [Image.fromarray(numbers("f4"))] * 2
    pages[0].save(path, save_all=True, append_images=pages[1:])


def content(data):
    return lambda path: path.write_bytes(data)


def save_two_arrays_in_a_row(path):
    with path.open("wb") as file:
        np.save(file, numbers("f4"))
        np.save(file, numbers("f4"))


@pytest.mark.parametrize(
    ("name", "save", "expected"),
    [
        ("a.npy", save_two_arrays_in_a_row, "holds more than one array; keep the scores alone"),
        ("a.npy", save_long_double, "more than 8 bytes per number; use float64"),
        ("a.npy", save_named_npy, "is an NPZ archive, not an NPY array; rename it to .npz"),
        ("a.npy", save_header("{'descr': '<f8'"), "can't be read (it is an NPY array; "),
        (
            "a.npy",
            save_header("{'descr':'<f8','fortran_order':False,'shape':(9000000,9000000)}"),
            "can't be read (it is an NPY array; ",
        ),
        ("a.npy", content(b""), "can't be read (it is empty"),
        ("a.npy", os.mkfifo, "it is a pipe, a socket or a device"),
        ("a.npz", save_two_arrays, "holds 2 arrays (a.npy, b.npy); keep the scores alone"),
        ("a.npz", content(b"PK\3\4corrupt"), "can't be read (it is a ZIP or NPZ archive; "),
        ("a.hdf5", save_group, "holds value; name the array of the scores 'value'"),
        ("a.hdf5", save_text_in_hdf5, "holds object of shape ()"),
        ("a.hdf5", content(b"\x89HDF\r\n\x1a\ncorrupt"), "can't be read (it is an HDF5 file; "),
        ("a.tif", save_pages, "holds several pages; keep the scores alone"),
        ("a.tif", content(tiff(numbers("f4"))[:-1]), "is truncated: 215 of 216 bytes"),
        (
            "a.tif",
            content(tiff(np.ones((4, 4, 3), "f4"))),
            "holds 3 numbers per pixel; expected one",
        ),
        ("a.tif", content(tiff(numbers("f8"), more={317: 3}.items())), "predictor 3"),
        ("a.tif", content(tiff(numbers("u4"), more={259: 5}.items())), "compression 5"),
        ("a.tif", content(tiff(numbers("u1"), photometric=3)), "interpretation 3"),  # a palette's
        ("a.tif", content(b"II*\0corrupt"), "is a damaged TIFF, without a size"),
        ("a.png", content(png(4, 0)), "has mode L;4; expected grey of 8 or 16 bits"),
        ("a.png", content(png(8, 2)), "has mode RGB; expected grey of 8 or 16 bits"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(tmp_path, name, save, expected):
    save(tmp_path / name)
    with pytest.raises(Unreadable) as caught:
        read_scores(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} ")
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_hdf5_without_its_package_says_so(tmp_path, monkeypatch):
    save_group(tmp_path / "a.hdf5")
    monkeypatch.setattr("metrics.maps.find_spec", lambda name: None)
    with pytest.raises(Unreadable, match=r"a\.hdf5 is read by the optional package h5py"):
        read_scores(tmp_path / "a.hdf5")


# Matching


LABEL = np.repeat(np.array([0, 1, 255], np.uint8), 16).reshape(3, 16).repeat(4, 0)
SCORES = np.linspace(0, 1, 192, dtype=np.float32).reshape(12, 16)


def tree(root, scores=(), labels=(), label=LABEL):
    for name in scores:
        (root / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / "s" / name, SCORES)
    for name in labels:
        (root / "l" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(root / "l" / name)


@pytest.mark.parametrize(
    ("score", "label", "name"),
    [
        ("validation0000.npy", "validation0000_labels_semantic.png", "validation0000"),
        ("validation0000.npy", "labels_masks/validation0000_labels_semantic.png", "validation0000"),
        ("0000_04_Weg_8_000000_000030.npy", "0000_04_Weg_8_000000_000030_labels.png", None),
        (
            "train/04_Weg_8/04_Weg_8_000000_000030_leftImg8bit.npy",
            "0000_04_Weg_8_000000_000030_labels.png",
            "04_Weg_8_000000_000030",
        ),
        ("frames/cow.npy", "frames/cow.labels/labels_semantic.png", "frames/cow"),
        ("cow.npy", "frames/cow.labels/labels_semantic.png", "cow"),
        ("b.npy", "b_train_id.png", "b"),
        ("t5/1.npy", "t5/1.png", "t5/1"),
        ("t5/1_labels.npy", "t5/1_labels.png", "t5/1_labels"),
    ],
)
def test_official_names_are_matched(tmp_path, score, label, name):
    tree(tmp_path, [score], [label])
    (entry,) = match_files(tmp_path / "s", tmp_path / "l", None, None)
    assert (entry.scores, entry.label) == (tmp_path / "s" / score, tmp_path / "l" / label)
    assert entry.name == name or name is None


def test_a_folder_of_segment_me_if_you_can(tmp_path):
    names = [f"validation000{number}" for number in range(3)]
    tree(tmp_path, labels=[f"labels_masks/{name}_labels_semantic.png" for name in names])
    (tmp_path / "l/images").mkdir()
    for name in (*names, "airplane0001"):
        picture = np.zeros((12, 16, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"l/images/{name}.png")
        Image.fromarray(picture).save(tmp_path / f"l/labels_masks/{name}_labels_semantic_color.png")
    (tmp_path / "s").mkdir()
    for name in (*names, "airplane0001"):
        with h5py.File(tmp_path / f"s/{name}.hdf5", "w") as file:
            file.create_dataset("value", data=SCORES.astype(np.float16), compression=9)
    words = ["--scores", str(tmp_path / "s"), "--labels", str(tmp_path / "l")]
    results = evaluate(parse_arguments([*words, "--dataset", "road_anomaly_21"]))
    assert (results["images"], results["AUROC"], results["FPR95"]) == (3, 100.0, 0.0)
    with pytest.raises(PansError, match=r"1 score maps without a label in .*: airplane0001"):
        evaluate(parse_arguments([*words, "--dataset", "road_anomaly"]))


def test_the_obstacle_track_counts_as_its_benchmark_does(tmp_path):
    names = [f"validation_{number}" for number in (1, 2, 19, 20, 21, 29, 30)]
    tree(
        tmp_path,
        [f"{name}.npy" for name in names],
        [f"{name}_labels_semantic.png" for name in names],
    )
    words = ["--scores", str(tmp_path / "s"), "--labels", str(tmp_path / "l")]
    options = parse_arguments([*words, "--dataset", "road_obstacle_21"])
    assert evaluate(options)["images"] == 4  # without 19, 21 and 29
    assert (options.min_predicted_size, options.min_true_size) == (50, 10)


def test_road_anomaly_marks_anomalies_by_2(tmp_path):
    tree(tmp_path, ["cow.npy"], ["frames/cow.labels/labels_semantic.png"], np.minimum(LABEL, 1) * 2)
    words = ["--scores", str(tmp_path / "s"), "--labels", str(tmp_path / "l")]
    assert evaluate(parse_arguments([*words, "--dataset", "road_anomaly"]))["AUROC"] == 100.0


def test_folders_that_differ_are_not_matched(tmp_path):
    tree(tmp_path, ["t5/1.npy"], ["t6/1.png"])
    with pytest.raises(PansError, match=r"1 score maps without a label in .*: t5/1; 1 labels"):
        match_files(tmp_path / "s", tmp_path / "l", None, None)


def test_two_files_of_one_name_are_refused(tmp_path):
    tree(tmp_path, ["a.npy"], ["a.png"])
    for name in ("a.tif", "a.tiff"):
        (tmp_path / "s" / name).write_bytes(tiff(SCORES))
    with pytest.raises(PansError, match=r"several kinds, npy and tif; choose by --format"):
        match_files(tmp_path / "s", tmp_path / "l", None, None)
    with pytest.raises(PansError, match=r"s/a\.tif and .*s/a\.tiff share a name; keep one"):
        match_files(tmp_path / "s", tmp_path / "l", None, "tif")


def test_the_format_is_detected_and_hidden_files_are_skipped(tmp_path):
    tree(tmp_path, labels=["a.png", "._a.png", "__MACOSX/b.png", ".thumbs/c.png"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.tif").write_bytes(tiff(SCORES))
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/._a.npy").write_bytes(b"")
    (entry,) = match_files(tmp_path / "s", tmp_path / "l", None, None)
    assert entry.scores == tmp_path / "s/a.tif"


# Labels and predictions


def results_of(root, *more):
    words = ["--scores", str(root / "s"), "--labels", str(root / "l"), "--label_offset", "0"]
    return evaluate(parse_arguments([*words, "--num_classes", "1", "--anomaly_index", "1", *more]))


def test_255_is_ignored_whatever_the_offset(tmp_path):
    tree(
        tmp_path,
        ["a.npy"],
        ["a.png"],
        np.select([LABEL == 0, LABEL == 1], [1, 14], 255).astype("u1"),
    )
    words = ["--scores", str(tmp_path / "s"), "--labels", str(tmp_path / "l")]
    np.save(tmp_path / "s/a.npy", np.where(LABEL == 1, 2.0, np.where(LABEL == 0, 0.0, 1.0)))
    assert evaluate(parse_arguments(words))["AUROC"] == 100.0


@pytest.mark.parametrize(
    ("base", "kind"),
    [(2**40, "i8"), (2**60, "i8"), (2**63 - 2, "i8"), (2**31, "u4"), (1, "f8"), (-(2**63), "i8")],
)
def test_neighbouring_scores_of_any_type_are_distinguished(tmp_path, base, kind):
    """Anomalies score one step higher: an AUROC of 100, where float32 or float64 would give 50."""
    tree(tmp_path, ["a.npy"], ["a.png"])
    scores = np.full(LABEL.shape, base, kind)
    step = np.finfo(kind).eps if kind == "f8" else 1
    scores[LABEL == 1] += np.asarray(step, kind)
    np.save(tmp_path / "s/a.npy", scores)
    results = results_of(tmp_path)
    assert results["AUROC"] == 100.0
    assert results["protocols"]["pooled"]["figures"]["AUROC"] == 100.0
    assert results["protocols"]["pooled"]["figures"]["AUPR"] == 100.0


@pytest.mark.parametrize("exif", [3, 6])
def test_labels_are_turned_as_pictures_are(tmp_path, exif):
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[exif]
    tree(tmp_path, ["a.npy"], ["a.png"])
    told = Image.Exif()
    told[0x0112] = exif
    Image.fromarray(LABEL).transpose(turn).save(tmp_path / "l/a.png", exif=told)
    assert results_of(tmp_path)["AUROC"] == 100.0


@pytest.mark.parametrize(
    ("data", "mode"), [(png(4, 0, (16, 12)), "L;4"), (png(1, 0, (16, 12)), "1")]
)
def test_labels_of_few_bits_are_refused(tmp_path, data, mode):
    tree(tmp_path, ["a.npy"], ["a.png"])
    (tmp_path / "l/a.png").write_bytes(data)
    with pytest.raises(Unreadable, match=f"has mode {mode}; expected an 8-bit grey label map"):
        results_of(tmp_path)


def test_palette_pngs_are_predictions_but_no_labels(tmp_path):
    tree(tmp_path, ["a.npy"], ["a.png"])
    (tmp_path / "p").mkdir()
    classes = Image.fromarray(np.zeros((12, 16), np.uint8), mode="P")
    classes.putpalette([200, 100, 50] * 256)
    classes.save(tmp_path / "p/a.png")
    assert results_of(tmp_path, "--predictions", str(tmp_path / "p"))["Mean IoU"] == 1.0
    classes.save(tmp_path / "l/a.png")
    with pytest.raises(Unreadable, match=r"has mode P; .*np\.asarray\(Image\.open\(FILE\)\)"):
        results_of(tmp_path)


def test_images_with_one_kind_of_pixel_have_only_pooled_metrics(tmp_path, capsys):
    tree(tmp_path, ["a.npy", "b.npy"], ["a.png", "b.png"])
    for name, value in (("a", 0), ("b", 1)):
        Image.fromarray(np.full((12, 16), value, np.uint8)).save(tmp_path / f"l/{name}.png")
        np.save(tmp_path / f"s/{name}.npy", SCORES + value)
    results = results_of(tmp_path)
    assert results["AUROC"] is None
    assert results["images_scored"] == 0
    assert results["protocols"]["pooled"]["figures"]["AUROC"] == 100 * (1 - 0.5 / 192**2)
    assert "no image holds both kinds of pixel" in results["protocols"]["per image"]["rule"]
    words = [
        "--scores",
        str(tmp_path / "s"),
        "--labels",
        str(tmp_path / "l"),
        "--label_offset",
        "0",
    ]
    assert main([*words, "--num_classes", "1", "--anomaly_index", "1"]) == 0
    assert "| per image | AUROC |  |" in capsys.readouterr().out
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(tmp_path / "l/b.png")
    with pytest.raises(PansError, match="hold only one of normal and anomalous pixels"):
        results_of(tmp_path)


def test_out_must_not_be_an_input(tmp_path):
    tree(tmp_path, ["a.npy"], ["a.png"])
    with pytest.raises(PansError, match=r"--out: .*a\.npy is one of the files to read"):
        results_of(tmp_path, "--out", str(tmp_path / "s/../s/a.npy"))
