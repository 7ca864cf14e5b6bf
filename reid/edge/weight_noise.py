"""Weights that an analogue or coarse device changes a little, and statistics that are measured under this noise.

A device that computes in memory holds weights inexactly, so the maps of a network have other means and variances than
those that its norms know.  Measuring the statistics again on the noisy network restores both without training
(Tsai et al., "Robust Processing-In-Memory Neural Networks via Noise-Aware Normalization", arXiv 2007.03230).  A gain of
each channel is absorbed exactly; noise of each weight is not, but the moments of every map are right again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, unknown_name
from reid.norm import calibrate, domains_of, extract, install

SINGLE_DOMAIN = "all"


def _additive(weight: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Noise of each weight, in units of the largest weight of the layer, as a memory cell of fixed range has it."""
    return weight + strength * weight.abs().max() * torch.randn(weight.shape, generator=random)


def _gain(weight: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """A factor of each output channel, as an amplifier of its column has it; it stays above 0."""
    factors = (strength * torch.randn(len(weight), generator=random)).exp()
    return weight * factors.reshape(-1, *[1] * (weight.dim() - 1))


def _multiplicative(weight: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Noise of each weight in proportion to it."""
    return weight * (1 + strength * torch.randn(weight.shape, generator=random))


# A name -> what changes the weights of a layer.
NOISES: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "additive": _additive,
    "gain": _gain,
    "multiplicative": _multiplicative,
}


def add_weight_noise(network: nn.Module, strength: float, noise: str = "additive", seed: int = 0) -> nn.Module:
    """Change the weights of all convolutions as a device might.

    Args:
        network: The network, plain or with domains; it stays as it is.
        strength: The standard deviation of the noise, in the unit of its kind; 0 changes nothing.
        noise: A name in ``NOISES``.
        seed: Decides the noise, which is that of one device.

    Returns:
        A copy with other weights.

    Raises:
        ConfigError: The noise is not known, or its strength is below 0.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 1))
        >>> torch.equal(add_weight_noise(network, 0.0)[0].weight, network[0].weight)
        True
    """
    if noise not in NOISES:
        raise ConfigError(unknown_name("noise of weights", noise, NOISES))
    if not strength >= 0:
        raise ConfigError(f"noise of weights: expected a strength of at least 0, got {strength:g}")
    new, random = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in new.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(NOISES[noise](layer.weight.cpu(), strength, random))
    return new


def measure_under_noise(noisy: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """Measure the statistics of all norms again, as the noisy network sees its maps.

    Args:
        noisy: A network whose weights have changed, plain or with domains; it stays as it is.
        batches: Images (B, 3, H, W) and their domain (B,) int64, all 0 for a plain network.

    Returns:
        A copy with these statistics and the same weights.

    Raises:
        DataError: A domain has a single image.
    """
    domains = domains_of(noisy)
    profiles = calibrate(noisy, batches, domains or (SINGLE_DOMAIN,))
    measured = install(noisy, profiles)
    return measured if domains else extract(measured, SINGLE_DOMAIN)
