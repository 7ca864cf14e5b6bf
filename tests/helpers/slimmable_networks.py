"""A small network to slim, and widths that differ."""

from __future__ import annotations

import torch
from torch import nn

from reid.norm.specialised.switchable_layers import SwitchableBatchNorm

WIDTHS = (1.0, 0.5, 0.25)


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(128, 5)),
    )
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(8, 3, 16, 8) * 2 + 1)
    return network.eval()


def differing(network: nn.Module) -> nn.Module:
    """Give every width statistics (and affine) of its own."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, SwitchableBatchNorm):
                for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                    tensor.mul_(1 + 0.3 * torch.rand(tensor.shape)).add_(0.1 * torch.rand(tensor.shape))
    return network
