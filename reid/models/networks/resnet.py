"""ResNets as re-identification uses them: torchvision's, and the changes that published networks made to it.

A change keeps every key name that it does not have to touch, so that published weights load.  Nothing here
knows which project made which change: that is the business of :mod:`reid.models.weights.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from reid.errors import ConfigError, unknown_name


def narrow_resnet18(width: float) -> Any:
    """torchvision's ResNet-18 with ``width`` of the channels in every layer, of random weights.

    On a CPU a narrow network of plain convolutions gives more for its time than one of separable
    convolutions, whose many thin layers wait for memory (figures: ``demo/weights/README.md``).
    """
    net: Any = models.resnet18(weights=None)
    stem, *stages = (int(channels * width) for channels in (64, 64, 128, 256, 512))
    net.conv1, net.bn1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem)
    net.inplanes = stem
    for stage, channels in enumerate(stages, 1):
        layers = net._make_layer(models.resnet.BasicBlock, channels, 2, stride=1 if stage == 1 else 2)
        setattr(net, f"layer{stage}", layers)
    net.fc = nn.Linear(stages[-1], net.fc.out_features)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


RESNETS: dict[str, Callable[[], Any]] = {
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "resnet101": models.resnet101,
    "resnet18_x0_25": partial(narrow_resnet18, 0.25),
    "resnet18_x0_375": partial(narrow_resnet18, 0.375),
    "resnet18_x0_5": partial(narrow_resnet18, 0.5),
}
WIDE = 2048  # channels after the last stage of the ResNets with bottleneck blocks


class InstanceBatchNorm(nn.Module):
    """IBN-a (Pan et al., "Two at Once", ECCV 2018, figure 3b): (B, C, H, W) -> the same size.

    The first half of the channels is normalised image by image, the other half by BatchNorm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.IN = nn.InstanceNorm2d(self.first, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.first)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.IN(x[:, : self.first]), self.BN(x[:, self.first :])), 1)


class InstanceAfter(nn.Module):
    """IBN-b (Pan et al., figure 3c): a block whose sum with its shortcut is normalised image by image, before its ReLU.

    The parts of ``block``, torchvision's of either kind, under the names that they have there, and ``IN`` besides.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        for name, part in block.named_children():
            self.add_module(name, part)
        convs = [part for name, part in block.named_children() if name.startswith("conv")]
        self.depth = len(convs)
        self.IN = nn.InstanceNorm2d(convs[-1].out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            y = y.relu() if number < self.depth else y
        shortcut = self.get_submodule("downsample")(x) if "downsample" in self._modules else x
        out: Tensor = self.IN(y + shortcut)
        return out.relu()


class NonLocal(nn.Module):
    """Non-local block (Wang et al., CVPR 2018, equations 1, 4 and 6): (B, C, H, W) -> the same size.

    Place i gets W(sum over places j of theta_i . phi_j g_j / places) added.  The published re-ID networks
    work with ``inner`` = 1 channel.  A fresh block changes nothing, because the BatchNorm in W starts at 0.
    """

    def __init__(self, channels: int, inner: int = 1) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), norm)

    def forward(self, x: Tensor) -> Tensor:
        g, theta, phi = (layer(x).flatten(2) for layer in (self.g, self.theta, self.phi))  # (B, inner, HW)
        # phi and g first: a matrix (inner, inner) instead of one of places by places
        summary = g @ phi.transpose(1, 2) / g.shape[2]
        answer = (summary @ theta).unflatten(2, x.shape[2:])
        out: Tensor = x + self.W(answer)
        return out


def build_resnet(name: str, changes: Iterable[str] = ()) -> Any:
    """torchvision's ResNet ``name`` with random weights and ``changes``, names in ``CHANGES``.

    Without "coarse" its last stage keeps its resolution (stride 1), which is worth a few points of mAP
    (Luo et al., "Bag of Tricks", CVPRW 2019, section 3.5): the feature map is (B, C, H/16, W/16).
    """
    net = RESNETS[name]()
    for module in net.layer4.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    for change in changes:
        if change not in CHANGES:
            raise ConfigError(unknown_name(f"change of {name}", change, CHANGES))
        CHANGES[change](net)
    return net


def _ibn(net: Any) -> None:
    """IBN-a in place of the first BatchNorm of every block but those of the last stage."""
    for stage in (net.layer1, net.layer2, net.layer3):
        for block in stage:
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)


def _ibnb(net: Any) -> None:
    """IBN-b: an instance norm for the stem's BatchNorm, and one at the end of each of the first two stages."""
    net.bn1 = nn.InstanceNorm2d(net.bn1.num_features, affine=True)
    for stage in (net.layer1, net.layer2):
        stage[-1] = InstanceAfter(stage[-1])


def _nonlocal(net: Any) -> None:
    """A non-local block after each of the last 2 blocks of stage 2 and the last 3 (ResNet-101: 9) of stage 3.

    The places of AGW (Ye et al., "Deep Learning for Person Re-identification", TPAMI 2021).
    """
    if net.fc.in_features != WIDE:
        raise ConfigError("nonlocal: expected a ResNet with bottleneck blocks, resnet50 or resnet101")
    net.layer2 = _attended(net.layer2, 2, 512)
    net.layer3 = _attended(net.layer3, 3 if len(net.layer3) == 6 else 9, 1024)


def _attended(stage: nn.Sequential, count: int, channels: int) -> nn.Sequential:
    """The stage with ``attention0``, ``attention1``, ... after its last ``count`` blocks."""
    layers = nn.Sequential()
    for place, block in enumerate(stage):
        layers.add_module(str(place), block)
        if place >= len(stage) - count:
            layers.add_module(f"attention{place - len(stage) + count}", NonLocal(channels))
    return layers


def _ceil(net: Any) -> None:
    """The stem's pooling starts at the image's corner and reaches beyond its end, instead of both a little."""
    net.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _bare(net: Any) -> None:
    """No ReLU between the stem's BatchNorm and its pooling."""
    net.relu = nn.Identity()


def _coarse(net: Any) -> None:
    """The last stage halves its resolution, as for ImageNet: (B, C, H/32, W/32)."""
    first = net.layer4[0]
    (first.conv2 if net.fc.in_features == WIDE else first.conv1).stride = (2, 2)
    first.downsample[0].stride = (2, 2)


CHANGES: dict[str, Callable[[Any], None]] = {
    "ibn": _ibn,
    "ibnb": _ibnb,
    "nonlocal": _nonlocal,
    "ceil": _ceil,
    "bare": _bare,
    "coarse": _coarse,
}
