"""OSNet, the omni-scale network of Zhou et al., "Omni-Scale Feature Learning for Person
Re-Identification", ICCV 2019.

Written from the paper (section 3, figures 3 and 4, table 1).  Modules carry the names that published
OSNet weights use (``conv2.0.conv2b.1.bn.weight``), so that these load unchanged.  This file knows the
trunk only: pooling, the 512-wide fully connected layer and the classifier are the business of others.
"""

from __future__ import annotations

from torch import Tensor, nn

from reid.errors import ConfigError

STEM, STAGES = 64, (256, 384, 512)  # channels at width 1.0: after the 7x7 stem, of conv2, conv3, conv4
SQUEEZE = 4  # a block works at a quarter of its output channels
GATE_REDUCTION = 16  # section 3.2: hidden units of the gate are channels / 16


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm and, unless ``linear``, ReLU: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, linear: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.linear else x.relu()


class LiteConv3x3(nn.Module):
    """Lite 3x3 (figure 3b): a linear 1x1, then one 3x3 filter a channel, BatchNorm and ReLU; same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv2(self.conv1(x)))
        return out.relu()


class Gate(nn.Module):
    """Unified aggregation gate (equation 3): weighs each channel of each image; one for all streams."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // GATE_REDUCTION
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        summary = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        weight: Tensor = self.fc2(self.fc1(summary).relu())
        return x * weight.sigmoid()


class OmniScaleBlock(nn.Module):
    """Residual block (figure 4), C channels to C': four streams of 1 to 4 lite convolutions, gated and added.

    Stream t = 1..4 sees (2t + 1) x (2t + 1) places, hence "omni-scale".
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = outputs // SQUEEZE
        self.conv1 = ConvNorm(inputs, middle)
        self.conv2a = LiteConv3x3(middle)  # not in a Sequential: published weights name it so
        self.conv2b = nn.Sequential(*(LiteConv3x3(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LiteConv3x3(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LiteConv3x3(middle) for _ in range(4)))
        self.gate = Gate(middle)
        self.conv3 = ConvNorm(middle, outputs, linear=True)
        self.downsample = None if inputs == outputs else ConvNorm(inputs, outputs, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.conv1(x)
        fused = self.gate(self.conv2a(middle))
        for stream in (self.conv2b, self.conv2c, self.conv2d):
            fused = fused + self.gate(stream(middle))
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        out: Tensor = shortcut + self.conv3(fused)
        return out.relu()


class OSNet(nn.Module):
    """The trunk of OSNet: images (B, 3, H, W) float -> feature map (B, ``channels``, H/16, W/16).

    ``width`` multiplies the channels of every layer; 0.25, 0.5, 0.75 and 1.0 are the published ones.
    """

    def __init__(self, width: float = 1.0) -> None:
        stem, *stages = (round(width * channels) for channels in (STEM, *STAGES))
        if stages[0] // SQUEEZE < GATE_REDUCTION or any(c % SQUEEZE for c in stages):
            raise ConfigError(f"OSNet: expected a width of 0.25 or more (0.25, 0.5, 0.75, 1.0), got {width}")
        super().__init__()
        conv2, conv3, conv4 = stages
        self.conv1 = ConvNorm(3, stem, kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(stem, conv2, halve=True)
        self.conv3 = _stage(conv2, conv3, halve=True)
        self.conv4 = _stage(conv3, conv4, halve=False)
        self.conv5 = ConvNorm(conv4, conv4)
        self.channels = conv4
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float, normalised -> feature map (B, ``channels``, H/16, W/16)."""
        x = self.maxpool(self.conv1(images))
        x = self.conv4(self.conv3(self.conv2(x)))
        out: Tensor = self.conv5(x)
        return out


def _stage(inputs: int, outputs: int, *, halve: bool) -> nn.Sequential:
    """Two blocks and, with ``halve``, the transition: a 1x1 convolution and 2x2 average pooling (table 1)."""
    blocks = [OmniScaleBlock(inputs, outputs), OmniScaleBlock(outputs, outputs)]
    transition = [nn.Sequential(ConvNorm(outputs, outputs), nn.AvgPool2d(2))] if halve else []
    return nn.Sequential(*blocks, *transition)


def _initialise(module: nn.Module) -> None:
    """He initialisation of convolutions; BatchNorm starts at scale 1, shift 0 by itself."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
