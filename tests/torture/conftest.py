from pathlib import Path

import pytest

from dataset.demo.writer import write_demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("torture")
    write_demo(root, train=8, validation=2, test=2, size=(96, 64), seed=1)
    return root
