"""The network as an ONNX file, for any program that runs those."""

import contextlib
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from modules.inference.folding import fold_norms
from modules.scores import Evidence, Score
from modules.segmentation import SegmentationModel
from utils.errors import PansError

NEEDED_PACKAGES = ("onnx", "onnxscript")
SMALLEST_SIDE = 8


class ExportError(PansError):
    """The packages that write ONNX are missing, or the file cannot be written."""


def pooling_matrix(cells: int, size: int, like: Tensor) -> Tensor:
    """(cells, size) weights of adaptive average pooling along one axis.

    Cell i averages the places from floor(i size / cells) to ceil((i + 1) size / cells) - 1, as
    torch's AdaptiveAvgPool does. `size` may be symbolic.
    """
    cell = torch.arange(cells, device=like.device)[:, None]
    place = torch.arange(size, device=like.device)
    start, end = cell * size // cells, -(-(cell + 1) * size // cells)
    inside = ((place >= start) & (place < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class MatrixPooling(nn.Module):
    """AdaptiveAvgPool2d(cells) as two products, for inputs whose size is not known yet.

    The exporter would write torch's own layer for the one size that it saw.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        rows = pooling_matrix(self.cells, x.shape[2], x)
        columns = pooling_matrix(self.cells, x.shape[3], x)
        return rows @ x @ columns.T


class ScoredNetwork(nn.Module):
    """(N, 3, H, W) normalised images -> low-resolution logits, (N, H, W) score and classes."""

    def __init__(self, network: SegmentationModel, score: Score) -> None:
        super().__init__()
        self.network, self.score = network, score

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.network(image)
        evidence = Evidence([logits], image.shape[2:])
        return logits, self.score.map_of(evidence), evidence.probabilities.argmax(dim=1)


def exportable(model: SegmentationModel) -> SegmentationModel:
    """A float32 copy on the CPU with folded norms, which takes every size."""
    network = fold_norms(model).float().cpu()
    for branch in network.head.ppm:
        assert isinstance(branch, nn.Sequential)
        pooling = branch[0]
        assert isinstance(pooling, nn.AdaptiveAvgPool2d)
        branch[0] = MatrixPooling(int(pooling.output_size))  # type: ignore[arg-type]
    return network


def check_export_support() -> None:
    """Whether ONNX can be written here.

    Raises:
        ExportError: an optional package is missing.
    """
    missing = [name for name in NEEDED_PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--export onnx needs the optional packages {' and '.join(missing)}, which are not "
            f"installed; pip install -e '.[onnx]'"
        )


def export_onnx(
    model: SegmentationModel, score: Score, path: Path, metadata: Mapping[str, str]
) -> None:
    """Write `model` and an anomaly score of its logits at one scale as one ONNX file.

    Input `image`: (batch, 3, height, width) float32, normalised, 8 pixels a side or more. Outputs:
    `logits` (batch, classes, h, w), `score` (batch, height, width), `classes` (batch, height,
    width) int64.

    Raises:
        ExportError: as `check_export_support`, or the file cannot be written.
    """
    check_export_support()
    sides = {2: Dim("height", min=SMALLEST_SIDE), 3: Dim("width", min=SMALLEST_SIDE)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        program = torch.onnx.export(
            ScoredNetwork(exportable(model), score).eval(),
            (torch.zeros(2, 3, 64, 96),),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["image"],
            output_names=["logits", "score", "classes"],
            dynamic_shapes=({0: Dim("batch"), **sides},),
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(str(temporary))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ExportError(
            f"{path} could not be written ({error}); name a file in a folder with space by --out"
        ) from error
