"""Other programs on the exported network that `make demo` has trained: times and metrics.

`python -m benchmarks.peers NAME --ckpt_test FILE --onnx FILE --timing DIR --demo DIR` prints one
line of JSON: seconds of a forward pass of 568x1000 and of a test image at five scales (all but the
network is ours), and the metrics of the demo's test split. NAME is one of `PEERS`, or a precision
of this repository.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import CLASSES, image_test, make_trainer, seconds_of
from modules.inference.network import Inference
from modules.normalisation import normalised
from predict import load_network
from train import Trainer

Network = Callable[[np.ndarray], np.ndarray]  # (1, 3, h, w) normalised -> logits


def onnx_runtime(file: Path) -> Network:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["logits"], {"image": image})[0]


def openvino(file: Path, precision: str) -> Network:
    """Compiled for any size: for a fixed one, OpenVINO folds the interpolation wrongly (1e-2)."""
    from openvino import Core

    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = Core().compile_model(file, "CPU", settings)
    return lambda image: compiled(image)["logits"]


PEERS: dict[str, Callable[[Path], Network]] = {
    "ONNX Runtime fp32": onnx_runtime,
    "OpenVINO fp32": lambda file: openvino(file, "f32"),
    "OpenVINO bf16": lambda file: openvino(file, "bf16"),
}


def missing_packages() -> list[str]:
    """The packages of `pip install -e '.[bench]'` that are not installed."""
    return [name for name in ("onnx", "onnxruntime", "openvino") if find_spec(name) is None]


def only_logits(file: Path) -> None:
    """Remove score and classes from an exported network, so that it ends with the logits."""
    import onnx

    model = onnx.load(file)
    needed, nodes = {"logits"}, list[Any]()
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.insert(0, node)
    del model.graph.node[:], model.graph.output[1:]
    model.graph.node.extend(nodes)
    onnx.save(model, file)


class PeerInference(Inference):
    """Logits from another program's network."""

    def __init__(self, network: Network) -> None:
        self.network, self.device = network, torch.device("cpu")

    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [normalised(image[None]) for image in images]

    def classify(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [torch.from_numpy(self.network(one.contiguous().numpy())) for one in features]


def inference_of(name: str, trainer: Trainer, file: Path) -> Inference:
    if name in PEERS:
        return PeerInference(PEERS[name](file))
    return Inference(load_network(trainer.options), torch.device("cpu"), name)


def measure(name: str, checkpoint: Path, file: Path, timing: Path, demo: Path) -> dict[str, float]:
    trainers = [
        make_trainer(data, CLASSES, ["--test", "--ckpt_test", str(checkpoint)])
        for data in (timing, demo)
    ]
    large, small = ([*one.evaluator._evaluation_loader("test", True)] for one in trainers)
    inference = inference_of(name, trainers[0], file)
    _, test = image_test(inference, CLASSES)
    test(large[0])
    found = {
        "forward": median(
            seconds_of(lambda: inference.logits(large[0].images[-1:])) for _ in "123"
        ),
        "image": seconds_of(lambda: test(large[1])),
    }
    evaluation, test = image_test(inference, CLASSES)
    for sample in small:
        test(sample)
    results = evaluation.results()
    metrics = results["protocols"]["per image"]["figures"]
    return found | {"mean IoU": 100 * results["Mean IoU"]} | metrics


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.peers", description=__doc__)
    parser.add_argument("name", choices=[*PEERS, "fp32", "bf16"])
    for flag in ("--ckpt_test", "--onnx", "--timing", "--demo"):
        parser.add_argument(flag, type=Path, required=True)
    found = parser.parse_args()
    print(json.dumps(measure(found.name, found.ckpt_test, found.onnx, found.timing, found.demo)))


if __name__ == "__main__":
    main()
