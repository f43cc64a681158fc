"""How loader workers react to signals and to a lack of file descriptors."""

import multiprocessing.queues
import os
import signal
import threading

from utils.interruption import ENDING_SIGNALS, SAVING_SIGNAL
from utils.parent import end_with_parent


def prepare_worker(worker: int) -> None:
    """Initialise a loader worker; it will exit with its parent, however that ends."""
    end_with_parent()
    only_parent_ends()
    # If a sample cannot be sent (too many open files), the program would wait for it forever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, sample: os._exit(1)
    )


def only_parent_ends() -> None:
    """Ignore signals that are meant for the run, and SIGTERM from anyone but the parent.

    A terminal, SLURM and torch's launcher send signals to the whole process group, and a run that
    is told to stop still needs its loader for the last step.
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
