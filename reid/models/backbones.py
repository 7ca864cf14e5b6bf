"""Backbones: networks that turn images (B, 3, H, W) into a feature map (B, C, h, w).

All start from random weights: nothing here downloads.  A backbone knows how many channels it gives and
which keys of a published weights file belong to a classifier it does not have; it knows nothing of
pooling, identities or normalization domains.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from reid.errors import ConfigError, unknown_name
from reid.models.osnet import OSNet

TIMM_PREFIX = "timm:"


class Backbone(nn.Module):
    """Layers in a row, with the names their publisher gave them.

    ``channels`` is C of the feature map.  ``heads`` are the beginnings of keys that a published weights
    file may have and this network has no use for; ``root`` comes before a published key in ours.
    """

    def __init__(self, layers: dict[str, nn.Module], channels: int, heads: tuple[str, ...], root: str = "") -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.channels = channels
        self.heads = heads
        self.root = root

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float, normalised -> feature map (B, ``channels``, h, w)."""
        for layer in self.children():
            images = layer(images)
        return images


def _osnet(width: float) -> Backbone:
    net = OSNet(width)
    return Backbone(dict(net.named_children()), net.channels, heads=("classifier.",))


def _resnet(build: Callable[..., Any]) -> Backbone:
    """A torchvision ResNet up to its last stage, which keeps its resolution (stride 1): (B, C, H/16, W/16).

    The finer last map is worth a few points of mAP (Luo et al., "Bag of Tricks", CVPRW 2019, section 3.5).
    """
    net = build(weights=None)
    for module in net.layer4.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    layers = {name: layer for name, layer in net.named_children() if name not in ("avgpool", "fc")}
    return Backbone(layers, net.fc.in_features, heads=("fc.weight", "fc.bias", "classifier."))


def _mobilenet() -> Backbone:
    net = models.mobilenet_v2(weights=None)
    return Backbone({"features": net.features}, net.last_channel, heads=("classifier.",))


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "resnet18": partial(_resnet, models.resnet18),
    "resnet34": partial(_resnet, models.resnet34),
    "resnet50": partial(_resnet, models.resnet50),
    "osnet_x0_25": partial(_osnet, 0.25),
    "osnet_x0_5": partial(_osnet, 0.5),
    "osnet_x0_75": partial(_osnet, 0.75),
    "osnet_x1_0": partial(_osnet, 1.0),
    "mobilenet_v2": _mobilenet,
}


def build_backbone(name: str) -> Backbone:
    """A fresh backbone with random weights: a name in ``BACKBONES`` or ``timm:<name of a timm model>``."""
    if name.startswith(TIMM_PREFIX):
        return _timm(name.removeprefix(TIMM_PREFIX))
    if name not in BACKBONES:
        raise ConfigError(unknown_name("backbone", name, [*BACKBONES, TIMM_PREFIX + "<name>"]))
    return BACKBONES[name]()


def _timm(name: str) -> Backbone:
    """Any timm network that gives a feature map at any image size, without its pooling and classifier."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f'backbone "{TIMM_PREFIX}{name}" needs the package timm: run pip install "timm>=1.0.15,<2", '
            'or pip install ".[timm]" in a checkout'
        ) from error
    if not timm.is_model(name):  # also keeps out names that would be looked up on a hub
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ConfigError(f'timm has no model "{name}"; nearest: {", ".join(near) or "none"}')
    net = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    heads = net.default_cfg.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    return Backbone({"model": net}, _map_channels(name, net), prefixes, root="model.")


def _map_channels(name: str, net: Any) -> int:
    """C of the feature map (B, C, h, w) of ``net``, found by a trial; ConfigError if it gives none."""
    net.eval()
    try:
        with torch.no_grad():
            shape = tuple(net(torch.zeros(1, 3, 96, 64)).shape)
    except (AssertionError, RuntimeError, ValueError) as error:  # how timm refuses an image size
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f'backbone "{TIMM_PREFIX}{name}" does not take images of any size ({reason}); '
            "choose a convolutional network"
        ) from error
    finally:
        net.train()
    channels = int(getattr(net, "head_hidden_size", None) or net.num_features)
    if len(shape) != 4 or shape[1] != channels:
        raise ConfigError(
            f'backbone "{TIMM_PREFIX}{name}": expected a feature map (B, {channels}, h, w), got {shape}; '
            "networks of tokens are not supported, choose a convolutional network"
        )
    return channels
