"""Panels of selected images, in TensorBoard and optionally as files."""

from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dataset.description import DatasetInfo
from dataset.loaders import EvaluationSample
from report.visualize import Picture, sample_panel
from utils.distributed import gather_objects
from utils.files import replacing
from utils.logger import Logger


def maps_of(
    sample: EvaluationSample, prediction: Tensor, score: Tensor
) -> tuple[Picture, np.ndarray, np.ndarray, np.ndarray]:
    """The inputs of a panel: picture (H, W, 3), and label, prediction and score, all (H, W)."""
    on_host = prediction.cpu().numpy(), score.float().cpu().numpy()
    return sample.picture.numpy(), sample.label.numpy(), *on_host


class Panels:
    """Panels of image, ground truth, prediction and anomaly score of some images of a split.

    Args:
        images: number of images in the split.
        shown: number of images, evenly spaced, in TensorBoard.
        info: class names and colours.
        folder: folder for a PNG file per image; None writes none.
    """

    def __init__(
        self, images: int, shown: int, info: DatasetInfo, folder: Path | None = None
    ) -> None:
        self._shown = set(np.linspace(0, images - 1, shown).astype(int).tolist())
        self._info = info
        self._folder = folder
        self._panels: list[tuple[int, Picture]] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def wants(self, index: int) -> bool:
        """Whether image `index` of the split gets a panel."""
        return self._folder is not None or index in self._shown

    def add(self, sample: EvaluationSample, prediction: Tensor, score: Tensor) -> None:
        """Draw the panel of one image from its (H, W) prediction and score."""
        panel = sample_panel(*maps_of(sample, prediction, score), self._info)
        if self._folder is not None:
            stem = Path(sample.name).stem
            with replacing(self._folder / f"{sample.index:04d}_{stem}.png") as file:
                Image.fromarray(panel).save(file, format="PNG")
        if sample.index in self._shown:
            self._panels.append((sample.index, panel))

    def log(self, logger: Logger, tag: str, step: int) -> None:
        """Gather the shown panels of all processes and log them to TensorBoard."""
        panels = chain.from_iterable(gather_objects(self._panels))
        for index, panel in sorted(panels, key=lambda pair: pair[0]):
            logger.image(f"{tag}/image_{index}", panel, step)
