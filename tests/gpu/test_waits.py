"""How often the host waits for a GPU that is not there, in a report, a validation and a test."""

import collections
import itertools

import pytest

from tests.gpu.pretend_gpu import SCORES, PretendGpu, lines


def waits_an_image(monkeypatch, gpu, evaluator):
    """From one image to the next, the most: {(what, file:line:function): times}."""
    marks = []

    def marking(items, name):
        for item in items:
            marks.append(gpu.waits.copy())
            yield item

    monkeypatch.setattr(evaluator, "_progress", marking)
    return lambda: max(
        (after - before for before, after in itertools.pairwise(marks)),
        key=collections.Counter.total,
    )


def test_a_report_waits_once(trainer):
    with PretendGpu() as gpu:
        trained = trainer()
        trained._prepare_training()
        trained.model.train()
        trained.train_step(iter(trained.loader))
        gpu.clear()
        report = trained._training_report(1.0)
        assert gpu.waits.total() == 1, lines(gpu.waits)
    assert report["loss"] > 0


def test_a_validation_image_waits_once(monkeypatch, trainer):
    with PretendGpu() as gpu:
        trained = trainer()
        trained._prepare_training()
        found = waits_an_image(monkeypatch, gpu, trained.evaluator)
        assert 0 < trained.validate() < 1
        assert found().total() == 1, lines(found())


@pytest.mark.parametrize("scores", ["prototype", SCORES])
def test_a_test_image_waits_twice_at_most(monkeypatch, trainer, scores):
    with PretendGpu() as gpu:
        trained = trainer()
        trained._prepare_training()
        trained._save(trained.options.checkpoint_path)
        trained._save(trained.options.best_checkpoint_path)
        tested = trainer(f"--multi_scala --score {scores}")
        found = waits_an_image(monkeypatch, gpu, tested.evaluator)
        results = tested.test()
        assert 1 <= found().total() <= 2, lines(found())
    assert results["images"] == 3
