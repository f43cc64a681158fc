"""The bottleneck block of ResNet with activated norms."""

from collections import OrderedDict
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from modules.abn import IDENTITY_SLOPE, LEAKY_SLOPE, NormFactory, statistics_left_alone
from modules.winograd import Conv3x3


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut (He et al., CVPR 2016, figure 5, right).

    (N, in_channels, H, W) -> (N, 4 * width, H / stride, W / stride). The 3x3 convolution has the
    stride. The sum goes through a leaky ReLU, so the last norms have no activation. The shortcut
    is projected if the shape changes. `plain`: see `Conv3x3`.

    With `checkpoint_activations`, training keeps only the block's input, and backward recomputes
    the rest (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016). This is exact:
    in-place norms overwrite the convolutions' outputs, never the block's input; nothing in a block
    is random; and only the first computation updates running statistics. Synchronised norms
    exchange their statistics again, in the same order on every process.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        norm: NormFactory,
        *,
        plain: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        out_channels = width * self.expansion
        self.convs = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, width, 1, bias=False),
                bn1=norm(width),
                conv2=Conv3x3(width, width, stride=stride, dilation=dilation, plain=plain),
                bn2=norm(width),
                conv3=nn.Conv2d(width, out_channels, 1, bias=False),
                bn3=norm(out_channels, slope=IDENTITY_SLOPE),
            )
        )
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.proj_conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.proj_bn = norm(out_channels, slope=IDENTITY_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.checkpoint_activations and self.training and torch.is_grad_enabled()):
            return self._compute(x)
        return checkpoint(
            self._compute,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), statistics_left_alone(self)),
        )

    def _compute(self, x: Tensor) -> Tensor:
        shortcut = self.proj_bn(self.proj_conv(x)) if self.projects else x
        # Backward of the last norm needs its output unchanged; without backward, the sum may
        # overwrite it.
        y = self.convs(x)
        return F.leaky_relu_(y + shortcut if y.requires_grad else y.add_(shortcut), LEAKY_SLOPE)
