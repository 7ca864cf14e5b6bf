"""Small networks with adapters for three domains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reid.norm import convert_norm, domain_batchnorm
from reid.norm.specialised.adapters import (
    add_adapters,
)

NAMES = ("people", "vehicles", "letters")


def varied(network: nn.Module, seed: int = 1) -> nn.Module:
    """Give every adapter weights, and every norm of domains statistics and affine, of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "adapters." in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 / tensor.shape[-1] ** 0.5)
            elif tensor_has_rows(name, tensor):
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return network


def tensor_has_rows(name: str, tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.is_floating_point() and len(tensor) == len(NAMES)


def small_network(placement: str = "series") -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return varied(add_adapters(convert_norm(plain, domain_batchnorm(NAMES)), NAMES, placement))


def small_plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
