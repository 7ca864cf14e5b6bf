"""The embedder: a backbone, a pooling and a neck that turn images into vectors of unit length.

Training adds a classifier of its own.  :mod:`reid.norm` converts the norms of a finished embedder to normalization
domains, and passes them the domain of each image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.errors import ConfigError, unknown_name
from reid.models.networks.backbones import build_backbone
from reid.models.networks.channel_removal import narrow_to
from reid.models.networks.pooling import build_pooling

FC_WIDTH = 512  # as the published OSNet has it


@dataclass(frozen=True)
class NetworkSpec:
    """What is needed to build an embedder: the names of its three parts, and which channels of them were removed.

    Args:
        backbone: A name in :data:`~reid.models.networks.backbones.BACKBONES`, a ResNet with changes such as
            "resnet50+ibn", or ``timm:<name>``.
        pooling: A name in :data:`~reid.models.networks.pooling.POOLINGS`.
        neck: A name in :data:`NECKS`.
        channels: The groups of :func:`~reid.models.networks.tied_channels.tied_channels` that have fewer channels
            than the backbone, by name, and how many they have; () for a whole network.
    """

    backbone: str
    pooling: str = "average"
    neck: str = "bnneck"
    channels: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; ``channels`` is left out where there are none, as in older files."""
        values = asdict(self)
        del values["channels"]
        return {**values, "channels": dict(self.channels)} if self.channels else values


def _build_bnneck(channels: int) -> tuple[nn.Module, int]:
    """BNNeck (Luo et al., "Bag of Tricks", CVPRW 2019, section 3.6): BatchNorm whose shift stays 0."""
    norm = nn.BatchNorm1d(channels)
    norm.bias.requires_grad_(False)
    return norm, channels


def _build_fc_neck(channels: int) -> tuple[nn.Module, int]:
    """The neck of the published OSNet: linear layer, BatchNorm, ReLU."""
    linear = nn.Linear(channels, FC_WIDTH)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.BatchNorm1d(FC_WIDTH), nn.ReLU()), FC_WIDTH


def _build_no_neck(channels: int) -> tuple[nn.Module, int]:
    return nn.Identity(), channels


# A name -> what builds the neck for a number of channels, and how many channels come out of it.
NECKS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "bnneck": _build_bnneck,
    "fc": _build_fc_neck,
    "none": _build_no_neck,
}


class Embedder(nn.Module):
    """A network that embeds images, with random weights until it is trained or loaded.

    Its attributes are ``spec``, ``backbone``, ``pooling``, ``neck`` and ``dimension``, the D of its embeddings.

    Args:
        spec: The names of its parts.

    Raises:
        ConfigError: If a name is not known, or the network does not have these channels.

    Example:
        >>> embedder = Embedder(NetworkSpec("osnet_x0_25")).eval()
        >>> embeddings = embedder(torch.zeros(2, 3, 64, 32))
        >>> embeddings.shape
        torch.Size([2, 128])
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        if spec.neck not in NECKS:
            raise ConfigError(unknown_name("neck", spec.neck, NECKS))
        self.spec = spec
        self.backbone = build_backbone(spec.backbone)
        self.pooling = build_pooling(spec.pooling)
        self.neck, self.dimension = NECKS[spec.neck](self.backbone.channels)
        if spec.channels:
            narrow = narrow_to(self, spec.channels)
            self._modules.update(narrow._modules)

    def features(self, images: Tensor) -> Tensor:
        """Compute the pooled features (B, C) float32, of any length; the triplet loss compares these."""
        # channels last in memory give the same values in a third less time on a CPU, with OSNet above all
        images = images.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.pooling(self.backbone(images))
        return features

    def forward_train(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features (B, C) and the neck's output (B, D) for the classifier, both float32."""
        features = self.features(images)
        return features, self.neck(features).float()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the embeddings (B, D) float32, rows of unit length, of normalised images (B, 3, H, W) float32."""
        return F.normalize(self.neck(self.features(images)).float())
