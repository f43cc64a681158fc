"""Calls beside the program: their order, and what becomes of errors on either side."""

import threading
import time
from functools import partial

import pytest
import torch

from utils.background import Background, to_host


def fail(words):
    raise ValueError(words)


def run_two(first, second):
    with Background() as background:
        background.run(first)
        second(background)


def test_calls_run_in_order_in_another_thread():
    seen = []

    def slow(number):
        time.sleep(0.01 * (number == 0))
        seen.append((number, threading.get_ident()))

    with Background() as background:
        for number in range(4):
            background.run(partial(slow, number))
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_a_call_may_modify_tensors_made_in_inference_mode():
    with torch.inference_mode(), Background() as background:
        counts = torch.zeros(2)
        background.run(partial(counts.add_, 1))
    assert counts.tolist() == [1, 1]


def test_the_first_error_is_raised_and_nothing_runs_after_it():
    seen = []
    with pytest.raises(ValueError, match="first"):
        run_two(partial(fail, "first"), lambda thread: thread.run(partial(seen.append, "second")))
    assert seen == []


def test_the_error_of_the_last_call_is_raised():
    with pytest.raises(ValueError, match="last"):
        run_two(partial(fail, "last"), id)


def test_an_error_of_the_call_before_comes_before_the_programs():
    with pytest.raises(ValueError, match="of image 1"):
        run_two(partial(fail, "of image 1"), lambda _: fail("of image 2"))


def test_a_signal_waits_for_nothing():
    ended = threading.Event()

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_two(partial(ended.wait, 60), interrupt)
    assert not ended.is_set()
    ended.set()


def test_host_tensors_stay_on_the_host():
    tensor = torch.ones(3)
    assert to_host(tensor) is tensor
