"""Loader processes, made ready for what signals and shortages do to them."""

import multiprocessing.queues
import os
import signal
import threading


def prepare_worker(worker: int) -> None:
    """What every loader process does first."""
    only_parent_ends()
    # A sample that can't be sent, for want of open files, would leave the program waiting for it.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, sample: os._exit(1)
    )


def only_parent_ends() -> None:
    """Have this loader process ignore SIGINT, and SIGTERM from anyone but its parent.

    A terminal, SLURM and torch's launcher send both to the whole group of processes, and a run
    that is told to end still needs its loader for the last step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
