"""What holds for every test."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from tensorboard.summary.writer import event_file_writer


@pytest.fixture(scope="session", autouse=True)
def event_files_in_order() -> None:
    """Event files of one second and process sort by this number as text: 10 would precede 9."""
    event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)


@pytest.fixture
def files_of_at_most() -> Callable[[int], AbstractContextManager[None]]:
    """With it every write beyond so many bytes of a file fails, as on a full disk.

    For a part of a test alone: what pytest prints may go into a file too, and a longer one.
    """

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
