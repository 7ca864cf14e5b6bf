"""Backbones: networks that turn images (B, 3, H, W) into a feature map (B, C, h, w).

All start with random weights; nothing here downloads.  A backbone knows how many channels it gives, which keys of a
published weights file belong to a classifier that it does not have, and how its publisher prepares images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from reid.errors import ConfigError, unknown_name
from reid.models.networks.backbone import Backbone
from reid.models.networks.mobilenet import mobilenet_layers
from reid.models.networks.osnet import OSNet
from reid.models.networks.resnet import RESNETS
from reid.models.networks.resnet_changes import build_resnet
from reid.models.networks.timm_backbones import TIMM_PREFIX, build_timm
from reid.models.networks.transformers import TRANSFORMERS, build_transformer

PLUS = "+"  # resnet50+ibn: a ResNet with changes, see reid.models.networks.resnet_changes.CHANGES


def _build_osnet(width: float, variant: str = "plain") -> Backbone:
    net = OSNet(width, variant)
    return Backbone(dict(net.named_children()), net.channels, heads=("classifier.",))


def _build_resnet_trunk(name: str, changes: tuple[str, ...] = ()) -> Backbone:
    """A ResNet up to its last stage: (B, C, H/16, W/16)."""
    net = build_resnet(name, changes)
    layers = {name: layer for name, layer in net.named_children() if name not in ("avgpool", "fc")}
    return Backbone(layers, net.fc.in_features, heads=("fc.weight", "fc.bias", "classifier."))


def _build_mobilenet() -> Backbone:
    from torchvision.models import mobilenet_v2  # imports a whole collection of models, so only when it is needed

    net = mobilenet_v2(weights=None)
    return Backbone({"features": net.features}, net.last_channel, heads=("classifier.",))


def _build_torchreid_mobilenet(width: float) -> Backbone:
    layers, channels = mobilenet_layers(width)
    return Backbone(layers, channels, heads=("classifier.",))


def _build_transformer_trunk(name: str) -> Backbone:
    """A transformer of person re-identification, whose features are a map of one position or of its last stage."""
    network, channels, transform = build_transformer(name)
    return Backbone({"transformer": network}, channels, heads=(), transform=transform)


# A name -> what builds the backbone with random weights.  A new backbone is one entry here.
BACKBONES: dict[str, Callable[[], Backbone]] = {
    **{name: partial(_build_resnet_trunk, name) for name in RESNETS},
    "osnet_x0_25": partial(_build_osnet, 0.25),
    "osnet_x0_5": partial(_build_osnet, 0.5),
    "osnet_x0_75": partial(_build_osnet, 0.75),
    "osnet_x1_0": partial(_build_osnet, 1.0),
    "osnet_ibn_x1_0": partial(_build_osnet, 1.0, "ibn"),
    "osnet_ain_x1_0": partial(_build_osnet, 1.0, "ain"),
    "mobilenet_v2": _build_mobilenet,
    "mobilenetv2_x1_0": partial(_build_torchreid_mobilenet, 1.0),
    "mobilenetv2_x1_4": partial(_build_torchreid_mobilenet, 1.4),
}


def build_backbone(name: str) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: A name in ``BACKBONES``, a ResNet with changes such as "resnet50+ibn+nonlocal", a transformer of
            :data:`~reid.models.networks.transformers.TRANSFORMERS` with options, or ``timm:<name of a timm model>``.

    Raises:
        ConfigError: If the name is not known, timm is missing, or its model takes images of one size only.

    Example:
        >>> import torch
        >>> backbone = build_backbone("osnet_x0_25")
        >>> backbone(torch.zeros(1, 3, 64, 32)).shape
        torch.Size([1, 128, 4, 2])
        >>> backbone.channels
        128
    """
    if name.startswith(TIMM_PREFIX):
        return build_timm(name.removeprefix(TIMM_PREFIX))
    trunk, *changes = name.split(PLUS)
    if trunk in TRANSFORMERS:
        return _build_transformer_trunk(name)
    if trunk not in BACKBONES:
        raise ConfigError(unknown_name("backbone", name, [*BACKBONES, *TRANSFORMERS, TIMM_PREFIX + "<name>"]))
    if not changes:
        return BACKBONES[trunk]()
    if trunk not in RESNETS:
        raise ConfigError(f'backbone "{name}": only a ResNet takes changes ({", ".join(RESNETS)})')
    return _build_resnet_trunk(trunk, tuple(changes))
