"""Loader processes, made ready for what signals and shortages do to them."""

import multiprocessing.queues
import os
import signal
import threading

from utils.interruption import ENDING_SIGNALS, SAVING_SIGNAL
from utils.parent import end_with_parent


def prepare_worker(worker: int) -> None:
    """What every loader process does first; it ends with its parent, however that ends."""
    end_with_parent()
    only_parent_ends()
    # A sample that can't be sent, for want of open files, would leave the program waiting for it.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, sample: os._exit(1)
    )


def only_parent_ends() -> None:
    """Have this loader process ignore signals to a run, and SIGTERM from anyone but its parent.

    A terminal, SLURM and torch's launcher send them to the whole group of processes, and a run
    that is told to end still needs its loader for the last step.
    """
    for number in (*ENDING_SIGNALS, SAVING_SIGNAL):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
