import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utils.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    load_model_state,
    model_state,
    save_checkpoint,
)

REPOSITORY = Path(__file__).parents[2]


class Classifier(nn.Module):
    def __init__(self, classes: int, bias: bool) -> None:
        super().__init__()
        self.cls = nn.Conv2d(4, classes, 1, bias=bias)


class Network(nn.Module):
    """A network with the names of ours: a norm, and a classifier `cls.cls`."""

    def __init__(self, classes: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(4)
        self.cls = Classifier(classes, bias)


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_saved_checkpoints_are_loaded_unchanged(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.square().sum().backward()
    optimizer.step()
    state = {
        "model_state": {"w": torch.randn(3, 2), "half": torch.randn(5).bfloat16()},
        "optimizer_state": optimizer.state_dict(),
        "epoch": 3,
        "best_score": 0.25,
        "options": {"name": "x", "ckpt": None, "ignore_classes": []},
        "classes": ["road", "sky"],
    }
    path = tmp_path / "new" / "folder" / "a.pth"
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    torch.testing.assert_close(loaded["model_state"], state["model_state"], rtol=0, atol=0)
    momentum = loaded["optimizer_state"]["state"][0]["momentum_buffer"]
    torch.testing.assert_close(momentum, optimizer.state[parameter]["momentum_buffer"])
    plain = ("epoch", "best_score", "options", "classes")
    assert {key: loaded[key] for key in plain} == {key: state[key] for key in plain}
    assert files_in(path.parent) == ["a.pth"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(5), np.bool_(True)])
def test_numpy_scalars_are_loaded(tmp_path: Path, value: np.generic, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save({"best_score": value}, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path)["best_score"]
    assert (loaded, loaded.dtype) == (value, value.dtype)


def test_numpy_scalars_under_their_old_module_name_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"best_score": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    # numpy 1 wrote the name of its module at that time.
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert load_checkpoint(path) == {"best_score": 0.5}


class Malicious:
    """Creates a file where a checkpoint that holds it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    torch.save({"a": Malicious(proof)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil.pth asks to load .*, which could run code"):
        load_checkpoint(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the file was indeed able to


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.mkdir, "is a folder where a checkpoint was expected"),
        (os.mkfifo, "is a pipe or a device where a checkpoint was expected"),
        (lambda path: path.symlink_to("/gone/x.pth"), "is a link to /gone/x.pth, which is not"),
    ],
)
@pytest.mark.parametrize("given", ["x.pth", "x"])
def test_a_checkpoint_that_is_no_file_is_not_called_missing(
    tmp_path: Path, given: str, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(given, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: b"hello", id="text"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="half"),
        pytest.param(lambda whole: whole[:-30], id="without its end"),
        pytest.param(lambda whole: bytes(1000), id="zeros"),
        pytest.param(lambda whole: pickle.dumps({"epoch": 3}), id="plain pickle"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_named(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"w": torch.randn(1000)})
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged or no checkpoint") as caught:
        load_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .*none\.pth; check its name"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder where a checkpoint was expected"):
        load_checkpoint(tmp_path)


def test_other_objects_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth holds a list where a dict was expected"):
        load_checkpoint(tmp_path / "list.pth")


def test_disk_full_leaves_the_old_checkpoint(
    tmp_path: Path, files_of_at_most: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"w": torch.ones(10)})
    message = r"a\.pth could not be written: File too large"
    with files_of_at_most(65536), pytest.raises(CheckpointError, match=message):
        save_checkpoint(path, {"w": torch.zeros(100_000)})
    assert torch.equal(load_checkpoint(path)["w"], torch.ones(10))
    assert files_in(tmp_path) == ["a.pth"]


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError,
        match=r"file/a\.pth could not be written: File exists; .*/file should be a folder",
    ):
        save_checkpoint(tmp_path / "file" / "a.pth", {})


def test_failing_rename_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"w": torch.ones(2)})

    def fail(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CheckpointError, match="could not be written: Input/output error"):
        save_checkpoint(path, {"w": torch.zeros(2)})
    assert torch.equal(load_checkpoint(path)["w"], torch.ones(2))
    assert files_in(tmp_path) == ["a.pth"]


def test_program_errors_are_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(tmp_path / "a.pth", {"f": lambda: None})
    assert files_in(tmp_path) == []


SAVE_FOREVER = """
import itertools, sys, torch
from utils.checkpoint import save_checkpoint
for number in itertools.count():
    save_checkpoint(sys.argv[1], {"w": torch.full((2_000_000,), float(number))})
    print(number, flush=True)
"""


def test_kill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    command = [sys.executable, "-c", SAVE_FOREVER, str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        # The next save has begun once its temporary file is there.
        while not list(tmp_path.glob(".a.pth.*.tmp")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    weights = load_checkpoint(path)["w"]
    assert weights.shape == (2_000_000,)
    assert weights.min() == weights.max() >= 4


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrapper", [None, "model_state", "model_state_dict", "state_dict", "model"]
)
@pytest.mark.parametrize("prefix", [True, False])
def test_model_state_is_found_wrapped_and_prefixed(wrapper: str | None, prefix: bool) -> None:
    state = {"body.a": torch.ones(1), "cls.b": torch.zeros(2)}
    stored = prefixed(state) if prefix else state
    checkpoint = stored if wrapper is None else {wrapper: stored, "epoch": 3}
    found = model_state(checkpoint)
    assert list(found) == list(state)
    assert all(found[name] is state[name] for name in state)


def test_prefix_stays_where_only_some_names_carry_it() -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(model_state(state)) == ["module.a", "b"]


@pytest.mark.parametrize("checkpoint", [{}, {"epoch": 3}, {"model_state": {"w": 3}}])
def test_checkpoint_without_a_network_is_refused(checkpoint: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="holds no network"):
        model_state(checkpoint)


def test_load_model_state_copies_every_value() -> None:
    source, target = Network(), Network()
    with torch.no_grad():
        source.bn1.weight.fill_(3)
    load_model_state(target, source.state_dict(), "a.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize("given", [True, False])
def test_batch_counters_may_differ(given: bool) -> None:
    model = Network()
    state = Network().state_dict()
    if given:
        state["bn2.num_batches_tracked"] = torch.tensor(3)
    else:
        del state["bn1.num_batches_tracked"]
    load_model_state(model, state, "a.pth")
    assert torch.equal(model.cls.cls.weight, state["cls.cls.weight"])


def refusal(model: nn.Module, state: dict[str, Tensor]) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_model_state(model, state, "a.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was changed"
    message = str(caught.value)
    assert message.startswith("a.pth is not of this network: ")
    assert len(message.splitlines()) == 1
    return message


def test_standard_classifier_is_recognised() -> None:
    message = refusal(Network(), Network(bias=True).state_dict())
    assert "unexpected (1): cls.cls.bias" in message
    assert message.endswith("; it was trained with --classifier standard")
    message = refusal(Network(bias=True), Network().state_dict())
    assert "missing (1): cls.cls.bias" in message
    assert message.endswith("; it was trained with --classifier cosine")


def test_other_number_of_classes_is_recognised() -> None:
    message = refusal(Network(), Network(classes=5).state_dict())
    assert "other shape (1): cls.cls.weight [5, 4, 1, 1] for [3, 4, 1, 1]" in message
    assert "; it was trained with another number of classes, so name the --dataset" in message


def test_other_backbone_is_recognised() -> None:
    deep = {f"body.mod4.block{block}.w": torch.ones(1) for block in range(7, 24)}
    state = Network().state_dict()
    message = refusal(Network(), state | deep)
    assert "unexpected (17): body.mod4.block7.w" in message
    assert "and 14 more" in message
    assert message.endswith("; it was trained with --backbone resnet101")
    deeper = {f"body.mod4.block{block}.w": torch.ones(1) for block in range(7, 37)}
    message = refusal(Network(), state | deeper)
    assert message.endswith("; it was trained with --backbone resnet152")


def test_foreign_network_is_refused_without_a_guess() -> None:
    message = refusal(Network(), {"conv.weight": torch.ones(1)})
    assert "missing (5): bn1.weight, bn1.bias, bn1.running_mean and 2 more" in message
    assert message.endswith("; unexpected (1): conv.weight")
