"""Loader processes and signals: a run that is told to end still needs them for its last step."""

import os
import signal
import threading

from utils.interruption import ENDING_SIGNALS, SAVING_SIGNAL
from utils.parent import end_with_parent


def only_parent_ends(worker: int) -> None:
    """Have this loader process ignore signals to a run, and SIGTERM from anyone but its parent.

    A terminal, SLURM and torch's launcher send them to the whole group of processes. It ends with
    its parent, however that ends.
    """
    end_with_parent()
    for number in (*ENDING_SIGNALS, SAVING_SIGNAL):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
