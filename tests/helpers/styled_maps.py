"""Feature maps with different styles, and instance norm as a loop over images and channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS, STYLE = 6, 4
INDICES = torch.tensor([2, 0, 1, 2])


def maps(images: int = 4, channels: int = CHANNELS, size: tuple[int, int] = (5, 3), seed: int = 0) -> Tensor:
    """Correlated maps whose images and channels differ in mean and deviation, float32."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, *size, generator=generator)
    x = torch.einsum("cd,bdhw->bchw", torch.randn(channels, channels, generator=generator), x)
    return x * torch.linspace(0.5, 2, images)[:, None, None, None] + torch.arange(channels)[:, None, None]


def loop_oracle(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Each image and channel by itself; ``scale`` and ``shift`` (B, C)."""
    out = torch.empty_like(x)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = x[i, c]
            mean = values.sum() / values.numel()
            var = (values - mean).square().sum() / values.numel()
            out[i, c] = (values - mean) / (var + eps).sqrt() * scale[i, c] + shift[i, c]
    return out


def randomize(layer: nn.Module, seed: int = 1) -> nn.Module:
    """Parameters that make every style differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def moments_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((2, 3)), x.std((2, 3), correction=0)
