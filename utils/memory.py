"""glibc allocator settings."""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next ones; elsewhere do nothing.

    By default it returns large blocks to the system at once, and every page of the next tensor
    costs a page fault: a tenth of a training step.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system or C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
