"""Loader processes and signals: a run that is told to end still needs them for its last step."""

import os
import signal
import threading


def only_parent_ends(worker: int) -> None:
    """Have this loader process ignore SIGINT, and SIGTERM from anyone but its parent.

    A terminal, SLURM and torch's launcher send both to the whole group of processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
