"""What holds for every test."""

import pytest
from tensorboard.summary.writer import event_file_writer


@pytest.fixture(scope="session", autouse=True)
def event_files_in_order() -> None:
    """Event files of one second and process sort by this number as text: 10 would precede 9."""
    event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)
