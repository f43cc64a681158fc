"""TensorBoard: losses, metrics, pictures and the options of a run, in its log folder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dataset import DatasetInfo
from metrics import ThresholdCurve
from report.visualize import Picture, class_iou_figure, confusion_matrix_figure, render

_TEST_FILE = ".test"
"""End of the name of the event file that holds the points of a test."""


class Logger:
    """Writes a run's TensorBoard events.

    Args:
        folder: the run's log folder; without one, as on all processes but the main one, every
            call does nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer = None if folder is None else SummaryWriter(str(folder))

    def start_at(self, step: int) -> None:
        """Hide what earlier runs of this name logged from `step` on, so that no point is doubled.

        `step` is where training begins: 0, or the step of the checkpoint that it goes on from.
        """
        if self._writer is not None:
            self._writer.close()
            self._writer = SummaryWriter(str(self._folder), purge_step=step)

    def start_test(self) -> None:
        """Write what follows to a file of its own, in the place of an earlier test's."""
        if self._writer is not None and self._folder is not None:
            self._writer.close()
            for earlier in self._folder.glob(f"*tfevents*{_TEST_FILE}"):
                earlier.unlink()
            self._writer = SummaryWriter(str(self._folder), filename_suffix=_TEST_FILE)

    def __enter__(self) -> "Logger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point for each tag, such as "train/loss"."""
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, picture: Picture, step: int) -> None:
        """A picture, (H, W, 3) uint8."""
        if self._writer is not None:
            self._writer.add_image(tag, picture, step, dataformats="HWC")

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """A matplotlib figure, as a picture."""
        if self._writer is not None:
            self.image(tag, render(figure), step)

    def class_iou(
        self, tag: str, class_iou: Mapping[int, float], info: DatasetInfo, step: int
    ) -> None:
        """IoU of every class: a curve each, and all of them as bars."""
        if self._writer is not None:
            present = {i: value for i, value in class_iou.items() if math.isfinite(value)}
            names = info.class_names
            self.scalars({f"{tag}/{names[i]}": value for i, value in present.items()}, step)
            self.figure(f"{tag}/bars", class_iou_figure(class_iou, info), step)

    def confusion_matrix(
        self, tag: str, matrix: NDArray[np.integer], names: Sequence[str], step: int
    ) -> None:
        """Pixel counts (C, C), rows truth and columns prediction, drawn as shares of the rows."""
        if self._writer is not None:
            self.figure(tag, confusion_matrix_figure(matrix, names), step)

    def pr_curve(self, tag: str, curve: ThresholdCurve, step: int) -> None:
        """Precision over recall, for the PR CURVES tab.

        The tab shows a point's place in the curve, from 0 to 1, where it says "threshold".
        """
        if self._writer is not None:
            # The tab wants the lowest threshold first.
            true, false = curve.true_positives[::-1], curve.false_positives[::-1]
            self._writer.add_pr_curve_raw(
                tag,
                true,
                false,
                false[0] - false,
                true[0] - true,
                curve.precision[::-1],
                curve.recall[::-1],
                step,
                len(true),
            )

    def histogram(
        self,
        tag: str,
        edges: NDArray[np.floating],
        counts: NDArray[np.integer],
        step: int,
    ) -> None:
        """Counts (B,) between edges (B+1,), for the HISTOGRAMS and DISTRIBUTIONS tabs."""
        if self._writer is not None:
            middles = (edges[:-1] + edges[1:]) / 2
            self._writer.add_histogram_raw(
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
        if self._writer is not None:
            self._writer.add_text(tag, markdown, step)

    def table(self, tag: str, values: Mapping[str, Any], step: int = 0) -> None:
        """Names and values as a table of two columns."""
        if self._writer is not None:
            rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in values.items())
            self.text(tag, "| option | value |\n| --- | --- |\n" + rows, step)

    def hparams(self, options: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """Options and final metrics for TensorBoard's HPARAMS tab; the metrics are logged too.

        `SummaryWriter.add_hparams` would put them into a run of their own beside this one.
        """
        if self._writer is not None:
            plain = {
                name: value if type(value) in {int, float} else str(value)
                for name, value in options.items()
            }
            for summary in hparams(plain, dict(metrics)):
                self._writer._get_file_writer().add_summary(summary)
            self.scalars(metrics, step)

    def layout(self, categories: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Charts that show several tags together: {category: {title of the chart: tags}}.

        A tag is a regular expression.
        """
        if self._writer is not None:
            self._writer.add_custom_scalars(
                {
                    category: {title: ["Multiline", list(tags)] for title, tags in charts.items()}
                    for category, charts in categories.items()
                }
            )

    def flush(self) -> None:
        """Put everything logged so far on the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush, and end the file; calls after this one do nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
