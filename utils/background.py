"""Work for the CPU beside the program: the next image runs while this one is measured."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class Background:
    """Runs calls in a thread, in their order, one at a time and one behind at most.

    What a call raises is raised by the next `run`, or when the `with` is left.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._running: Future[None] | None = None

    def run(self, call: Callable[[], None]) -> None:
        """Wait for the call before, then begin this one."""
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
            # An error of the program's is later than what the call before it may have raised.
            if kind is None or issubclass(kind, Exception):
                self._wait()
        finally:
            self._thread.shutdown(wait=False)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the CPU's memory; from a GPU that is one copy, which is waited for."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
