"""Backbones of the ResNet family by name. A new one is a line here.

The command line reads this file, without torch, which takes seconds to import.
"""

from typing import NamedTuple


class Backbone(NamedTuple):
    """blocks: of mod2 to mod5. width: channels of mod1; mod5 has 32 times, the head 8 times them.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    blocks: tuple[int, int, int, int]
    width: int = 64


BACKBONES = {
    "resnet50": Backbone((3, 4, 6, 3)),
    "resnet101": Backbone((3, 4, 23, 3)),
    "resnet152": Backbone((3, 8, 36, 3)),
}
