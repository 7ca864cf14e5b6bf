"""Pooling: a feature map (B, C, h, w) becomes one vector (B, C) an image.

Pooling is done in float32 whatever the map came in, because half-width sums lose digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, unknown_name


class AveragePooling(nn.Module):
    """Mean over places: (B, C, h, w) -> (B, C) float32."""

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.float().mean((2, 3))


class GeneralizedMean(nn.Module):
    """GeM (Radenovic et al., TPAMI 2019, equation 3): (mean x^p)^(1/p) with one learnt p, starting at 3.

    p = 1 is the mean, p -> infinity the maximum.  Values below ``floor`` count as ``floor``.
    (B, C, h, w) -> (B, C) float32.
    """

    def __init__(self, power: float = 3.0, floor: float = 1e-6) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([power]))
        self.floor = floor

    def forward(self, feature_map: Tensor) -> Tensor:
        raised = feature_map.float().clamp(min=self.floor).pow(self.power)
        return raised.mean((2, 3)).pow(1.0 / self.power)


POOLINGS: dict[str, Callable[[], nn.Module]] = {"average": AveragePooling, "gem": GeneralizedMean}


def build_pooling(name: str) -> nn.Module:
    """A fresh pooling by its name in ``POOLINGS``."""
    if name not in POOLINGS:
        raise ConfigError(unknown_name("pooling", name, POOLINGS))
    return POOLINGS[name]()
