"""The examples in the docstrings of the metrics are run."""

import doctest
import importlib
import pkgutil

import pytest

import metrics

MODULES = [f"metrics.{module.name}" for module in pkgutil.iter_modules(metrics.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_the_shown_output(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, raise_on_error=False).failed == 0


def test_every_public_function_and_state_has_an_example():
    """Classes that only carry results need none."""
    finder = doctest.DocTestFinder(recurse=False)
    carriers = {"AnomalyMetrics", "PooledMetrics", "ScoreHistogram", "ThresholdCurve"}
    errors = {"InvalidScores"}
    for name in sorted(set(metrics.__all__) - carriers - errors):
        (example,) = finder.find(getattr(metrics, name), name)
        assert example.examples, name
