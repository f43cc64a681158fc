"""run.py with a network of three layers in the place of PAnS: `python tests/reliability/tiny.py`.

It has what resuming must not lose: running statistics, dropout and two outputs.
"""

import sys
from pathlib import Path

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
import build
import run
from modules.abn import InPlaceABN
from modules.classifier import Classifier
from modules.segmentation import TrainingLogits
from utils.logger import Logger


class TinyNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8, bias=False)
        self.norm = InPlaceABN(8, synchronised=True)
        self.dropout = nn.Dropout2d(0.5)
        self.cls = Classifier("cosine", 8, 13)

    def features(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(images)))

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        features = self.features(images)
        logits = self.cls(features)
        if not self.training:
            return logits
        return TrainingLogits(logits, self.cls.deep_supervision(features))


def tiny_network(*words: object, **flags: object) -> TinyNetwork:
    return TinyNetwork()


def main() -> int:
    build.build_model = tiny_network
    Logger.figure = lambda *_: None  # drawing takes longer than all the rest
    run.__file__ = __file__  # what `launch` starts in every process
    return run.main()


if __name__ == "__main__":
    sys.exit(main())
