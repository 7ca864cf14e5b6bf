"""MobileNetV2 as torchreid publishes it (Sandler et al., CVPR 2018), with the key names of its weights.

It differs from torchvision's network of that name: its first block begins with a 1x1 convolution as the others do, and
its layers have other names.  Only the layers before the pooling are here.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# table 2 of the paper, rows 2 to 8: layer, expansion, channels, blocks, stride of the first block
STAGES = (
    ("conv2", 1, 16, 1, 1),
    ("conv3", 6, 24, 2, 2),
    ("conv4", 6, 32, 3, 2),
    ("conv5", 6, 64, 4, 2),
    ("conv6", 6, 96, 3, 1),
    ("conv7", 6, 160, 3, 2),
    ("conv8", 6, 320, 1, 1),
)
STEM, TOP = 32, 1280  # channels after the first and the last convolution at width 1


class ConvNormReLU6(nn.Module):
    """Convolution without bias, BatchNorm, ReLU6: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.bn(self.conv(x)))


class InvertedResidual(nn.Module):
    """A block that widens, filters each channel and narrows; it is added to its input where sizes allow (figure 4d)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.conv1 = ConvNormReLU6(inputs, middle)
        self.dwconv2 = ConvNormReLU6(middle, middle, kernel=3, stride=stride, groups=middle)
        self.conv3 = nn.Sequential(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(self.dwconv2(self.conv1(x)))
        return x + out if self.residual else out


def mobilenet_layers(width: float) -> tuple[dict[str, nn.Module], int]:
    """Build the layers of a MobileNetV2 with random weights.

    Args:
        width: Multiplies the channels; 1.0 and 1.4 are published.

    Returns:
        The layers by name, in the order in which they run, and the channels that come out of the last.
    """
    channels = int(STEM * width)
    layers: dict[str, nn.Module] = {"conv1": ConvNormReLU6(3, channels, kernel=3, stride=2)}
    for name, expansion, base, count, stride in STAGES:
        blocks = []
        for number in range(count):
            blocks.append(InvertedResidual(channels, int(base * width), expansion, 1 if number else stride))
            channels = int(base * width)
        layers[name] = nn.Sequential(*blocks)
    top = int(TOP * max(width, 1.0))
    layers["conv9"] = ConvNormReLU6(channels, top)
    return layers, top
