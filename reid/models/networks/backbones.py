"""Backbones: networks that turn images (B, 3, H, W) into a feature map (B, C, h, w).

All start with random weights; nothing here downloads.  A backbone knows how many channels it gives, which keys of a
published weights file belong to a classifier that it does not have, and how its publisher prepares images.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reid.data.transforms import INTERPOLATIONS, EvaluationTransform
from reid.errors import ConfigError, unknown_name
from reid.models.networks.mobilenet import mobilenet_layers
from reid.models.networks.osnet import OSNet
from reid.models.networks.resnet import RESNETS
from reid.models.networks.resnet_changes import build_resnet
from reid.models.networks.transformers import TRANSFORMERS, build_transformer

TIMM_PREFIX = "timm:"
PLUS = "+"  # resnet50+ibn: a ResNet with changes, see reid.models.networks.resnet_changes.CHANGES


class Backbone(nn.Module):
    """Layers that run one after the other, with the names that their publisher gave them.

    Args:
        layers: The layers by name.
        channels: C of the feature map.
        heads: How keys begin that a published weights file may have and this network has no use for.
        root: What stands before a published key in the keys of this network.
        transform: Prepares images as the publisher did.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        channels: int,
        heads: tuple[str, ...],
        root: str = "",
        transform: EvaluationTransform | None = None,
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.channels = channels
        self.heads = heads
        self.root = root
        self.transform = transform or EvaluationTransform()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the feature map (B, ``channels``, h, w) of normalised images (B, 3, H, W) float."""
        for layer in self.children():
            images = layer(images)
        return images


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
        ConfigError: If the name is not known, timm is missing, or its model gives no feature map at any image size.

    Example:
        >>> backbone = build_backbone("osnet_x0_25")
        >>> backbone(torch.zeros(1, 3, 64, 32)).shape
        torch.Size([1, 128, 4, 2])
        >>> backbone.channels
        128
    """
    if name.startswith(TIMM_PREFIX):
        return _build_timm(name.removeprefix(TIMM_PREFIX))
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


def _build_timm(name: str) -> Backbone:
    """A timm network without its pooling and classifier; it must give a feature map at any image size."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f'backbone "{TIMM_PREFIX}{name}" needs the package timm: run pip install "timm>=1.0.15,<2", '
            'or pip install ".[timm]" in a checkout'
        ) from error
    if not timm.is_model(name):  # also refuses names that timm would look up on a hub
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ConfigError(f'timm has no model "{name}"; nearest: {", ".join(near) or "none"}')
    net = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    heads = net.default_cfg.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    return Backbone(
        {"model": net}, _count_map_channels(name, net), prefixes, "model.", _timm_transform(net.default_cfg)
    )


def _timm_transform(published: Any) -> EvaluationTransform:
    """How timm prepares images for a network.  Their size stays ours, because crops of people are not square."""
    wanted = published.get("interpolation", "")
    known = wanted if wanted in INTERPOLATIONS else EvaluationTransform.interpolation
    return EvaluationTransform(mean=tuple(published["mean"]), std=tuple(published["std"]), interpolation=known)


def _count_map_channels(name: str, net: Any) -> int:
    """Run ``net`` once to count the channels of its feature map (B, C, h, w); ConfigError if it gives none."""
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
