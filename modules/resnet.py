"""The dilated ResNet body."""

from collections import OrderedDict

from torch import Tensor, nn

from modules.abn import NormFactory
from modules.backbones import BACKBONES
from modules.residual import Bottleneck

# Output stride -> the (stride, dilation) of mod2 to mod5 (Yu et al., "Dilated Residual Networks").
STRIDES_AND_DILATIONS = {
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
}


class ResNet(nn.Module):
    """A ResNet of `BACKBONES` whose last stages are dilated instead of strided.

    images (N, 3, H, W) -> mod4's (N, 1024, h, w) and mod5's (N, 2048, h, w) output, where h and w
    are H and W over the output stride, rounded up. At output stride 16 only mod5 is dilated.
    `plain` and `checkpoint_activations`: see `Bottleneck`.

    Attributes:
        out_channels: channels of mod4 and mod5; the numbers above are for a width of 64.
    """

    def __init__(
        self,
        backbone: str,
        output_stride: int,
        norm: NormFactory,
        *,
        plain: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        counts, width = BACKBONES[backbone]
        self.mod1 = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
                bn1=norm(width),
                pool1=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        in_channels = width
        stages, channels = [], []
        shapes = zip(counts, STRIDES_AND_DILATIONS[output_stride], strict=True)
        for blocks, (stride, dilation) in shapes:
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(1, blocks + 1):
                block_stride = stride if block == 1 else 1
                stage[f"block{block}"] = Bottleneck(
                    in_channels,
                    width,
                    block_stride,
                    dilation,
                    norm,
                    plain=plain,
                    checkpoint_activations=checkpoint_activations,
                )
                in_channels = width * Bottleneck.expansion
            stages.append(nn.Sequential(stage))
            channels.append(in_channels)
            width *= 2
        self.mod2, self.mod3, self.mod4, self.mod5 = stages
        self.out_channels = channels[2], channels[3]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mod4 = self.mod4(self.mod3(self.mod2(self.mod1(images))))
        return mod4, self.mod5(mod4)
