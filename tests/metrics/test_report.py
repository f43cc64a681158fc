"""Tables and results.json of one run and of several."""

import json
import os

import numpy as np
import pytest

from metrics import AnomalyEvaluation
from metrics.report import (
    UnreadableResults,
    combine_runs,
    main,
    markdown_runs,
    markdown_table,
    read_results,
    write_results,
)


def run(seed, predicted=True):
    evaluation = AnomalyEvaluation(3, 3, min_predicted_size=2, min_true_size=1, ignore_classes=[2])
    rng = np.random.default_rng(seed)
    for index in range(3):
        label = rng.integers(0, 4, (20, 30)).astype(np.uint8)
        scores = rng.normal(size=label.shape) + (label == 3)
        prediction = rng.integers(0, 2, label.shape) if predicted else None
        evaluation.update(index, f"image {index}", scores, prediction, label)
    evaluation.update(3, "flat", np.ones((4, 5)), None, np.zeros((4, 5), np.uint8))
    return evaluation.results()


def rows(table):
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines]


def test_the_table_has_every_metric_of_the_results():
    results = run(0)
    found = {row[:2]: row[2:] for row in rows(markdown_table(results))[2:]}
    figures = {
        (name, figure): value * (1 if protocol["unit"] == "percent" else 100)
        for name, protocol in results["protocols"].items()
        for figure, value in protocol["figures"].items()
        if value is not None
    }
    assert {key for key, cells in found.items() if cells[0]} == set(figures)
    for key, value in figures.items():
        assert float(found[key][0]) == pytest.approx(value, abs=0.0051)
    errors = results["protocols"]["per image"]["standard_error"]
    assert float(found["per image", "AUPR"][1]) == pytest.approx(errors["AUPR"], abs=0.0051)
    chance = results["protocols"]["pooled"]["chance"]["AUPR"]
    assert float(found["pooled", "AUPR"][2]) == pytest.approx(chance, abs=0.0051)


def test_the_table_says_what_was_measured():
    table = markdown_table(run(0))
    assert "4 images, 3 scored, 1 skipped" in table
    assert "without the classes 2." in table
    assert "CONSTANT score maps: flat." in table
    for rule in ("mean over the images", "as one set", "SegmentMeIfYouCan", "over the 3 classes"):
        assert rule in table


def test_missing_metrics_are_empty_cells_and_nulls(tmp_path):
    results = run(0, predicted=False)
    found = {row[:2]: row[2] for row in rows(markdown_table(results))}
    assert found["segmentation", "Mean IoU"] == found["open set", "open-mIoU"] == ""
    write_results(tmp_path / "results.json", results)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["Mean IoU"] is None
    assert written["Class IoU"] == {"0": None, "1": None, "2": None}
    assert written["AUROC"] == results["AUROC"]


def test_runs_are_combined():
    runs = [run(seed) for seed in range(4)] + [run(9, predicted=False)]
    auroc = [one["AUROC"] for one in runs]
    combined = combine_runs(runs)
    assert combined["per image"]["AUROC"] == {
        "mean": pytest.approx(np.mean(auroc)),
        "standard deviation": pytest.approx(np.std(auroc, ddof=1)),
        "runs": 5,
    }
    assert combined["segmentation"]["Mean IoU"]["runs"] == 4
    found = {row[:2]: row[2:] for row in rows(markdown_runs(runs))}
    assert float(found["per image", "AUROC"][0]) == pytest.approx(np.mean(auroc), abs=0.0051)
    assert float(found["per image", "AUROC"][1]) == pytest.approx(np.std(auroc, ddof=1), abs=0.0051)
    assert rows(markdown_runs(runs))[0][3] == "Standard deviation"
    assert "5 runs; the spread is the sample standard deviation over runs." in markdown_runs(runs)
    assert found["segmentation", "Mean IoU"][2] == "4"
    mean_iou = np.mean([one["Mean IoU"] for one in runs[:4]])
    assert float(found["segmentation", "Mean IoU"][0]) == pytest.approx(100 * mean_iou, abs=0.0051)


def test_the_command_accepts_one_file_or_several(tmp_path, capsys):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for seed, path in enumerate(paths):
        write_results(path, run(seed))
    assert main([str(paths[0])]) == 0
    assert capsys.readouterr().out == markdown_table(run(0))
    assert main([str(path) for path in paths]) == 0
    assert capsys.readouterr().out == markdown_runs([run(0), run(1)])


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_file_that_is_not_a_results_json_is_named(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UnreadableResults, match=r"results\.json is not a results\.json"):
        read_results(path)


@pytest.mark.parametrize(
    "content",
    [
        '{"protocols": {}}',
        '{"protocols": {"pooled": {"figures": {}}}}',
        '{"protocols": {"pooled": 1}, "images": 1}',
        "[" * 100_000,
    ],
)
def test_a_foreign_file_ends_with_one_line_and_exit_code_2(tmp_path, capsys, content):
    (tmp_path / "foreign.json").write_text(content)
    assert main([str(tmp_path / "foreign.json")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "foreign.json is not a results.json of this code; run a test" in err


def test_a_byte_order_mark_is_no_part_of_the_results(tmp_path):
    write_results(tmp_path / "a.json", run(0))
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text(), encoding="utf-8-sig")
    assert read_results(tmp_path / "a.json")["images"] == run(0)["images"]


def test_a_pipe_is_not_accepted_as_a_results_file(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UnreadableResults):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda results: results | {"images": 7}, "their number of images, 4 and 7"),
        (
            lambda results: results | {"measured_at": "56x80, the size of the network's input"},
            "their size, each image's size of the label and 56x80, the size of the network's input",
        ),
        (lambda results: results | {"score": "msp"}, "their anomaly score, None and msp"),
        (
            lambda results: results | {"protocols": {"pooled": results["protocols"]["pooled"]}},
            "their protocols",
        ),
        (
            lambda results: (
                results["protocols"]["pooled"].update(ignored_classes=["other"]) or results
            ),
            "the ignored classes",
        ),
    ],
)
def test_runs_that_were_measured_differently_are_not_combined(tmp_path, capsys, change, difference):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    write_results(paths[0], run(0))
    write_results(paths[1], change(run(1)))
    assert main([str(path) for path in paths]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {paths[0]} and {paths[1]} differ in {difference};")


def test_a_missing_file_ends_with_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = (
        "error: there is no results.json: a test writes LOGDIR/DATASET/NAME/results.json, "
        "metrics.evaluate its --out"
    )
    assert main(["results.json"]) == 2
    assert capsys.readouterr().err == f"{line}\n"
    write_results(tmp_path / "logs/streethazards/pans/results.json", run(0))
    assert main(["results.json"]) == 2
    assert capsys.readouterr().err == f"{line}; there are logs/streethazards/pans/results.json\n"


def test_a_folder_means_the_results_in_it(tmp_path, capsys):
    write_results(tmp_path / "results.json", run(0))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == markdown_table(run(0))


def test_one_run_does_not_count_twice(tmp_path, capsys):
    first, second, third = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    write_results(first, run(0) | {"environment": {"host": "one"}})
    write_results(second, run(1))
    write_results(third, run(0) | {"environment": {"host": "two"}})
    (tmp_path / "link.json").symlink_to(first)
    twice = [str(first), str(second), f"{tmp_path}/../{tmp_path.name}/a.json"]
    for paths, message in (
        (twice, f"{twice[2]} is given twice"),
        ([first, second, tmp_path / "link.json"], "link.json is given twice"),
        ([first, second, third], f"{first} and {third} hold the same results"),
    ):
        assert main([str(path) for path in paths]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert f"{message}; name every run once" in captured.err
