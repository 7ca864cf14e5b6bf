"""A BatchNorm layer with several domains that all differ, its input, and its definition written out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reid.norm import (
    Condition,
    DomainBatchNorm,
    given,
)
from reid.norm.statistics import Statistics

CHANNELS = 6

LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 0])


def make_layer(groups: int = 2, **parts: nn.Module) -> DomainBatchNorm:
    """Make a layer in evaluation mode whose domains and affine all differ."""
    torch.manual_seed(0)
    layer = DomainBatchNorm(
        CHANNELS, [f"d{i}" for i in range(groups)], affine="domain" if "gate" in parts else "shared"
    )
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer.eval()


def images(count: int = len(LABELS), seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(count, CHANNELS, 1, 1, generator=generator) + 0.5
    return torch.randn(count, CHANNELS, 5, 4, generator=generator) * scales + scales


def run(layer: nn.Module, x: Tensor, domain: Tensor | int | None) -> Tensor:
    with given(Condition(domain)):
        return layer(x)


def normalized(x: Tensor, stats: Statistics, layer: DomainBatchNorm) -> Tensor:
    """Normalize by the definition, with one row of statistics (B, C) for each image and a shared affine."""
    mean, var = stats.mean[:, :, None, None], stats.var[:, :, None, None]
    weight, bias = layer.weight.view(1, -1, 1, 1), layer.bias.view(1, -1, 1, 1)
    return (x - mean) / (var + layer.eps).sqrt() * weight + bias


def running_statistics(layer: DomainBatchNorm, domain: Tensor) -> Statistics:
    mean, var = (buffer.view(layer.domain_count, -1)[domain] for buffer in (layer.running_mean, layer.running_var))
    return Statistics(mean, var, torch.ones(len(domain)))


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> bool:
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))
