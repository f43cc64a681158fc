"""dataset.look: the sheet of pictures and labels, and the table of pixel shares."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from dataset import bdd_anomaly, loaders, look
from dataset.description import IGNORE_INDEX, DatasetInfo
from dataset.registry import describe
from tests.dataset import trees

MakeTree = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting them takes longer than all that they would read."""
    monkeypatch.setattr(loaders, "WORKERS", 0)


def shares(printed: str) -> dict[str, list[str]]:
    """Row of the table -> its cells; the words of a row may hold spaces."""
    lines = printed.splitlines()
    splits = len(lines[0].split()) - 4  # after "% of the pixels"
    return {
        " ".join(words[:-splits]): words[-splits:]
        for words in (line.split() for line in lines)
        if len(words) > splits
    }


def run(root: Path, name: str, out: Path) -> int:
    return look.main(["--dataset", name, "--data_root", str(root), "--out", str(out)])


def test_shares_of_pixels_by_class_and_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_folder(tmp_path, train=4, validation=1, test=2)
    quarter = trees.label((0, 0, 0, 2))
    trees.save(tmp_path / "labels/train/town/0.png", quarter)
    assert run(tmp_path, "folder", tmp_path / "sheet.png") == 0
    rows = shares(capsys.readouterr().out)
    assert rows["images"] == ["4", "1", "2"]
    # train: three labels of four equal stripes 0, 1, 2, 255 and one of 0, 0, 0, 2
    assert rows["0 road"] == ["37.500", "25.000", "20.833"]
    assert rows["1 traffic sign"] == ["18.750", "25.000", "19.792"]
    assert rows["2 car"] == ["25.000", "25.000", "19.792"]
    assert rows["anomaly"] == ["-", "-", "19.792"]
    assert rows["ignored"] == ["18.750", "25.000", "19.792"]
    assert "unreadable" not in rows


def test_shares_of_every_split_add_up_to_100(
    make_tree: MakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(train=2, validation=1, test=2)
    assert run(root, "streethazards", tmp_path / "sheet.png") == 0
    rows = shares(capsys.readouterr().out)
    cells = [
        row for words, row in rows.items() if words[0].isdigit() or words in ("anomaly", "ignored")
    ]
    assert len(cells) == 15
    for column in range(3):
        total = sum(float(row[column].replace("-", "0")) for row in cells)
        assert total == pytest.approx(100, abs=0.01)
    labels = [
        np.array(Image.open(path))
        for path in (root / "StreetHazards/test/annotations").rglob("*.png")
    ]
    anomalous = 100 * np.mean([(label == 14).mean() for label in labels])
    assert float(rows["anomaly"][2]) == pytest.approx(anomalous, abs=0.001)


def tile(sheet: Image.Image, row: int, column: int, height: int) -> np.ndarray:
    """A picture or a label of the sheet."""
    left = look.MARGIN + column * (look.TILE_WIDTH + look.MARGIN)
    top = look.LINE + row * (height + look.LINE + look.MARGIN)
    return np.asarray(sheet)[top : top + height, left : left + look.TILE_WIDTH]


def test_the_sheet_shows_pictures_beside_labels_in_the_classes_colours(tmp_path: Path) -> None:
    trees.write_folder(tmp_path)
    out = tmp_path / "sheet.png"
    assert run(tmp_path, "folder", out) == 0
    sheet = Image.open(out)
    height = round(look.TILE_WIDTH * 64 / 96)
    assert sheet.width == 4 * (look.TILE_WIDTH + look.MARGIN) + look.MARGIN
    first = Image.fromarray(trees.noise(0)).resize((look.TILE_WIDTH, height))
    assert np.array_equal(tile(sheet, 0, 0, height), np.asarray(first))
    test_label = tile(sheet, 2, 1, height)  # stripes 0, 1, 2, ignored, and the anomaly twice
    middles = [test_label[height // 2, look.TILE_WIDTH * (2 * n + 1) // 10] for n in range(5)]
    expected = [(128, 64, 128), (220, 220, 0), (0, 0, 142), None, (60, 250, 240)]
    for pixel, colour in zip(middles, expected, strict=True):
        assert colour is None or tuple(pixel) == colour
    ignored = test_label[:, look.TILE_WIDTH * 6 // 10 + 4 : look.TILE_WIDTH * 8 // 10 - 4]
    assert {tuple(pixel) for pixel in ignored.reshape(-1, 3)} == {(40, 40, 40), (150, 150, 150)}


@pytest.mark.parametrize("name", ["streethazards", "bdd_anomaly"])
def test_every_entry_of_the_legend_has_its_colour_and_fits(name: str, tmp_path: Path) -> None:
    info = describe(name, tmp_path)
    legend = np.asarray(look._legend(info))
    rows = look.rows_of(info)
    lines = -(-len(rows) // look.LEGEND_COLUMNS)
    column = (legend.shape[1] - look.MARGIN) // look.LEGEND_COLUMNS
    font = ImageFont.load_default(look.TEXT)
    for number, row in enumerate(rows):
        y = look.MARGIN + number % lines * look.LINE + look.LINE // 2
        x = look.MARGIN + number // lines * column + look.LINE
        if row.words != "ignored":
            assert tuple(legend[y, x]) == tuple(info.palette[row.indices[0]])
        assert font.getlength(row.words) < column - 2 * look.LINE - 2 * look.MARGIN
    assert rows[-2].indices == tuple(range(info.anomaly_index, IGNORE_INDEX))


def test_sets_without_classes_show_normal_and_anomalous(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_road_anomaly(tmp_path)
    assert run(tmp_path, "road_anomaly", tmp_path / "sheet.png") == 0
    rows = shares(capsys.readouterr().out)
    assert (rows["normal"], rows["anomaly"], rows["ignored"]) == (["50.000"], ["50.000"], ["-"])


def test_a_missing_split_is_noted(
    make_tree: MakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(test=1)
    assert run(root, "streethazards", tmp_path / "sheet.png") == 0
    printed = capsys.readouterr().out
    assert printed.count("note: ") == 2
    assert "validation.odgt is missing" in printed
    assert run(tmp_path / "empty", "streethazards", tmp_path / "sheet.png") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/empty/StreetHazards/train/train")


def test_unreadable_labels_are_reported_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_folder(tmp_path)
    trees.save(tmp_path / "labels/train/town/0.png", trees.label((1, 2, 3)))  # shifted by one
    (tmp_path / "labels/train/town/1.png").unlink()
    out = tmp_path / "sheet.png"
    assert run(tmp_path, "folder", out) == 2
    output = capsys.readouterr()
    assert shares(output.out)["unreadable"] == ["2", "0", "0"]
    assert output.err.splitlines()[-1].startswith(
        f"error: 2 labels cannot be read, the first: {tmp_path}/labels/train/town/0.png holds the "
        "value 3"
    )
    assert out.exists()


def test_a_file_of_the_users_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_bdd100k(tmp_path)
    bdd_anomaly.write_lists(tmp_path)
    out = tmp_path / "sheet.png"
    trees.save(out, trees.noise(0))
    before = out.read_bytes()
    assert run(tmp_path, "bdd_anomaly", out) == 2
    assert f"error: {out} is there and is no sheet of this program" in capsys.readouterr().err
    assert out.read_bytes() == before
    out.unlink()
    assert run(tmp_path, "bdd_anomaly", out) == 0
    assert run(tmp_path, "bdd_anomaly", out) == 0


def test_a_long_name_is_shortened_on_the_left() -> None:
    strip = Image.new("RGB", (300, look.LINE), "white")
    look._write(strip, (0, 2), "images/" * 30 + "end.png", 200)
    ink = np.flatnonzero((np.asarray(strip) < 255).any((0, 2)))
    assert 150 < ink[-1] <= 200


def test_ignored_pixels_differ_from_every_class() -> None:
    info: DatasetInfo = describe("streethazards", Path())
    label = np.full((24, 24), IGNORE_INDEX, dtype=np.uint8)
    colours = {tuple(colour) for colour in look.colours_of(label, info).reshape(-1, 3)}
    assert len(colours) == 2
    assert not colours & {tuple(colour) for colour in info.palette[:14]}


@pytest.mark.parametrize(
    ("size", "tile"), [((1280, 720), (472, 266)), ((1, 1000), (1, 472)), ((2, 1), (472, 236))]
)
def test_tiles_cover_every_shape(size: tuple[int, int], tile: tuple[int, int]) -> None:
    assert look._tile_size(Image.new("L", size)) == tile


@pytest.mark.parametrize(
    ("out", "written"),
    [("look", "look.png"), ("v1.2", "v1.2.png"), ("a.PNG", "a.PNG"), (".", "look_folder.png")],
)
def test_a_sheet_is_a_png_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, written: str
) -> None:
    trees.write_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "data", "folder", Path(out)) == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [written]
