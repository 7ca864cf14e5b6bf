"""The embedder: backbone, pooling and neck in a row, images in, vectors of unit length out.

It knows nothing of identities or classifiers (training adds its own) nor of normalization domains:
``reid.norm`` converts the norms of a finished embedder and hands them their condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.errors import ConfigError, unknown_name
from reid.models.networks.backbones import build_backbone
from reid.models.networks.pooling import build_pooling

FC_WIDTH = 512  # the published OSNet's


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that is needed to build an embedder: names of its three parts."""

    backbone: str
    pooling: str = "average"
    neck: str = "bnneck"


def _bnneck(channels: int) -> tuple[nn.Module, int]:
    """BNNeck (Luo et al., "Bag of Tricks", CVPRW 2019, section 3.6): BatchNorm that may not shift."""
    norm = nn.BatchNorm1d(channels)
    norm.bias.requires_grad_(False)
    return norm, channels


def _fc(channels: int) -> tuple[nn.Module, int]:
    """OSNet's own neck: linear layer, BatchNorm, ReLU."""
    linear = nn.Linear(channels, FC_WIDTH)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.BatchNorm1d(FC_WIDTH), nn.ReLU()), FC_WIDTH


def _none(channels: int) -> tuple[nn.Module, int]:
    return nn.Identity(), channels


# channels -> (neck, channels after it)
NECKS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {"bnneck": _bnneck, "fc": _fc, "none": _none}


class Embedder(nn.Module):
    """Images (B, 3, H, W) float32, normalised -> embeddings (B, D) float32, rows of unit length.

    ``dimension`` is D.  Weights are random until they are trained or loaded.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        if spec.neck not in NECKS:
            raise ConfigError(unknown_name("neck", spec.neck, NECKS))
        self.spec = spec
        self.backbone = build_backbone(spec.backbone)
        self.pooling = build_pooling(spec.pooling)
        self.neck, self.dimension = NECKS[spec.neck](self.backbone.channels)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, C) float32 before the neck, of any length: the triplet loss compares these."""
        # channels last in memory: same values, a third less time on a CPU, OSNet most of all
        images = images.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.pooling(self.backbone(images))
        return features

    def forward_train(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C) and the neck's output (B, D), both float32: the classifier reads the second."""
        features = self.features(images)
        return features, self.neck(features).float()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) float32 of unit length."""
        return F.normalize(self.neck(self.features(images)).float())
