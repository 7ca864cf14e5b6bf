"""OSNet, the omni-scale network for re-identification, with and without instance normalization.

OSNet and OSNet-IBN are of Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019 (section
3, figures 3 and 4, table 1); OSNet-AIN is of Zhou et al., "Learning Generalisable Omni-Scale Representations for Person
Re-Identification", TPAMI 2021 (section 4).  Modules have the names that published weights use
(``conv2.0.conv2b.1.bn.weight``), so that these load unchanged.  Only the layers before the pooling are here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn

from reid.errors import ConfigError, unknown_name

STEM, STAGES = 64, (256, 384, 512)  # channels at width 1.0: after the 7x7 stem, of conv2, conv3, conv4
SQUEEZE = 4  # a block works at a quarter of its output channels
GATE_REDUCTION = 16  # section 3.2: hidden units of the gate are channels / 16
# Where the two blocks of conv2, conv3 and conv4 have an instance norm: nowhere (""), "after" the shortcut is added, or
# "inside" the residual, as the search of the TPAMI paper found it.
VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "plain": (("", ""), ("", ""), ("", "")),
    "ibn": (("after", "after"), ("", ""), ("", "")),
    "ain": (("inside", "inside"), ("", "inside"), ("inside", "")),
}
instance_norm = partial(nn.InstanceNorm2d, affine=True)


class ConvNorm(nn.Module):
    """Convolution without bias, a norm and, unless ``linear``, ReLU: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        linear: bool = False,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = norm(outputs)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.linear else x.relu()


class LiteConv3x3(nn.Module):
    """Lite 3x3 (figure 3b): a linear 1x1 convolution, one 3x3 filter a channel, BatchNorm and ReLU; same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv2(self.conv1(x)))
        return out.relu()


class ChannelGate(nn.Module):
    """Unified aggregation gate (equation 3): weights each channel of each image; all streams of a block share it."""

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

    Stream t = 1..4 covers (2t + 1) x (2t + 1) positions, hence "omni-scale".

    Args:
        inputs: C.
        outputs: C'.
        instance: Where the block has an instance norm, as in ``VARIANTS``.
    """

    def __init__(self, inputs: int, outputs: int, instance: str = "") -> None:
        super().__init__()
        middle = outputs // SQUEEZE
        self.conv1 = ConvNorm(inputs, middle)
        self._add_streams(middle)
        self.gate = ChannelGate(middle)
        inside = instance == "inside"  # the instance norm stands in place of the BatchNorm of the residual
        self.conv3 = ConvNorm(middle, outputs, linear=True, norm=nn.Identity if inside else nn.BatchNorm2d)
        self.downsample = None if inputs == outputs else ConvNorm(inputs, outputs, linear=True)
        self.IN = instance_norm(outputs) if instance else None
        self.inside = inside

    def _add_streams(self, channels: int) -> None:
        self.conv2a = LiteConv3x3(channels)  # not in a Sequential, because of its name in published weights
        self.conv2b = _build_stream(channels, 2)
        self.conv2c = _build_stream(channels, 3)
        self.conv2d = _build_stream(channels, 4)

    def _streams(self) -> Iterable[nn.Module]:
        return self.conv2a, self.conv2b, self.conv2c, self.conv2d

    def forward(self, x: Tensor) -> Tensor:
        middle = self.conv1(x)
        first, *others = self._streams()
        fused = self.gate(first(middle))
        for stream in others:
            fused = fused + self.gate(stream(middle))
        residual = self.conv3(fused)
        if self.IN is not None and self.inside:
            residual = self.IN(residual)
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        out: Tensor = shortcut + residual
        if self.IN is not None and not self.inside:
            out = self.IN(out)
        return out.relu()


class ListedBlock(OmniScaleBlock):
    """The same block with the key names of OSNet-AIN: ``conv2.1.layers.0``."""

    def _add_streams(self, channels: int) -> None:
        streams = (nn.Sequential() for _ in range(4))
        self.conv2 = nn.ModuleList(streams)
        for length, stream in enumerate(self.conv2, 1):
            stream.add_module("layers", _build_stream(channels, length))

    def _streams(self) -> Iterable[nn.Module]:
        return self.conv2


class OSNet(nn.Module):
    """OSNet up to its feature map, which has ``channels`` channels.

    Args:
        width: Multiplies the channels of every layer; 0.25, 0.5, 0.75 and 1.0 are published.
        variant: A name in ``VARIANTS``; the stem of all but "plain" has an instance norm too.

    Raises:
        ConfigError: If the width is too small or the variant is not known.
    """

    def __init__(self, width: float = 1.0, variant: str = "plain") -> None:
        stem, *stages = (round(width * channels) for channels in (STEM, *STAGES))
        if stages[0] // SQUEEZE < GATE_REDUCTION or any(c % SQUEEZE for c in stages):
            raise ConfigError(f"OSNet: expected a width of 0.25 or more (0.25, 0.5, 0.75, 1.0), got {width}")
        if variant not in VARIANTS:
            raise ConfigError(unknown_name("variant of OSNet", variant, VARIANTS))
        super().__init__()
        self.conv1 = ConvNorm(3, stem, kernel=7, stride=2, norm=nn.BatchNorm2d if variant == "plain" else instance_norm)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        block = ListedBlock if variant == "ain" else OmniScaleBlock
        inputs = stem
        for number, (outputs, (first, second)) in enumerate(zip(stages, VARIANTS[variant], strict=True), 2):
            stage = nn.Sequential(block(inputs, outputs, first), block(outputs, outputs, second))
            self.add_module(f"conv{number}", stage)
            inputs = outputs
            if number == 4:
                continue
            if variant == "ain":
                self.add_module(f"pool{number}", _build_transition(outputs))
            else:
                stage.append(_build_transition(outputs))
        self.conv5 = ConvNorm(inputs, inputs)
        self.channels = inputs
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the feature map (B, ``channels``, H/16, W/16) of normalised images (B, 3, H, W) float."""
        for layer in self.children():
            images = layer(images)
        return images


def _build_stream(channels: int, length: int) -> nn.Sequential:
    return nn.Sequential(*(LiteConv3x3(channels) for _ in range(length)))


def _build_transition(channels: int) -> nn.Sequential:
    """A 1x1 convolution and 2x2 average pooling (table 1)."""
    return nn.Sequential(ConvNorm(channels, channels), nn.AvgPool2d(2))


def _initialise(module: nn.Module) -> None:
    """Initialise convolutions as He et al. do; BatchNorm starts with scale 1 and shift 0 by itself."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
