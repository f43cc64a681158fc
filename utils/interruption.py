"""Graceful interruption: signals and the checkpoint timer are handled between two steps.

A process that is asked to end finishes its step, saves and exits; after SIGUSR1 it saves and
continues. Saving involves all processes, which must therefore act at the same step: they agree by
an all-reduce of three numbers between CPUs about once a second. Neither the device nor the other
steps wait for it.
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
"""The environment variable in which `utils.distributed.launch` stores the user's command."""

SIGNAL_BASE = 128
"""A shell's exit code for a process ended by signal n is this plus n."""

ENDING_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGXCPU,
    signal.SIGUSR2,
)
"""Signals after which a run saves and exits."""

SAVING_SIGNAL = signal.SIGUSR1
"""The signal after which a run saves and continues."""

STDERR = 2
_SECONDS_BETWEEN_CHECKS = 1.0
_MOST_STEPS_BETWEEN_CHECKS = 100


class Interrupted(BaseException):
    """A signal has stopped this run; `report` says what was saved and how to resume.

    Not an `Exception`, because it may be raised where any `Exception` means a damaged file.
    """

    def __init__(self, signal_number: int, report: str = "") -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}" + (f": {report}" if report else ""))
        self.exit_code = SIGNAL_BASE + signal_number


class WaitInterrupted(BaseException):
    """A signal arrived during the wait for the next item of `Interruption.interruptible`."""


@contextmanager
def handling_interrupted_waits(answer: Callable[[], None]) -> Iterator[None]:
    """Call `answer`, which saves and exits, if a signal interrupts a wait in the body."""
    try:
        yield
    except WaitInterrupted:
        answer()


class Request(NamedTuple):
    """What all processes agreed to do now; `stop` is the number of a signal, or 0."""

    save: bool
    stop: int


T = TypeVar("T")


def heeded_signals() -> list[signal.Signals]:
    """`ENDING_SIGNALS`, without SIGHUP if nohup has disabled it."""
    is_off = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [one for one in ENDING_SIGNALS if one != signal.SIGHUP or not is_off]


@contextmanager
def handling(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Install these signal handlers inside the body."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_at_once() -> AbstractContextManager[None]:
    """Make the ending signals raise `Interrupted` at once, as SIGINT does."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    ending = [number for number in heeded_signals() if number != signal.SIGINT]
    return handling(dict.fromkeys(ending, leave))


class Interruption:
    """Defers signals inside a `with` block, and decides at every step what to do.

    Args:
        checkpoint_minutes: time between checkpoints inside an epoch.
        group: the gloo group of all processes; None for a single one.
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
            signal.default_int_handler(number, frame)  # a second Ctrl-C does not wait
        if number == SAVING_SIGNAL:
            self._save_is_asked = True
        else:
            self._signal = self._signal or number
        name = signal.Signals(number).name
        with suppress(OSError):  # after SIGHUP the terminal may be gone
            # Not print, which is not reentrant.
            os.write(STDERR, f"\n{name}: saving after this step\n".encode())
        if self._may_break_off and self._signal:
            raise WaitInterrupted

    def interruptible(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; a signal interrupts the wait for the next one, which may never come.

        Not with several processes, which must act at the same step.

        Raises:
            WaitInterrupted: a signal arrived during the wait.
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
        """Restart the checkpoint timer."""
        self._saved_at = time.monotonic()
        self._save_is_asked = False

    def poll(self) -> Request:
        """What all processes do now; every process polls the same number of times."""
        due = time.monotonic() - self._saved_at >= self._seconds_between_saves
        due = due or self._save_is_asked
        if self._group is None:
            return Request(bool(due or self._signal), self._signal)
        self._steps_left -= 1
        return Request(save=False, stop=0) if self._steps_left else self._agree(due)

    def _agree(self, due: bool) -> Request:
        now = time.monotonic()
        seconds_per_step = (now - self._checked_at) / self._steps_between
        self._checked_at = now
        agreed = torch.tensor([due, self._signal, seconds_per_step], dtype=torch.float64)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self._group)
        save, stop, seconds_per_step = agreed.tolist()
        # Computed from shared numbers, so that all processes agree at the same steps.
        steps = int(_SECONDS_BETWEEN_CHECKS / max(seconds_per_step, 1e-9))
        self._steps_left = self._steps_between = min(max(steps, 1), _MOST_STEPS_BETWEEN_CHECKS)
        return Request(bool(save or stop), int(stop))


def command_to_continue() -> str:
    """The command that resumes this run."""
    command = os.environ.get(COMMAND_VARIABLE)
    if command is None and "TORCHELASTIC_RUN_ID" in os.environ:
        return "the same torchrun command"
    return command or typed_command(sys.argv)


def typed_command(argv: list[str]) -> str:
    """The command line without --restart, which would start from scratch."""
    return shlex.join(["python", *(word for word in argv if word != "--restart")])
