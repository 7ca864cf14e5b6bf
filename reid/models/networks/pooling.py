"""Pooling: a feature map (B, C, h, w) becomes one vector (B, C) an image.

Pooling computes in float32 whatever the type of the map is, because sums in half precision lose digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, unknown_name


class AveragePooling(nn.Module):
    """Mean over positions: (B, C, h, w) -> (B, C) float32."""

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.float().mean((2, 3))


class GeneralizedMean(nn.Module):
    """GeM (Radenovic et al., TPAMI 2019, equation 3): (mean x^p)^(1/p), (B, C, h, w) -> (B, C) float32.

    One p is learnt for all channels.  p = 1 gives the mean; p -> infinity gives the maximum.

    Args:
        power: The p to start with.
        floor: Values below it count as it.
    """

    def __init__(self, power: float = 3.0, floor: float = 1e-6) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([power]))
        self.floor = floor

    def forward(self, feature_map: Tensor) -> Tensor:
        raised = feature_map.float().clamp(min=self.floor).pow(self.power)
        return raised.mean((2, 3)).pow(1.0 / self.power)


# A name -> what builds the pooling.  A new pooling is one entry here.
POOLINGS: dict[str, Callable[[], nn.Module]] = {"average": AveragePooling, "gem": GeneralizedMean}


def build_pooling(name: str) -> nn.Module:
    """Build a pooling layer.

    Args:
        name: A name in ``POOLINGS``.

    Raises:
        ConfigError: If the name is not known.

    Example:
        >>> build_pooling("average")(torch.ones(1, 8, 4, 2)).shape
        torch.Size([1, 8])
    """
    if name not in POOLINGS:
        raise ConfigError(unknown_name("pooling", name, POOLINGS))
    return POOLINGS[name]()
