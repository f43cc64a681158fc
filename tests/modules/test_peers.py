"""benchmarks.peers: what it takes out of an exported network, and what it gives to it."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from benchmarks import peers, speed


def test_only_what_leads_to_the_logits_is_left(tmp_path):
    names = {name: (name, TensorProto.FLOAT, [1]) for name in ("image", "logits", "score")}
    values = {name: helper.make_tensor_value_info(*words) for name, words in names.items()}
    nodes = [
        helper.make_node("Neg", ["image"], ["minus"]),
        helper.make_node("Abs", ["minus"], ["logits"]),
        helper.make_node("Exp", ["image"], ["other"]),
        helper.make_node("Add", ["logits", "other"], ["score"]),
    ]
    outputs = [values["logits"], values["score"]]
    graph = helper.make_graph(nodes, "network", [values["image"]], outputs)
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    peers.only_logits(tmp_path / "a.onnx")
    left = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(left)
    assert [node.op_type for node in left.graph.node] == ["Neg", "Abs"]
    assert [output.name for output in left.graph.output] == ["logits"]


def test_a_network_is_given_normalised_pictures_and_gives_logits():
    seen = []

    def network(image):
        seen.append(image)
        return np.ones((1, 13, 1, 2), np.float32)

    picture = torch.tensor([255, 0, 128], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 16)
    (logits,) = peers.PeerInference(network).logits([picture])
    assert torch.equal(logits, torch.ones(1, 13, 1, 2))
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(seen[0][0, :, 0, 0], expected, rtol=1e-6)
    assert seen[0].shape == (1, 3, 8, 16)


def test_peers_that_are_not_installed_are_one_line(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "openvino" else name)
    line = "Peers: not measured; install openvino with `pip install -e '.[bench]'`."
    assert speed.peers_table(Path(), Path(), 1) == line
