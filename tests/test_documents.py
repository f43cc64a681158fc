"""Every score and every data set has its row in the docs, and only those."""

import re
from pathlib import Path

import pytest

from dataset.registry import DATASETS
from modules.scores.registry import SCORES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [("scores.md", "| `--score` |", SCORES), ("data.md", "| `--dataset` |", DATASETS)],
)
def test_every_name_has_its_row(page, heading, names):
    text = (DOCS / page).read_text()
    table = text[text.index(heading) :].split("\n\n")[0].splitlines()[2:]
    rows = [re.fullmatch(r"\| `(\w+)` \|.*\|", line) for line in table]
    assert [row.group(1) for row in rows if row] == list(names)
    assert len(table) == len(names)


@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.fitted])
def test_scores_that_are_fitted_say_so(name):
    text = (DOCS / "scores.md").read_text()
    assert re.search(rf"^\| `{name}` \|.*\| training images \|$", text, re.MULTILINE)
