"""The examples in the docstrings of the scores are run."""

import doctest
import importlib
import pkgutil

import pytest

import modules.scores
from modules.scores import formulas
from modules.scores.registry import SCORES

MODULES = [
    f"modules.scores.{module.name}" for module in pkgutil.iter_modules(modules.scores.__path__)
]
FITTED = [f"modules.scores.{name}" for name, score in SCORES.items() if score.fitted]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_the_shown_output(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_formula_has_an_example():
    for test in doctest.DocTestFinder(exclude_empty=False).find(formulas):
        assert test.examples or test.name == formulas.__name__, test.name


@pytest.mark.parametrize("name", FITTED)
def test_every_fitted_score_has_an_example(name):
    found = doctest.DocTestFinder().find(importlib.import_module(name))
    assert any(test.examples for test in found)
