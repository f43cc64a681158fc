"""The table of a grid of runs as Markdown and CSV, and its bar chart."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from metrics.protocols import mean, standard_deviation
from utils.files import replacing, write_text

METRICS = {"AUPR": 1.0, "AUROC": 1.0, "FPR95": 1.0, "Mean IoU": 100.0}
"""Columns, and the factors from results.json's values to percent."""

_LOWER_IS_BETTER = {"FPR95"}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        values: the axes' values as text.
        origin: measured, published (with the source) or left out.
        runs: the number of completed runs and of all runs.
        metrics: values of all runs by name, in percent.
        note: a name, or the reason why something is missing.
    """

    values: Mapping[str, str]
    origin: str
    runs: str
    metrics: Mapping[str, Sequence[float]]
    note: str


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); NaN if there are too few values."""
    centre, deviation = mean(values), standard_deviation(values)
    return (
        math.nan if centre is None else centre,
        math.nan if deviation is None else deviation,
    )


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """Write ablation.md and ablation.csv, each atomically."""
    write_text(folder / "ablation.md", _markdown(rows))
    write_text(folder / "ablation.csv", _csv(rows))


def _markdown(rows: Sequence[Row]) -> str:
    axes = list(rows[0].values)
    names = [*axes, "origin", "runs", *(f"{metric} %" for metric in METRICS), "note"]
    aligned = ["---"] * (len(axes) + 2) + ["---:"] * len(METRICS) + ["---"]
    lines = [names, aligned]
    for row in rows:
        metrics = (_spread(row.metrics.get(metric, ())) for metric in METRICS)
        lines.append([*row.values.values(), row.origin, row.runs, *metrics, row.note])
    table = [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    ]
    legend = (
        "Mean ± sample standard deviation over seeds. AUPR, AUROC and FPR95 per image; lower FPR95 "
        "is better. Published rows were not measured here."
    )
    return "\n".join([*table, "", legend, ""])


def _spread(values: Sequence[float]) -> str:
    centre, deviation = mean_and_deviation(values)
    if math.isnan(centre):
        return ""
    return f"{centre:.2f}" if math.isnan(deviation) else f"{centre:.2f} ± {deviation:.2f}"


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{metric} {part}" for metric in METRICS for part in ("mean", "standard deviation")]
    writer.writerow([*rows[0].values, "origin", "runs", *columns, "note"])
    for row in rows:
        spreads = [mean_and_deviation(row.metrics.get(metric, ())) for metric in METRICS]
        numbers = ["" if math.isnan(value) else value for pair in spreads for value in pair]
        writer.writerow([*row.values.values(), row.origin, row.runs, *numbers, row.note])
    return text.getvalue()


def draw_plot(folder: Path, rows: Sequence[Row]) -> None:
    """Write ablation.png: one panel per metric, one bar per row; published ones are hatched."""
    shown = [row for row in rows if any(row.metrics.values())]
    if not shown:
        return
    figure = Figure(figsize=(16, 1.6 + 0.45 * len(shown)), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    positions = range(len(shown))
    for panel, name in zip(panels, METRICS, strict=True):
        spreads = [mean_and_deviation(row.metrics.get(name, ())) for row in shown]
        means, deviations = zip(*spreads, strict=True)
        bars = panel.barh(positions, means, xerr=deviations, color="#4878a8", capsize=3)
        for bar, row in zip(bars, shown, strict=True):
            if row.origin != "measured":
                bar.set(facecolor="#d9d9d9", edgecolor="#606060", hatch="//")
        better = "lower" if name in _LOWER_IS_BETTER else "higher"
        panel.set_title(f"{name} in percent\n({better} is better)")
        panel.bar_label(bars, fmt="%.1f", padding=4, fontsize=8)
        panel.set_xlim(0, 1.15 * panel.get_xlim()[1])  # room for the numbers
    panels[0].set_yticks(positions, [_title(row) for row in shown])
    panels[0].invert_yaxis()
    with replacing(folder / "ablation.png") as file:
        figure.savefig(file, dpi=110, format="png")


def _title(row: Row) -> str:
    values = ", ".join(f"{axis} {value}" for axis, value in row.values.items() if value)
    return values if row.origin == "measured" else f"{row.note} ({row.origin})"
