"""The mean and the variance of activations as values that are pooled by domain, merged and mixed exactly.

Every normalization without covariances needs only the mean and the biased variance of each image over its positions.
Chan's parallel formula gives those of any group of images, without the cancellation of E[x^2] - E[x]^2 (Chan, Golub,
LeVeque 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """The mean and the variance of every channel in G groups of images; a group is often a domain.

    Attributes:
        mean: (G, C).
        var: (G, C), biased, over all positions of all images of the group.
        mass: (G,), how many images the group holds, or the sum of their weights.  Mean and variance of a group of
            mass 0 are 0 and mean nothing.

    Example:
        >>> dark = Statistics(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([2.0]))
        >>> bright = Statistics(torch.tensor([[4.0]]), torch.tensor([[1.0]]), torch.tensor([2.0]))
        >>> both = dark.merge(bright)
        >>> both.mean.item(), both.var.item(), both.mass.item()
        (2.0, 5.0, 4.0)
    """

    mean: Tensor
    var: Tensor
    mass: Tensor

    def merge(self, other: Statistics) -> Statistics:
        """Compute the statistics of the images of both, group by group.  The result is exact in any order."""
        mass = self.mass + other.mass
        share = (other.mass / mass.clamp_min(torch.finfo(mass.dtype).tiny)).unsqueeze(1)  # (G, 1), of the other
        mixed = self.mix_with(other, share)
        return Statistics(mixed.mean, mixed.var, mass)

    def mix_with(self, other: Statistics, share: Tensor | float) -> Statistics:
        """Mix two populations, group by group; a fraction ``share`` comes from ``other``.

        The result includes the variance between the two means.

        Args:
            other: Statistics of the same shape.
            share: 0..1, one number or (G, 1).

        Returns:
            The statistics of the mixture, with the mass of ``self``.
        """
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        var = self.var + (other.var - self.var) * share + delta.square() * share * (1 - share)
        return Statistics(mean, var, self.mass)

    def interpolate(self, other: Statistics, share: Tensor | float) -> Statistics:
        """Move means and variances along the straight line to ``other``.

        Unlike :meth:`mix_with` this leaves out the variance between the two means, share (1 - share) (mu - mu')^2.

        Args:
            other: Statistics of the same shape.
            share: How far to go: 0 is ``self``, 1 is ``other``; one number or (G, 1).

        Returns:
            The statistics at that point of the line, with the mass of ``self``.
        """
        mean = self.mean + (other.mean - self.mean) * share
        return Statistics(mean, self.var + (other.var - self.var) * share, self.mass)

    def mix(self, weights: Tensor) -> Statistics:
        """Compute the statistics of K mixtures of the G groups.  The result is exact.

        mu_k = sum_g w_kg mu_g and var_k = sum_g w_kg [var_g + (mu_g - mu_k)^2].

        Args:
            weights: (K, G), rows sum to 1.

        Returns:
            The statistics of K groups.
        """
        mean = weights @ self.mean
        between = (weights[:, :, None] * (self.mean[None] - mean[:, None]).square()).sum(1)
        return Statistics(mean, weights @ self.var + between, weights @ self.mass)

    def merge_all(self) -> Statistics:
        """Compute the statistics of all groups together, as one group: (1, C)."""
        mixed = self.mix((self.mass / self.mass.sum().clamp_min(torch.finfo(self.mass.dtype).tiny))[None])
        return Statistics(mixed.mean, mixed.var, self.mass.sum().reshape(1))

    def keep_where(self, known: Tensor, other: Statistics) -> Statistics:
        """Keep the groups that are ``known``, (G,) bool, and take the others from ``other``."""
        rows = known.unsqueeze(1)
        return Statistics(
            torch.where(rows, self.mean, other.mean),
            torch.where(rows, self.var, other.var),
            torch.where(known, self.mass, other.mass),
        )

    def to(self, device: torch.device | str) -> Statistics:
        """Return the same numbers on a device."""
        return Statistics(self.mean.to(device), self.var.to(device), self.mass.to(device))

    def wasserstein(self, other: Statistics) -> Tensor:
        """Compute the squared 2-Wasserstein distance between diagonal Gaussians, summed over the channels.

        |mu - mu'|^2 + |sigma - sigma'|^2 (Segu et al. 2020, "Batch normalization embeddings").

        Returns:
            (G,), one distance for each group.
        """
        deviation = self.var.clamp_min(0).sqrt() - other.var.clamp_min(0).sqrt()
        return (self.mean - other.mean).square().sum(-1) + deviation.square().sum(-1)


def as_maps(x: Tensor) -> Tensor:
    """View vectors (B, C) or sequences (B, C, L) as maps (B, C, H, W); maps stay as they are."""
    return x[(...,) + (None,) * (4 - x.dim())]


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Choose float32 for half and bfloat16 activations, whose variance would overflow or lose digits; else as x."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


class _Moments(torch.autograd.Function):
    """Mean and variance over positions that keep only x for the backward pass, as plain BatchNorm does.

    d mean / dx = 1 / HW and d var / dx = 2 (x - mean) / HW.
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        exact = x.to(statistics_dtype(x))
        mean = exact.mean((2, 3))
        # In two passes: torch.var_mean over these axes is several times slower on a CPU.
        return mean, (exact - mean[:, :, None, None]).square().mean((2, 3))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        by_mean, by_var = (gradient[:, :, None, None] for gradient in gradients)
        positions = x.shape[2] * x.shape[3]
        slope: Tensor = (by_mean + 2 * by_var * (x - mean[:, :, None, None])) / positions
        return slope.to(x.dtype)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and the biased variance of each image over its positions.

    Args:
        x: Maps (B, C, H, W).

    Returns:
        Mean and variance, (B, C) each, in float32 at least.
    """
    mean, var = _Moments.apply(x)
    return mean, var


def pool(mean: Tensor, var: Tensor, domain: Tensor, domain_count: int) -> Statistics:
    """Pool the moments of images by their domain.

    mu_g = E_i m_i and var_g = E_i [v_i + (m_i - mu_g)^2] over the images i of domain g.

    Args:
        mean: (B, C), see :func:`moments`.
        var: (B, C).
        domain: (B,) int64, the domain of each image.
        domain_count: G, the number of domains.

    Returns:
        The statistics of the G domains.
    """
    member = torch.nn.functional.one_hot(domain, domain_count).to(mean.dtype)  # (B, G)
    mass = member.sum(0)
    share = (member / mass.clamp_min(1)).T  # (G, B), rows sum to 1 or are empty
    domain_mean = share @ mean
    deviation = mean - domain_mean[domain]  # (B, C): each image from the mean of its own domain
    return Statistics(domain_mean, share @ (var + deviation.square()), mass)


def pool_by_weights(mean: Tensor, var: Tensor, weights: Tensor) -> Statistics:
    """Pool the moments of images that belong to several domains in part.

    As :func:`pool`, where image i has the share w_ig / sum_j w_jg of domain g.

    Args:
        mean: (B, C), see :func:`moments`.
        var: (B, C).
        weights: (B, G), at least 0.

    Returns:
        The statistics of the G domains; ``mass`` is the sum of the weights of a domain.
    """
    mass = weights.sum(0)
    share = (weights / mass.clamp_min(torch.finfo(mass.dtype).tiny)).T  # (G, B)
    images = Statistics(mean, var, torch.ones_like(mean[:, 0]))
    mixed = images.mix(share.to(mean.dtype))
    return Statistics(mixed.mean, mixed.var, mass.to(mean.dtype))
