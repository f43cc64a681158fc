"""Backbones of the ResNet family by name; to add one, add a line.

Without torch, because the command line reads this file and torch takes seconds to import.
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
