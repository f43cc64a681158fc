"""Bad checkpoints to resume from: one clear line each; and corrupt input to the reader."""

import io
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from utils.errors import PansError

RUNS = int(os.environ.get("FUZZ_RUNS", "200"))


def changed(**values: Any) -> Any:
    return lambda state: {**state, **values}


def without(name: str) -> Any:
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_weights(weights: torch.Tensor) -> Any:
    return lambda state: {
        **state,
        "model_state": {**state["model_state"], "cls.cls.weight": weights},
    }


BAD_STATES = {
    "epoch is a word": (changed(epoch="two"), "a whole number as epoch, got 'two'"),
    "epoch is negative": (changed(epoch=-1), "a whole number as epoch, got -1"),
    "epoch is a fraction": (changed(epoch=0.5), "a whole number as epoch, got 0.5"),
    "no epoch": (without("epoch"), "a whole number as epoch, got None"),
    "iteration is true": (changed(iteration=True), "a whole number as iteration, got True"),
    "iteration is far off": (changed(iteration=999), "is at step 999 and epoch 2"),
    "world size is a list": (changed(world_size=[]), "a whole number as world_size"),
    "other world size": (changed(world_size=3), "3 processes there, 1 here"),
    "steps are a word": (changed(steps_per_epoch="x"), "a whole number as steps_per_epoch"),
    "other data": (changed(steps_per_epoch=5), "5 steps an epoch there, 4 here"),
    "no options": (without("options"), "tells no options of its run"),
    "options are a list": (changed(options=[]), "tells no options of its run"),
    "no optimizer": (without("optimizer_state"), "a state of training that does not fit"),
    "optimizer is empty": (changed(optimizer_state={}), "a state of training that does not fit"),
    "momentum of another network": (
        changed(optimizer_state={"state": {0: {"momentum_buffer": torch.ones(1)}}}),
        "a state of training that does not fit",
    ),
    "momentum is not finite": (
        lambda state: {
            **state,
            "optimizer_state": {
                "state": {
                    number: {
                        "momentum_buffer": torch.full_like(value["momentum_buffer"], torch.nan)
                    }
                    for number, value in state["optimizer_state"]["state"].items()
                }
            },
        },
        "a state of training that does not fit",
    ),
    "weights are not finite": (
        with_weights(torch.full((13, 4, 1, 1), torch.nan)),
        "values that are not finite, NaN or infinity: tensors (1): cls.cls.weight",
    ),
    "weights have no values": (
        with_weights(torch.empty(13, 4, 1, 1, device="meta")),
        "the checkpoint's cls.cls.weight is no plain tensor of real numbers",
    ),
    "weights are sparse": (
        with_weights(torch.ones(13, 4, 1, 1).to_sparse()),
        "the checkpoint's cls.cls.weight is no plain tensor of real numbers",
    ),
    "weights are complex": (
        with_weights(torch.ones(13, 4, 1, 1, dtype=torch.complex64)),
        "the checkpoint's cls.cls.weight is no plain tensor of real numbers",
    ),
    "momentum is sparse": (
        lambda state: {
            **state,
            "optimizer_state": {
                "state": {
                    number: {"momentum_buffer": value["momentum_buffer"].to_sparse()}
                    for number, value in state["optimizer_state"]["state"].items()
                }
            },
        },
        "a state of training that does not fit",
    ),
    "a list of data of another form": (
        changed(data={"train": torch.zeros(3, dtype=torch.uint8)}),
        "the list of train images cannot be read there",
    ),
    "no best score": (without("best_score"), "a state of training that does not fit"),
    "best score is a word": (changed(best_score="high"), "a state of training that does not fit"),
    "random state is cut": (
        changed(processes=[{"guard": {}, "random": {"cpu": torch.zeros(3, dtype=torch.uint8)}}]),
        "a state of training that does not fit",
    ),
    "unknown count": (
        changed(processes=[{"guard": {"x": 1}, "random": {}}]),
        "a state of training that does not fit",
    ),
    "no network": (without("model_state"), "holds no network"),
    "another architecture": (
        changed(model_state={"other": torch.ones(1)}),
        "is not of this network: missing",
    ),
    "other classes": (
        lambda state: {
            **state,
            "model_state": {**state["model_state"], "cls.cls.weight": torch.ones(9, 4, 1, 1)},
        },
        "other shape (1): cls.cls.weight [9, 4, 1, 1] for [13, 4, 1, 1]",
    ),
}


@pytest.mark.parametrize(("change", "words"), BAD_STATES.values(), ids=BAD_STATES)
def test_bad_states_end_in_one_line(runs: Any, unbroken: Any, change: Any, words: str) -> None:
    save_checkpoint(runs.checkpoints / "x.pth", change(unbroken.state()))
    with pytest.raises(PansError) as caught:
        runs.fit()
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def whole() -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.arange(6.0), "epoch": 3, "options": {"lr": 0.1}}, file)
    return file.getvalue()


WHOLE = whole()


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda at, new, end: (WHOLE[:at] + new + WHOLE[at + len(new) :])[:end],
        st.integers(0, len(WHOLE)),
        st.binary(max_size=8),
        st.integers(0, len(WHOLE) + 8),
    )
)
@settings(max_examples=RUNS, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_corrupt_input_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "corrupt.pth"
    path.write_bytes(content)
    try:
        end = load_checkpoint(path)
    except CheckpointError as error:
        end = error
    assert isinstance(end, dict) or len(str(end).splitlines()) == 1
