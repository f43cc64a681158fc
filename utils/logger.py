"""TensorBoard: losses, metrics, pictures and the options of a run, in its log folder."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils.figures import Picture, render

_EVENTS = "events.out.tfevents."
"""Prefix of event files; the time of creation in seconds follows."""

_TEST_FILE = ".test"
"""Suffix of the event file of a test."""


class _Writer(SummaryWriter):
    def add_summary(self, summary: Any) -> None:
        """Unlike `add_hparams`, write the summaries into this run."""
        self._get_file_writer().add_summary(summary)


class Logger:
    """Writes a run's TensorBoard events to a file that is created with the first one.

    If the disk is full, the log ends with one warning, and the run continues.

    Args:
        folder: the run's log folder; None on all processes but the main one, where every call does
            nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: _Writer | None = None
        self._purge_step: int | None = None
        self._suffix = ""

    def start_at(self, step: int) -> None:
        """Hide points of earlier runs of this name from `step` on, so that none is doubled.

        `step` is where training starts: 0, or the step of the checkpoint from which it resumes.
        """
        self._close_file()
        self._purge_step = step

    @contextmanager
    def replacing_test(self) -> Iterator[None]:
        """Log the body to a separate file, which replaces that of an earlier test.

        The earlier file is deleted at the end of the body; if the body raises, the new one is.
        """
        self._close_file()
        folder = self._folder
        if folder is not None:
            _put_before_now(folder)  # now, or they would change their names in the body
        earlier = _test_files(folder)
        self._suffix = _TEST_FILE
        try:
            yield
            self._close_file()
            stale = set() if self._folder is None else earlier
        except BaseException:
            self._close_file()
            stale = _test_files(folder) - earlier
            raise
        finally:
            self._suffix = ""
            for path in stale:
                with suppress(OSError):
                    path.unlink()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, method: str, *values: Any, **named: Any) -> None:
        """Call a method of the writer, which is created at the first call."""
        if self._folder is None:
            return
        try:
            if self._writer is None:
                self._writer = _new_writer(self._folder, self._purge_step, self._suffix)
                self._purge_step = None
            getattr(self._writer, method)(*values, **named)
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        print(
            f"WARNING: {self._folder} cannot be written to ({error.strerror or error}): nothing "
            "further is logged for TensorBoard, the run continues",
            file=sys.stderr,
        )
        self._folder = self._writer = None

    @property
    def is_on(self) -> bool:
        """Whether anything is written at all."""
        return self._folder is not None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log one point per tag, such as "train/loss"."""
        for tag, value in values.items():
            self._write("add_scalar", tag, value, step)

    def image(self, tag: str, picture: Picture, step: int) -> None:
        """A picture, (H, W, 3) uint8."""
        self._write("add_image", tag, picture, step, dataformats="HWC")

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """A matplotlib figure, as a picture."""
        if self._folder is not None:
            self.image(tag, render(figure), step)

    def pr_curve(
        self,
        tag: str,
        true_positives: NDArray[np.integer],
        false_positives: NDArray[np.integer],
        step: int,
    ) -> None:
        """Precision over recall, for the PR CURVES tab.

        What the tab calls "threshold" is the position on the curve, from 0 to 1.

        Args:
            true_positives, false_positives: (T,) counts at descending thresholds; at the last one
                all are positive.
        """
        # The tab expects the lowest threshold first.
        true, false = true_positives[::-1], false_positives[::-1]
        true_negatives, false_negatives = false[0] - false, true[0] - true
        counts = true, false, true_negatives, false_negatives
        precision, recall = true / np.maximum(true + false, 1), true / true[0]
        self._write("add_pr_curve_raw", tag, *counts, precision, recall, step, len(true))

    def histogram(
        self, tag: str, edges: NDArray[np.floating], counts: NDArray[np.integer], step: int
    ) -> None:
        """Counts (B,) between edges (B+1,), for the HISTOGRAMS and DISTRIBUTIONS tabs."""
        middles = (edges[:-1] + edges[1:]) / 2
        self._write(
            "add_histogram_raw",
            tag,
            min=edges[0],
            max=edges[-1],
            num=counts.sum(),
            sum=counts @ middles,
            sum_squares=counts @ middles**2,
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Markdown, as the TEXT tab draws it."""
        self._write("add_text", tag, markdown, step)

    def table(self, tag: str, values: Mapping[str, Any], step: int = 0) -> None:
        """Names and values as a table of two columns."""
        rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in values.items())
        self.text(tag, "| option | value |\n| --- | --- |\n" + rows, step)

    def hparams(self, options: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """Options and final metrics for TensorBoard's HPARAMS tab; the metrics are logged too.

        `SummaryWriter.add_hparams` would put them into a run of their own beside this one.
        """
        if self._folder is not None:
            plain = {
                name: value if type(value) in {int, float} else str(value)
                for name, value in options.items()
            }
            for summary in hparams(plain, dict(metrics)):
                self._write("add_summary", summary)
            self.scalars(metrics, step)

    def layout(self, categories: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Define charts with several tags: {category: {chart title: tags}}.

        A tag is a regular expression.
        """
        charts_by_category = {
            category: {title: ["Multiline", list(tags)] for title, tags in charts.items()}
            for category, charts in categories.items()
        }
        self._write("add_custom_scalars", charts_by_category)

    def flush(self) -> None:
        """Write everything logged so far to the disk."""
        if self._writer is not None:
            self._write("flush")

    def close(self) -> None:
        """Flush and close the file; later calls do nothing."""
        self._close_file()
        self._folder = None

    def _close_file(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                self._end(error)


def _test_files(folder: Path | None) -> set[Path]:
    return set() if folder is None else set(folder.glob(f"{_EVENTS}*{_TEST_FILE}"))


def _new_writer(folder: Path, purge_step: int | None, suffix: str) -> _Writer:
    _put_before_now(folder)
    _silence_writing_threads()
    return _Writer(str(folder), purge_step=purge_step, filename_suffix=suffix)


def _put_before_now(folder: Path) -> None:
    """Rename event files that would sort after a new one, because TensorBoard reads them by name.

    Their names contain the time of creation, and the clock may have been set back since.
    """
    files = sorted(folder.glob(f"{_EVENTS}*"))
    times = [file.name.removeprefix(_EVENTS).partition(".")[0] for file in files]
    now = int(time.time())
    if not times or not times[-1].isdecimal() or int(times[-1]) < now:
        return
    for number, (file, begun) in enumerate(zip(files, times, strict=True)):
        rest = file.name.removeprefix(f"{_EVENTS}{begun}")
        with suppress(OSError):
            file.rename(file.with_name(f"{_EVENTS}{now - len(files) + number:010d}{rest}"))


def _silence_writing_threads() -> None:
    """Silence errors of the writer's thread; the next call raises them too."""
    hook = threading.excepthook
    if hook is not _without_writers:
        global _other_threads
        _other_threads = hook
        threading.excepthook = _without_writers


_other_threads = threading.excepthook


def _without_writers(failure: threading.ExceptHookArgs) -> None:
    if not isinstance(failure.thread, _AsyncWriterThread):
        _other_threads(failure)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
