"""Stopping in good order: signals and the clock are answered between two steps.

A process that is told to end finishes its step, saves and leaves; one that is only warned, by
SIGUSR1, saves and goes on. Saving takes all processes, so that they must answer at the same step:
they agree by an all-reduce of three numbers between CPUs, about once a second. Neither the device
nor the steps in between wait for it.
"""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

COMMAND_VARIABLE = "PANS_COMMAND"
"""Where `utils.distributed.launch` leaves the command that its user typed."""

SIGNAL_BASE = 128
"""Shells report a process that a signal ended as this number plus the signal's."""

ENDING_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGXCPU,
    signal.SIGUSR2,
)
"""Those after which a run saves and leaves."""

SAVING_SIGNAL = signal.SIGUSR1
"""That after which it saves and goes on."""

STDERR = 2
_SECONDS_BETWEEN_CHECKS = 1.0
_MOST_STEPS_BETWEEN_CHECKS = 100


class Interrupted(BaseException):
    """A signal has asked this run to end; `report` tells what was saved and how to go on.

    It may come anywhere, and must pass where any `Exception` means that a file is damaged.
    """

    def __init__(self, signal_number: int, report: str = "") -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}" + (f": {report}" if report else ""))
        self.exit_code = SIGNAL_BASE + signal_number


class WaitBrokenOff(BaseException):
    """A signal has come while the next item of `Interruption.breaking_off` was waited for."""


@contextmanager
def answering_broken_waits(answer: Callable[[], None]) -> Iterator[None]:
    """Call `answer`, which saves and leaves, where a signal breaks off a wait in the body."""
    try:
        yield
    except WaitBrokenOff:
        answer()


class Demand(NamedTuple):
    """What the processes have agreed to do now; `stop` is the number of a signal, or 0."""

    save: bool
    stop: int


T = TypeVar("T")

_NOTHING = Demand(save=False, stop=0)


def heeded_signals() -> list[signal.Signals]:
    """`ENDING_SIGNALS`, but for the SIGHUP that nohup has turned off."""
    is_off = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [one for one in ENDING_SIGNALS if one != signal.SIGHUP or not is_off]


@contextmanager
def handling(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Handle signals by these handlers inside the body alone."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_at_once() -> AbstractContextManager[None]:
    """Let the ending signals raise `Interrupted` wherever the program is, as SIGINT does."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    ending = [number for number in heeded_signals() if number != signal.SIGINT]
    return handling(dict.fromkeys(ending, leave))


class Interruption:
    """Holds signals back inside a `with`, and tells at every step what is to be done.

    Args:
        checkpoint_minutes: how long after the last checkpoint another one is due.
        group: the processes, on a backend for CPUs; None for a single one.
    """

    def __init__(self, checkpoint_minutes: float, group: dist.ProcessGroup | None) -> None:
        self._seconds_between_saves = 60 * checkpoint_minutes
        self._group = group
        self._signal = 0
        self._save_is_asked = False
        self._handling: AbstractContextManager[None] = nullcontext()
        self._may_break_off = False
        self._saved_at = self._checked_at = time.monotonic()
        self._steps_left = self._steps_between = 1

    def __enter__(self) -> "Interruption":
        self.saved()
        numbers = [*heeded_signals(), SAVING_SIGNAL]
        self._handling = handling(dict.fromkeys(numbers, self._remember))
        self._handling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handling.__exit__(*error)
        if error[0] is None and self._signal:
            raise Interrupted(self._signal)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            signal.default_int_handler(number, frame)  # whoever asks twice does not want to wait
        if number == SAVING_SIGNAL:
            self._save_is_asked = True
        else:
            self._signal = self._signal or number
        name = signal.Signals(number).name
        with suppress(OSError):  # the terminal may be gone, of which SIGHUP tells
            # Not print: the signal may have come in the middle of one.
            os.write(STDERR, f"\n{name}: saving after this step\n".encode())
        if self._may_break_off and self._signal:
            raise WaitBrokenOff

    def breaking_off(self, items: Iterable[T]) -> Iterator[T]:
        """Gives the items; a signal need not wait for the next one, which may never come.

        Among several processes it does: they must answer at the same step.

        Raises:
            WaitBrokenOff: a signal has come meanwhile.
        """
        iterator = iter(items)
        while True:
            try:
                self._may_break_off = self._group is None
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._may_break_off = False
            yield item

    def saved(self) -> None:
        """A checkpoint was written just now."""
        self._saved_at = time.monotonic()
        self._save_is_asked = False

    def demand(self) -> Demand:
        """What all processes shall do now; each of them calls this equally often."""
        due = time.monotonic() - self._saved_at >= self._seconds_between_saves
        due = due or self._save_is_asked
        if self._group is None:
            return Demand(bool(due or self._signal), self._signal)
        self._steps_left -= 1
        return _NOTHING if self._steps_left else self._agree(due)

    def _agree(self, due: bool) -> Demand:
        now = time.monotonic()
        seconds_per_step = (now - self._checked_at) / self._steps_between
        self._checked_at = now
        agreed = torch.tensor([due, self._signal, seconds_per_step], dtype=torch.float64)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self._group)
        save, stop, seconds_per_step = agreed.tolist()
        # From numbers that all share, so that all of them come back at the same step.
        steps = int(_SECONDS_BETWEEN_CHECKS / max(seconds_per_step, 1e-9))
        self._steps_left = self._steps_between = min(max(steps, 1), _MOST_STEPS_BETWEEN_CHECKS)
        return Demand(bool(save or stop), int(stop))


def command_to_continue() -> str:
    """What to type to go on with this run."""
    command = os.environ.get(COMMAND_VARIABLE)
    if command is None and "TORCHELASTIC_RUN_ID" in os.environ:
        return "the same torchrun command"
    return command or typed_command(sys.argv)


def typed_command(argv: list[str]) -> str:
    """The command line without --restart, which would begin anew."""
    return shlex.join(["python", *(word for word in argv if word != "--restart")])
