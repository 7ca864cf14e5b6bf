"""Moments of activations as values: computed per image, pooled per domain, merged and mixed exactly.

Every diagonal normalization uses only the mean and the biased variance of each image over its
positions; pooling them by Chan's parallel formula gives the moments of any group of images without
the cancellation of E[x^2] - E[x]^2 (Chan, Golub, LeVeque 1979).  Nothing here knows layers or names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stats:
    """Moments of G groups of images in C channels.

    ``mean`` (G, C); ``var`` (G, C), biased, over all positions of the group's images; ``mass`` (G,):
    how many images the group holds (a group with mass 0 has mean 0 and var 0 and means nothing).
    """

    mean: Tensor
    var: Tensor
    mass: Tensor

    def merge(self, other: Stats) -> Stats:
        """The moments of both groups of images together, group by group, exact in any order."""
        mass = self.mass + other.mass
        share = (other.mass / mass.clamp_min(torch.finfo(mass.dtype).tiny)).unsqueeze(1)  # (G, 1), of the other
        mixed = self.blend(other, share)
        return Stats(mixed.mean, mixed.var, mass)

    def blend(self, other: Stats, share: Tensor | float) -> Stats:
        """The moments of a crowd of which the part ``share`` (0..1 or (G, 1)) is ``other``, group by group."""
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        var = self.var + (other.var - self.var) * share + delta.square() * share * (1 - share)
        return Stats(mean, var, self.mass)

    def lerp(self, other: Stats, share: Tensor | float) -> Stats:
        """Means and variances each on the straight line to ``other``: what :meth:`blend` is without the variance
        that lies between the two means, share (1 - share) (mu - mu')^2."""
        return Stats(self.mean + (other.mean - self.mean) * share, self.var + (other.var - self.var) * share, self.mass)

    def mix(self, weights: Tensor) -> Stats:
        """Crowds mixed from the groups: ``weights`` (K, G), rows that sum to 1 -> K groups, exact.

        mu_k = sum_g w_kg mu_g and var_k = sum_g w_kg [var_g + (mu_g - mu_k)^2].
        """
        mean = weights @ self.mean
        between = (weights[:, :, None] * (self.mean[None] - mean[:, None]).square()).sum(1)
        return Stats(mean, weights @ self.var + between, weights @ self.mass)

    def total(self) -> Stats:
        """The moments of all groups together, as one group: (1, C)."""
        mixed = self.mix((self.mass / self.mass.sum().clamp_min(torch.finfo(self.mass.dtype).tiny))[None])
        return Stats(mixed.mean, mixed.var, self.mass.sum().reshape(1))

    def where(self, known: Tensor, other: Stats) -> Stats:
        """These moments for the groups that are ``known`` (G,) bool, those of ``other`` for the rest."""
        rows = known.unsqueeze(1)
        return Stats(
            torch.where(rows, self.mean, other.mean),
            torch.where(rows, self.var, other.var),
            torch.where(known, self.mass, other.mass),
        )

    def wasserstein(self, other: Stats) -> Tensor:
        """Squared 2-Wasserstein distance (G,) between the diagonal Gaussians, group by group, summed over channels.

        |mu - mu'|^2 + |sigma - sigma'|^2 (Segu et al. 2020, "Batch normalization embeddings").
        """
        deviation = self.var.clamp_min(0).sqrt() - other.var.clamp_min(0).sqrt()
        return (self.mean - other.mean).square().sum(-1) + deviation.square().sum(-1)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float32 for half and bfloat16 activations, whose variance would overflow or lose digits; else as x."""
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
    """Mean and biased variance of each image: x (B, C, H, W) -> (B, C), (B, C) in at least float32."""
    mean, var = _Moments.apply(x)
    return mean, var


def pool(mean: Tensor, var: Tensor, labels: Tensor, groups: int) -> Stats:
    """Pool per-image moments (B, C), (B, C) by labels (B,) int64 into ``groups`` groups.

    mu_g = E_i m_i and var_g = E_i [v_i + (m_i - mu_g)^2] over the images i of group g.
    """
    member = torch.nn.functional.one_hot(labels, groups).to(mean.dtype)  # (B, G)
    mass = member.sum(0)
    share = (member / mass.clamp_min(1)).T  # (G, B), rows sum to 1 or are empty
    group_mean = share @ mean
    deviation = mean - group_mean[labels]  # (B, C): each image from its own group's mean
    return Stats(group_mean, share @ (var + deviation.square()), mass)


def pool_softly(mean: Tensor, var: Tensor, weights: Tensor) -> Stats:
    """Pool per-image moments (B, C), (B, C) by weights (B, G) >= 0 into G groups.

    As :func:`pool` with p_gi = w_ig / sum_j w_jg; ``mass`` is the sum of a group's weights.
    """
    mass = weights.sum(0)
    share = (weights / mass.clamp_min(torch.finfo(mass.dtype).tiny)).T  # (G, B)
    images = Stats(mean, var, torch.ones_like(mean[:, 0]))
    mixed = images.mix(share.to(mean.dtype))
    return Stats(mixed.mean, mixed.var, mass.to(mean.dtype))
