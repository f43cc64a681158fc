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
from utils.visualize import Picture, class_iou_figure, confusion_matrix_figure, render


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

    def table(self, tag: str, values: Mapping[str, Any], step: int = 0) -> None:
        """Names and values as a table of two columns."""
        if self._writer is not None:
            rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in values.items())
            self._writer.add_text(tag, "| option | value |\n| --- | --- |\n" + rows, step)

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

    def layout(self, charts: Mapping[str, Sequence[str]]) -> None:
        """Charts that show several tags together: {title of the chart: tags}."""
        if self._writer is not None:
            multiline = {title: ["Multiline", list(tags)] for title, tags in charts.items()}
            self._writer.add_custom_scalars({"PAnS": multiline})

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
