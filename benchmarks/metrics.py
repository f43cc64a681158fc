"""Time and memory of the metrics on one core, beside scikit-learn's and torchmetrics'.

`make bench-metrics` runs it, in under a minute. The implementations take turns, so that whatever
else the machine does falls on all of them; ratios are within a turn.
"""

import tracemalloc
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from metrics import AnomalyEvaluation, PooledCounts, image_anomaly_metrics, populations

SHAPE = (720, 1280)
TURNS = 7


def make_image(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(scores, is_anomaly) with 2 % of the pixels anomalous, as one of three kinds of map."""
    generator = torch.Generator().manual_seed(0)
    is_anomaly = np.zeros(SHAPE, dtype=bool)
    is_anomaly[300:400, 500:690] = True
    size = (1, 1, 71, 125) if kind == "upsampled" else (1, 1, *SHAPE)
    noise = torch.randn(size, generator=generator)
    noise = torch.nn.functional.interpolate(noise, SHAPE, mode="bilinear")[0, 0]
    logits = 1.5 * noise + 2 * torch.from_numpy(is_anomaly) - 3
    scores = (3 * logits).exp().clamp(max=1) if kind == "skewed" else logits.sigmoid()
    return scores.numpy(), is_anomaly


def published_fpr95(scores: np.ndarray, is_anomaly: np.ndarray) -> float:
    """As usual: sort all scores, count, take the recall nearest 0.95."""
    order = np.argsort(scores, kind="mergesort")[::-1]
    scores, is_anomaly = scores[order], is_anomaly[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), scores.size - 1)
    hits = np.cumsum(is_anomaly)[ends]
    full = int(np.searchsorted(hits, hits[-1]))
    recall = hits[full::-1] / hits[-1]
    false = (1 + ends - hits)[full::-1]
    return float(false[np.abs(recall - 0.95).argmin()] / (~is_anomaly).sum())


def scikit_learn(scores: np.ndarray, is_anomaly: np.ndarray) -> tuple[float, ...]:
    scores, is_anomaly = scores.ravel(), is_anomaly.ravel()
    return (
        roc_auc_score(is_anomaly, scores),
        average_precision_score(is_anomaly, scores),
        published_fpr95(scores, is_anomaly),
    )


def ours(scores: np.ndarray, is_anomaly: np.ndarray) -> tuple[float, ...]:
    metrics = image_anomaly_metrics(scores, is_anomaly)
    return metrics.auroc, metrics.aupr, metrics.fpr95


def torchmetrics_pair() -> Callable[..., tuple[float, ...]] | None:
    """torchmetrics' exact AUROC and average precision; None where it is not installed."""
    try:
        from torchmetrics.functional.classification import (
            binary_auroc,
            binary_average_precision,
        )
    except ImportError:
        return None

    def pair(scores: np.ndarray, is_anomaly: np.ndarray) -> tuple[float, ...]:
        prediction, target = torch.from_numpy(scores), torch.from_numpy(is_anomaly).long()
        return (
            float(binary_auroc(prediction, target)),
            float(binary_average_precision(prediction, target)),
        )

    return pair


def seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def peak_megabytes(call: Callable[[], Any]) -> float:
    """Peak memory of NumPy and Python during a call."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def spread(values: list[float], unit: str) -> str:
    return f"{median(values):6.1f} {unit} (min {min(values):.1f}, max {max(values):.1f})"


def compare_per_image(kind: str) -> None:
    """Compare ours with each peer on one image, in turns."""
    image = make_image(kind)
    peers = {"scikit-learn": (scikit_learn, 40), "torchmetrics": (torchmetrics_pair(), 5)}
    print(f"per-image AUROC, AUPR and FPR95, {kind} scores")
    for name, (peer, goal) in peers.items():
        if peer is None:
            print(f"  {name} is not installed")
            continue
        difference = max(abs(a - b) for a, b in zip(ours(*image), peer(*image), strict=False))
        turns = [
            (seconds(partial(ours, *image)), seconds(partial(peer, *image))) for _ in range(TURNS)
        ]
        print(f"  ours                {spread([1e3 * mine for mine, _ in turns], 'ms')}")
        print(f"  {name:12}        {spread([1e3 * theirs for _, theirs in turns], 'ms')}")
        ratios = [theirs / mine for mine, theirs in turns]
        print(f"  times as fast       {spread(ratios, 'x ')}   goal: {goal} x")
        print(f"  largest difference  {difference:.0e}")


def time_states(kind: str) -> None:
    """Print the time of one image's update of the streaming states."""
    scores, is_anomaly = make_image(kind)
    kinds = populations(scores, is_anomaly)
    counts, evaluation = PooledCounts(), AnomalyEvaluation(13)
    label = np.where(is_anomaly, 13, 1).astype(np.uint8)
    prediction = np.ones(SHAPE, np.int64)
    pooled, whole = [], []
    for turn in range(TURNS):
        pooled.append(1e3 * seconds(partial(counts.update, *kinds)))
        update = partial(evaluation.update, turn, "image", scores, prediction, label)
        whole.append(1e3 * seconds(update))
    second_pass = 1e3 * seconds(evaluation.results) / TURNS
    print(f"time of an image, {kind} scores")
    print(f"  pooled update       {spread(pooled, 'ms')}   goal: under 9 ms")
    print(f"  all protocols       {spread(whole, 'ms')}   and {second_pass:.0f} ms a second pass")


def measure_memory() -> None:
    image = make_image("random")
    print("peak memory")
    print(f"  per image, ours          {peak_megabytes(partial(ours, *image)):6.0f} MB")
    print(f"  per image, scikit-learn  {peak_megabytes(partial(scikit_learn, *image)):6.0f} MB")

    def pool() -> None:
        counts = PooledCounts()
        for kind in ("random", "upsampled", "skewed"):
            counts.update(*populations(*make_image(kind)))
        counts.all_reduce()
        counts.metrics()

    print(f"  pooled state             {peak_megabytes(pool):6.0f} MB   goal: under 100 MB,")
    print("                                       however many images there are")


def main() -> None:
    torch.set_num_threads(1)
    print(f"{SHAPE[0]}x{SHAPE[1]} pixels, one core, {TURNS} turns, median")
    for kind in ("random", "upsampled", "skewed"):
        compare_per_image(kind)
        time_states(kind)
    measure_memory()


if __name__ == "__main__":
    main()
