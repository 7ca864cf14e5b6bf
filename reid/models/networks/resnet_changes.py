"""ResNets as re-identification uses them, with the changes that published networks made to them.

A change keeps every key name that it does not have to touch, so that published weights load.  Which project made
which change stands in :mod:`reid.models.weights.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, unknown_name
from reid.models.networks.resnet import RESNETS, ResNet

BOTTLENECK_CHANNELS = 2048  # after the last stage of the ResNets with bottleneck blocks


class InstanceBatchNorm(nn.Module):
    """IBN-a (Pan et al., "Two at Once", ECCV 2018, figure 3b): (B, C, H, W) -> the same shape.

    The first half of the channels is normalised for each image by itself, the other half by BatchNorm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.IN = nn.InstanceNorm2d(self.first, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.first)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.IN(x[:, : self.first]), self.BN(x[:, self.first :])), 1)


class InstanceNormAfterSum(nn.Module):
    """IBN-b (Pan et al., figure 3c): the sum of a block and its shortcut has an instance norm before its ReLU.

    The layers of ``block``, of either class, keep their names; ``IN`` is added.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, layer in block.named_children():
            self.add_module(name, layer)
        convolutions = [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]
        self.depth = len(convolutions)
        self.IN = nn.InstanceNorm2d(convolutions[-1].out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            y = y.relu() if number < self.depth else y
        shortcut = self.get_submodule("downsample")(x) if "downsample" in self._modules else x
        out: Tensor = self.IN(y + shortcut)
        return out.relu()


class NonLocal(nn.Module):
    """Non-local block (Wang et al., CVPR 2018, equations 1, 4 and 6): (B, C, H, W) -> the same shape.

    To each of the N positions i it adds W(sum over positions j of theta_i . phi_j g_j / N).  The published re-ID
    networks use ``inner`` = 1 channel.  A new block changes nothing, because the BatchNorm in W starts with scale 0.
    """

    def __init__(self, channels: int, inner: int = 1) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), norm)

    def forward(self, x: Tensor) -> Tensor:
        g, theta, phi = (layer(x).flatten(2) for layer in (self.g, self.theta, self.phi))  # (B, inner, HW)
        # phi and g first: a matrix (inner, inner) takes less memory than one of positions by positions
        summary = g @ phi.transpose(1, 2) / g.shape[2]
        attended = (summary @ theta).unflatten(2, x.shape[2:])
        out: Tensor = x + self.W(attended)
        return out


def build_resnet(name: str, changes: Iterable[str] = ()) -> ResNet:
    """Build a ResNet with random weights and some changes.

    Without "coarse" its last stage keeps its resolution (stride 1), which is worth a few points of mAP
    (Luo et al., "Bag of Tricks", CVPRW 2019, section 3.5): its feature map is (B, C, H/16, W/16).

    Args:
        name: A name in ``RESNETS``.
        changes: Names in ``CHANGES``.

    Raises:
        ConfigError: If a change is not known, or this ResNet cannot have it.

    Example:
        >>> net = build_resnet("resnet18", ["ibn"])
        >>> type(net.layer1[0].bn1).__name__, type(net.layer4[0].bn1).__name__
        ('InstanceBatchNorm', 'BatchNorm2d')
    """
    changes = tuple(changes)
    if len(set(changes)) != len(changes):
        raise ConfigError(
            f"{name}: expected each change once, got {len(changes)} of {len(set(changes))} different ones"
        )
    net = RESNETS[name]()
    for module in net.get_submodule("layer4").modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    for change in changes:
        if change not in CHANGES:
            raise ConfigError(unknown_name(f"change of {name}", change, CHANGES))
        CHANGES[change](net)
    return net


def _use_ibn_a(net: Any) -> None:
    """Put IBN-a in place of the first BatchNorm of every block, but not in the last stage."""
    for stage in (net.layer1, net.layer2, net.layer3):
        for block in stage:
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)


def _use_ibn_b(net: Any) -> None:
    """Use IBN-b: an instance norm for the stem's BatchNorm, and one at the end of each of the first two stages."""
    net.bn1 = nn.InstanceNorm2d(net.bn1.num_features, affine=True)
    for stage in (net.layer1, net.layer2):
        stage[-1] = InstanceNormAfterSum(stage[-1])


def _add_non_local(net: Any) -> None:
    """Add a non-local block after each of the last 2 blocks of stage 2 and the last 3 (ResNet-101: 9) of stage 3.

    They stand where AGW has them (Ye et al., "Deep Learning for Person Re-identification", TPAMI 2021).
    """
    if net.fc.in_features != BOTTLENECK_CHANNELS:
        raise ConfigError("nonlocal: expected a ResNet with bottleneck blocks, resnet50 or resnet101")
    net.layer2 = _with_attention(net.layer2, 2, 512)
    net.layer3 = _with_attention(net.layer3, 3 if len(net.layer3) == 6 else 9, 1024)


def _with_attention(stage: nn.Sequential, count: int, channels: int) -> nn.Sequential:
    """The stage with ``attention0``, ``attention1``, ... after its last ``count`` blocks."""
    layers = nn.Sequential()
    for number, block in enumerate(stage):
        layers.add_module(str(number), block)
        if number >= len(stage) - count:
            layers.add_module(f"attention{number - len(stage) + count}", NonLocal(channels))
    return layers


def _pool_with_ceil(net: Any) -> None:
    """Let the stem's pooling start at the image's corner and reach beyond its end, instead of a little beyond both."""
    net.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _remove_stem_relu(net: Any) -> None:
    """Remove the ReLU between the stem's BatchNorm and its pooling."""
    net.relu = nn.Identity()


def _halve_last_resolution(net: Any) -> None:
    """Let the last stage halve its resolution, as for ImageNet: (B, C, H/32, W/32)."""
    first = net.layer4[0]
    (first.conv2 if net.fc.in_features == BOTTLENECK_CHANNELS else first.conv1).stride = (2, 2)
    first.downsample[0].stride = (2, 2)


CHANGES: dict[str, Callable[[Any], None]] = {
    "ibn": _use_ibn_a,
    "ibnb": _use_ibn_b,
    "nonlocal": _add_non_local,
    "ceil": _pool_with_ceil,
    "bare": _remove_stem_relu,
    "coarse": _halve_last_resolution,
}
