"""Several scores beside each other are what each gives alone."""

import numpy as np
import pytest
import torch

from metrics import AnomalyEvaluation
from metrics.report import main, markdown_run, markdown_scores, markdown_table, write_results


def empty(**options):
    return AnomalyEvaluation(3, 3, min_predicted_size=2, min_true_size=1, **options)


@pytest.fixture(scope="module")
def compared():
    rng = np.random.default_rng(0)
    comparison = empty(scores=["good", "bad"])
    alone = {"good": empty(), "bad": empty()}
    for index in range(3):
        label = rng.integers(0, 4, (20, 30)).astype(np.uint8)
        prediction = rng.integers(0, 3, label.shape)
        noise = rng.normal(size=label.shape)
        scores = {"bad": noise - (label == 3), "good": noise + (label == 3)}
        comparison.update(index, str(index), scores, prediction, label)
        for name, evaluation in alone.items():
            evaluation.update(index, str(index), scores[name], prediction, label)
    comparison.all_reduce()
    return comparison.results(), {name: one.results() for name, one in alone.items()}


def test_results_are_those_of_each_score_alone(compared):
    results, alone = compared
    assert results["score"] == "good"
    assert list(results["scores"]) == ["good", "bad"]
    assert {key: results[key] for key in alone["good"]} == alone["good"]
    assert "score" not in alone["good"]
    for name, found in results["scores"].items():
        assert found == {key: alone[name][key] for key in found}
        assert {"AUROC", "AUPR", "FPR95", "protocols"} <= found.keys()
    assert results["scores"]["good"]["AUROC"] > 60 > 40 > results["scores"]["bad"]["AUROC"]


def test_a_map_is_recomputed_from_its_parts():
    """Both ways give the same results, and the parts alone are put aside."""
    rng = np.random.default_rng(1)
    evaluations = [
        empty(scores=["sum", "noise"], map_of=lambda name, parts, size: parts[0] + parts[1])
        for _ in range(2)
    ]
    for index in range(3):
        label = rng.integers(0, 4, (20, 30)).astype(np.uint8)
        parts = [torch.from_numpy(rng.normal(size=shape)) for shape in ((20, 30), (1, 1))]
        maps = {"sum": sum(parts), "noise": rng.normal(size=label.shape)}
        for evaluation, kept in zip(evaluations, (None, {"sum": parts}), strict=True):
            evaluation.update(index, str(index), maps, label % 3, label, kept)
    whole, of_parts = evaluations
    assert of_parts._spool._groups[0]["parts of sum"][1].length == 8
    assert whole._spool.size < of_parts._spool.size  # a part here is as large as the map
    assert whole.results() == of_parts.results()


def test_the_table_has_one_row_per_score(compared):
    results, alone = compared
    head, _, *rows = markdown_scores(results).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[:4] == ["Score", "AUROC (per image)", "AUPR (per image)", "FPR95 (per image)"]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["good", "bad"]
    for row in cells:
        found = dict(zip(columns, row, strict=True))
        own = alone[row[0]]
        pooled = own["protocols"]["pooled"]["figures"]["AUPR"]
        open_set = own["protocols"]["open set"]["figures"]["open-mIoU"]
        assert float(found["AUROC (per image)"]) == pytest.approx(own["AUROC"], abs=0.0051)
        assert float(found["AUPR (pooled)"]) == pytest.approx(pooled, abs=0.0051)
        assert float(found["open-mIoU (open set)"]) == pytest.approx(100 * open_set, abs=0.0051)


def test_a_single_score_has_no_second_table(compared, tmp_path, capsys):
    results, alone = compared
    assert markdown_run(alone["good"]) == markdown_table(alone["good"])
    assert markdown_run(results) == f"{markdown_table(results)}\n{markdown_scores(results)}"
    write_results(tmp_path / "results.json", results)
    main([str(tmp_path / "results.json")])
    assert capsys.readouterr().out == markdown_run(results)
