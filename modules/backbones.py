"""Backbones of the ResNet family by name. A new one is a line here.

The command line reads this file, without torch, which takes seconds to import.
"""

BLOCKS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Blocks of mod2 to mod5. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016."""
