"""Backbones of the ResNet family by name; to add one, add a line.

Without torch, because the command line reads this file and torch takes seconds to import.
"""

BLOCKS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Blocks of mod2 to mod5. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016."""
