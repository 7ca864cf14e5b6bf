"""ResNets with torchvision's names of layers, and thus its published weights, without importing torchvision.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; the bottleneck block has its stride in
the 3x3 convolution, as torchvision's has.  Importing torchvision imports its whole collection of models and torch's
compiler, which takes longer than anything else at start-up; a test compares these networks with it to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

CHANNELS = (64, 64, 128, 256, 512)  # of the stem and of the 3x3 convolutions of each stage, at width 1
CLASSES = 1000  # of the published classifier


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions: (B, C, H, W) -> (B, ``channels``, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution: (B, C, H, W) -> (B, 4 C', H / stride, W / stride).

    C' is ``channels``.
    """

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """A ResNet with its classifier: images (B, 3, H, W) float -> logits (B, 1000).

    The order in which layers are built and initialised is torchvision's too, so that a seed gives the same weights.

    Args:
        block: The class of its blocks.
        depths: How many blocks each of the four stages has.
        channels: Channels of the stem and of the 3x3 convolutions of each stage.
    """

    def __init__(self, block: Block, depths: Sequence[int], channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        stem, *stages = channels
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = stem
        for number, (depth, width) in enumerate(zip(depths, stages, strict=True), 1):
            self.add_module(f"layer{number}", _build_stage(block, inputs, width, depth, 1 if number == 1 else 2))
            inputs = width * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, 1000) of images (B, 3, H, W)."""
        *layers, classifier = self.children()
        x = images
        for layer in layers:
            x = layer(x)
        logits: Tensor = classifier(x.flatten(1))
        return logits


def _build_stage(block: Block, inputs: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    outputs = channels * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(inputs, channels, stride, downsample)
    return nn.Sequential(first, *(block(outputs, channels) for _ in range(depth - 1)))


def narrow_resnet18(width: float) -> ResNet:
    """Build a ResNet-18 with random weights and a fraction ``width`` of the channels in every layer.

    On a CPU a narrow network of plain convolutions gives more for its time than one of separable convolutions, whose
    many thin layers wait for memory (figures: ``demo/weights/README.md``).
    """
    depths = (2, 2, 2, 2)
    ResNet(BasicBlock, depths)  # draws the random numbers that version 0.1.0 drew first, so that seeds give its weights
    return ResNet(BasicBlock, depths, [int(channels * width) for channels in CHANNELS])


RESNETS: dict[str, Callable[[], ResNet]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet18_x0_25": partial(narrow_resnet18, 0.25),
    "resnet18_x0_375": partial(narrow_resnet18, 0.375),
    "resnet18_x0_5": partial(narrow_resnet18, 0.5),
}
