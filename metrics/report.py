"""Results as JSON and as Markdown tables, of one run or over several.

`python -m metrics.report results.json [results.json ...]` prints the table of one run, or mean and
sample standard deviation over several, such as seeds. A folder stands for the results.json in it.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metrics.protocols import mean, standard_deviation
from utils.errors import PansError, exit_code
from utils.files import write_text
from utils.reading import Unreadable, read_text

Results = Mapping[str, Any]

_COLUMNS = {"standard_error": "Standard error", "chance": "Chance", "largest_error": "Exact to"}


_COMPARED = ("per image", "pooled", "components", "open set")  # protocols that scores change

_FILE, _SHOWN = "results.json", 3


class UnreadableResults(PansError):
    """A file that is not a results.json."""


def write_results(path: Path, results: Results) -> None:
    """Write results.json; NaN, which JSON lacks, becomes null.

    Raises:
        PansError: the folder cannot be written to, or the disk is full.
    """
    try:
        write_text(path, json.dumps(_without_nan(results), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise PansError(
            f"{path} could not be written ({error.strerror}); what it held before is still there"
        ) from error


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json.

    Raises:
        UnreadableResults: `path` is missing or not a results.json.
    """
    if not path.exists():
        found = sorted(map(str, Path("logs").glob(f"*/*/{_FILE}")))
        there = f"; there are {', '.join(found[:_SHOWN])}" if found else ""
        raise UnreadableResults(
            f"there is no {path}: a test writes LOGDIR/DATASET/NAME/{_FILE}, metrics.evaluate its "
            f"--out{there}"
        )
    try:
        results = json.loads(read_text(path, "JSON"))
    except (Unreadable, ValueError, RecursionError) as error:
        raise _no_results(path) from error
    if not isinstance(results, dict) or not isinstance(results.get("protocols"), dict):
        raise _no_results(path)
    return results


def _no_results(path: Path) -> UnreadableResults:
    return UnreadableResults(
        f"{path} is not a results.json of this code; run a test or metrics.evaluate first"
    )


def _are_results(found: Any) -> bool:
    """Whether everything in the tables is there and has the right type."""
    match found:
        case {
            "protocols": dict(protocols),
            "images": int(),
            "images_scored": int(),
            "images_skipped": int(),
            "anomaly_base_rate": base_rate,
            "anomaly_base_rate_pooled": pooled_base_rate,
            "constant_score_maps": list(names),
        }:
            scores = found.get("scores", {})
            return (
                bool(protocols)
                and all(map(_is_protocol, protocols.values()))
                and _is_number(base_rate)
                and _is_number(pooled_base_rate)
                and _are_texts(names)
                and isinstance(scores, dict)
                and all(_compares(one, protocols) for one in scores.values())
            )
    return False


def _is_protocol(found: Any) -> bool:
    match found:
        case {
            "figures": dict(figures),
            "unit": str(),
            "rule": str(),
            "ignored_classes": list(names),
        }:
            columns = [found.get(column) for column in _COLUMNS]
            return _are_texts(names) and all(
                isinstance(column, dict) and all(map(_is_number, column.values()))
                for column in (figures, *columns)
            )
    return False


def _compares(found: Any, protocols: Mapping[str, Any]) -> bool:
    """Whether the results of one score have all metrics that are compared."""
    own = found.get("protocols") if isinstance(found, dict) else None
    return isinstance(own, dict) and all(
        name in protocols
        and _is_protocol(own.get(name))
        and own[name]["figures"].keys() >= protocols[name]["figures"].keys()
        for name in _COMPARED
    )


def _is_number(found: Any) -> bool:
    """Whether a value is a finite number or None."""
    return found is None or (type(found) in (int, float) and -1e9 < found < 1e9)


def _are_texts(found: Sequence[Any]) -> bool:
    return all(isinstance(one, str) for one in found)


def markdown_table(results: Results) -> str:
    """The table of every protocol's metrics in percent, and notes on them."""
    lines = _table_head("Protocol", "Figure", "%", *_COLUMNS.values())
    for name, protocol in results["protocols"].items():
        for figure, value in protocol["figures"].items():
            extras = (protocol[column].get(figure) for column in _COLUMNS)
            cells = (_percent(cell, protocol["unit"]) for cell in (value, *extras))
            lines.append(_table_row(name, figure, *cells))
    lines.append("")
    for name, protocol in results["protocols"].items():
        ignored = ", ".join(protocol["ignored_classes"])
        lines.append(
            f"- {name}: {protocol['rule']}{f'; without the classes {ignored}' * bool(ignored)}."
        )
    lines += [
        "- Standard error: of the mean over the images of this one run.",
        "- Exact to: bound of the error, because pooled scores are counted in bins; other values "
        "are exact.",
        "- FreqW Acc: mean IoU, weighted by the classes' shares of the pixels.",
    ]
    lines.append(
        f"- {results['images']} images, {results['images_scored']} scored, "
        f"{results['images_skipped']} skipped with only one kind of pixel; "
        f"{_percent(results['anomaly_base_rate'], 'fraction')} % of an image's pixels are "
        f"anomalous, {_percent(results['anomaly_base_rate_pooled'], 'fraction')} % of all."
    )
    if results["constant_score_maps"]:
        lines.append(f"- CONSTANT score maps: {', '.join(results['constant_score_maps'])}.")
    return "\n".join(lines) + "\n"


def markdown_run(results: Results) -> str:
    """The headline score's table, and a table of all scores if there are several."""
    return "\n".join(filter(None, (markdown_table(results), markdown_scores(results))))


def markdown_scores(results: Results) -> str:
    """One row per score, in percent; empty if there is only one."""
    if len(results.get("scores", ())) < 2:
        return ""
    columns = [
        (name, figure) for name in _COMPARED for figure in results["protocols"][name]["figures"]
    ]
    lines = _table_head("Score", *(f"{figure} ({name})" for name, figure in columns), texts=1)
    for score, found in results["scores"].items():
        protocols = (found["protocols"][name] for name, _ in columns)
        cells = (
            _percent(protocol["figures"][figure], protocol["unit"])
            for protocol, (_, figure) in zip(protocols, columns, strict=True)
        )
        lines.append(_table_row(score, *cells))
    return "\n".join(lines) + "\n"


def combine_runs(runs: Sequence[Results]) -> dict[str, dict[str, dict[str, float | None]]]:
    """{protocol: {metric: {"mean", "standard deviation", "runs"}}} over runs, in the metric's unit.

    It is the sample standard deviation, as in the tables of --ablate. Runs without a metric are
    not counted for it.
    """
    combined: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, protocol in runs[0]["protocols"].items():
        combined[name] = {}
        for figure in protocol["figures"]:
            found = [run["protocols"][name]["figures"].get(figure) for run in runs]
            values = [value for value in found if value is not None]
            combined[name][figure] = {
                "mean": mean(values),
                "standard deviation": standard_deviation(values),
                "runs": len(values),
            }
    return combined


def markdown_runs(runs: Sequence[Results]) -> str:
    """Mean and sample standard deviation over runs, in percent."""
    lines = _table_head("Protocol", "Figure", "Mean %", "Standard deviation", "Runs")
    for name, figures in combine_runs(runs).items():
        unit = runs[0]["protocols"][name]["unit"]
        for figure, cells in figures.items():
            spread = (_percent(cells[key], unit) for key in ("mean", "standard deviation"))
            lines.append(_table_row(name, figure, *spread, str(cells["runs"])))
    lines += ["", f"- {len(runs)} runs; the spread is the sample standard deviation over runs."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser("python -m metrics.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="results.json files")
    paths = parser.parse_args(arguments).results
    return exit_code(lambda: print(_printable(_table(paths)), end=""))


def _printable(text: str) -> str:
    """Text without characters that a terminal may not be able to show."""
    return text.encode("utf-8", "backslashreplace").decode()


def _table(paths: Sequence[Path]) -> str:
    paths = [path / _FILE if path.is_dir() else path for path in paths]
    runs = [read_results(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if not _are_results(run):
            raise _no_results(path)
    if len(runs) == 1:
        return markdown_run(runs[0])
    _refuse_twice(paths, runs)
    for path, run in zip(paths, runs, strict=True):
        difference = _difference(runs[0], run)
        if difference:
            raise PansError(
                f"{paths[0]} and {path} differ in {difference}; put together only runs that were "
                "measured alike"
            )
    return markdown_runs(runs)


def _refuse_twice(paths: Sequence[Path], runs: Sequence[Results]) -> None:
    """Raise if the same results are passed twice; they would count as two runs without spread."""
    for number, run in enumerate(runs):
        for other in range(number):
            # The same test may differ only in place and time.
            if {**run, "environment": None} == {**runs[other], "environment": None}:
                what = f"{paths[other]} and {paths[number]} hold the same results"
                if paths[other].samefile(paths[number]):
                    what = f"{paths[number]} is given twice"
                raise PansError(f"{what}; name every run once")


def _difference(one: Results, other: Results) -> str | None:
    """Why the metrics of two runs cannot be compared, or None."""
    if one["protocols"].keys() != other["protocols"].keys():
        return "their protocols"
    if one["images"] != other["images"]:
        return f"their number of images, {one['images']} and {other['images']}"
    if one.get("measured_at") != other.get("measured_at"):
        return f"their size, {one.get('measured_at')} and {other.get('measured_at')}"
    if one.get("score") != other.get("score"):
        return f"their anomaly score, {one.get('score')} and {other.get('score')}"
    for name, protocol in one["protocols"].items():
        if protocol["ignored_classes"] != other["protocols"][name]["ignored_classes"]:
            return "the ignored classes"
    return None


def _table_head(*names: str, texts: int = 2) -> list[str]:
    """The head of a table whose first `texts` columns are text, the others numbers."""
    return [_table_row(*names), _table_row(*["---"] * texts, *["---:"] * (len(names) - texts))]


def _table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    percent = value if unit == "percent" else 100 * value
    return f"{percent:.2f}" if percent == 0 or abs(percent) >= 0.005 else f"{percent:.0e}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if value != value else value


if __name__ == "__main__":
    sys.exit(main())
