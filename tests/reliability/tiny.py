"""run.py with a ResNet's stem instead of ResNet-50: `python tests/reliability/tiny.py`."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))
import run
from modules.backbones import BACKBONES, Backbone
from modules.segmentation import SegmentationModel, build_model
from utils.logger import Logger

# The stem and the head, which has 4 channels.
TINY = Backbone((0, 0, 0, 0), width=16)
# With a block a stage, by which weight files are told.
ONE_BLOCK = Backbone((1, 1, 1, 1), width=4)


def tiny_network(**settings: Any) -> SegmentationModel:
    with patch.dict(BACKBONES, resnet50=TINY):
        return build_model(**settings)


def main() -> int:
    BACKBONES["resnet50"] = TINY
    Logger.figure = lambda *_: None  # drawing takes longer than all the rest
    run.__file__ = __file__  # what `launch` starts in every process
    return run.main()


if __name__ == "__main__":
    sys.exit(main())
