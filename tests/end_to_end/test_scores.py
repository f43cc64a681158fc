"""All scores from one pass over a tiny data set."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from argparser import parse_options
from dataset.demo.writer import write_demo
from dataset.transforms import TEST_SCALES, scaled_size
from metrics import AnomalyEvaluation
from modules.scores.network_output import NetworkOutput
from modules.scores.registry import SCORES
from modules.scores.scorer import Scorer
from tests.end_to_end import command
from train import Trainer
from utils.checkpoint import save_checkpoint
from utils.distributed import Process
from utils.logger import Logger

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the commands: an untrained network's scores lie so close that rounding ranks them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Flags of a test of random weights on three tiny images."""
    root = tmp_path_factory.mktemp("scores")
    write_demo(root / "data", train=3, validation=1, test=3, size=(96, 64), seed=3)
    flags = ["--default", "--test", "--num_workers", "0", "--data_root", str(root / "data")]
    flags += ["--ckpt_test", str(root / "random.pth"), "--logdir", str(root / "logs")]
    options = parse_options(flags)
    model = Trainer(options, Process(0, 0, 1, torch.device("cpu")), Logger(None)).model
    save_checkpoint(root / "random.pth", {"model_state": model.state_dict()})
    return flags


def results_of(flags, *scores):
    options = parse_options([*flags, *scores])
    options.log_folder.mkdir(parents=True, exist_ok=True)
    return Trainer(options, Process(0, 0, 1, torch.device("cpu")), Logger(None)).test()


@pytest.fixture(scope="module")
def every_score(tiny):
    return results_of(tiny, "--score", "all", "--mc_dropout", "2", "--name", "all")


def test_score_all_gives_finite_metrics_for_each_score(tiny, every_score, capsys):
    expected = [name for name in SCORES if not SCORES[name].missing("cosine")]
    assert list(every_score["scores"]) == expected
    for name, found in every_score["scores"].items():
        for figure in ("AUROC", "AUPR", "FPR95"):
            assert math.isfinite(found[figure]), (name, figure)
            assert 0 < found[figure] <= 100, (name, figure)
            assert found["constant_score_maps"] == []
    folder = parse_options([*tiny, "--name", "all"]).log_folder
    written = json.loads((folder / "results.json").read_text())
    assert written["scores"].keys() == every_score["scores"].keys()
    assert written["score"] == "prototype"
    # An increasing function of another score ranks alike, but for rounding's ties.
    assert every_score["scores"]["maxlogit"]["AUROC"] == pytest.approx(
        every_score["scores"]["prototype"]["AUROC"], abs=0.01
    )


def test_the_spool_of_all_scores_is_small_and_lossless():
    """At most 12 GB for 1500 images of 1280x720 at five scales, from 360x640; the same results.

    A dense CRF's map, which needs an optional package, takes as much as that of msp.
    """
    size, names = (360, 640), [name for name, score in SCORES.items() if not score.crf]
    states = {
        "standardized_maxlogit": {"mean": torch.zeros(13), "deviation": torch.ones(13)},
        "class_mean": {"means": torch.eye(13, 16)},
        "mahalanobis": {
            "centre": torch.zeros(16),
            "whitening": torch.eye(16),
            "means": torch.eye(13, 16),
        },
        "knn": {"sample": torch.eye(16)},
    }
    scorer = Scorer(SimpleNamespace(device=torch.device("cpu")), names, states)
    options = {"scores": names, "min_predicted_size": 20, "min_true_size": 5}
    of_parts, of_maps = (
        AnomalyEvaluation(
            13,
            **options,
            map_of=lambda name, parts, size: scorer.maps_from({name: parts}, size)[name],
        )
        for _ in range(2)
    )
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        shapes = [[-(-side // 8) for side in scaled_size(*size, scale)] for scale in TEST_SCALES]
        logits, samples = (
            [10 * torch.rand(passes, 13, *shape, generator=generator) for shape in shapes]
            for passes in (1, 3)
        )
        features = [torch.randn(1, 16, *shape, generator=generator) for shape in shapes]
        output = NetworkOutput(logits, size, features, None, samples, scorer.states)
        label = torch.randint(0, 14, (9, 16), generator=generator).to(torch.uint8)
        label = label.repeat_interleave(40, 0).repeat_interleave(40, 1)
        parts = scorer.parts(output)
        image = index, str(index), scorer.maps_from(parts, size), output.prediction, label
        of_parts.update(*image, parts)
        of_maps.update(*image)
    msp = of_parts._spool._groups[0]["parts of msp"][0].length
    gigabytes = (of_parts._spool.size / 2 + msp) * 4 * 1500 / 1e9
    assert 5 < gigabytes < 12
    assert of_parts.results() == of_maps.results()


@pytest.mark.parametrize(
    ("typed", "name"), [((), "prototype"), (("--msp",), "msp"), (("--score", "msp"), "msp")]
)
def test_single_runs_give_the_metrics_of_a_joint_run(tiny, every_score, typed, name):
    single = results_of(tiny, *typed)
    assert single["score"] == name
    assert single["scores"] == {name: every_score["scores"][name]}
    for figure in ("AUROC", "AUPR", "FPR95"):
        assert single[figure] == single["scores"][name][figure]
    assert single["Mean IoU"] == every_score["Mean IoU"]


def test_two_processes_give_the_metrics_of_one(tiny, every_score):
    names = ["standardized_maxlogit", "mc_dropout", "class_mean", "mahalanobis", "knn"]
    flags = [*tiny, "--name", "two", "--nproc", "2"]
    flags += ["--mc_dropout", "2", "--score", ",".join(names)]
    checkpoint = Path(flags[flags.index("--ckpt_test") + 1])
    for kept in checkpoint.parent.glob("*.pt"):
        kept.unlink()
    ended = command.start(*flags)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^mc_dropout  ", ended.stdout, re.MULTILINE)
    results = json.loads((parse_options(flags).log_folder / "results.json").read_text())
    for name in names:
        for figure in ("AUROC", "AUPR", "FPR95"):
            expected = every_score["scores"][name][figure]
            assert results["scores"][name][figure] == pytest.approx(expected, abs=1e-6)
