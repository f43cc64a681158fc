"""Background work on the CPU: the metrics of an image are computed while the next one runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class Background:
    """Runs calls in a thread, in order, with at most one pending.

    An exception of a call is raised by the next `run`, or at the end of the `with` block.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._running: Future[None] | None = None

    def run(self, call: Callable[[], None]) -> None:
        """Wait for the previous call, then start this one."""
        self._wait()
        self._running = self._thread.submit(torch.inference_mode()(call))

    def _wait(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            # An error of the pending call came before the program's own.
            if kind is None or issubclass(kind, Exception):
                self._wait()
        finally:
            self._thread.shutdown(wait=False)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU; waits for a GPU."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
