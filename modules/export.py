"""Export of the network as an ONNX file."""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from modules.inference.folding import fold_norms
from modules.pyramid import GridPooling, MatrixPooling
from modules.scores.network_output import NetworkOutput
from modules.scores.registry import Score
from modules.segmentation import SegmentationModel
from utils.errors import PansError
from utils.files import replacing

NEEDED_PACKAGES = ("onnx", "onnxscript")
SMALLEST_SIDE = 8


class ScoredNetwork(nn.Module):
    """(N, 3, H, W) normalised images -> low-resolution logits, (N, H, W) score and classes."""

    def __init__(self, network: SegmentationModel, score: Score) -> None:
        super().__init__()
        self.network, self.score = network, score

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.network(image)
        output = NetworkOutput([logits], image.shape[2:])
        # First, so that a confidence score uses these probabilities too, not strips.
        classes = output.probabilities.argmax(dim=1)
        return logits, self.score.map_of(output), classes


def exportable(model: SegmentationModel) -> SegmentationModel:
    """A float32 copy on the CPU with folded norms that accepts any input size."""
    network = fold_norms(model).float().cpu()
    for branch in network.head.ppm:
        assert isinstance(branch, nn.Sequential)
        assert isinstance(branch[0], GridPooling)
        branch[0] = MatrixPooling(branch[0].cells)
    return network


def check_export_support() -> None:
    """Raise PansError if an optional package is missing."""
    missing = [name for name in NEEDED_PACKAGES if find_spec(name) is None]
    if missing:
        raise PansError(
            f"--export onnx needs the optional packages {' and '.join(missing)}, which are not "
            f"installed; pip install -e '.[onnx]'"
        )


def export_onnx(
    model: SegmentationModel, score: Score, path: Path, metadata: Mapping[str, str]
) -> None:
    """Write `model` and an anomaly score of its logits at one scale as one ONNX file.

    Input `image`: (batch, 3, height, width) float32, normalised, sides of at least 8. Outputs:
    `logits` (batch, classes, h, w), `score` (batch, height, width), `classes` (batch, height,
    width) int64.

    Raises:
        PansError: the file cannot be written.
    """
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
    try:
        with replacing(path) as file:
            program.save(file.name)
    except OSError as error:
        raise PansError(
            f"{path} could not be written ({error}); pass a file in another folder as --out"
        ) from error
