"""Moments of activations as values: computed per image, pooled per domain, merged exactly.

Every diagonal normalization uses only the mean and the biased variance of each image over its
positions; pooling them by Chan's parallel formula gives the moments of any group of images without
the cancellation of E[x^2] - E[x]^2 (Chan, Golub, LeVeque 1979).  Nothing here knows layers or names.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        share = (other.mass / mass.clamp_min(1)).unsqueeze(1)  # (G, 1), of the other
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        var = self.var + (other.var - self.var) * share + delta.square() * share * (1 - share)
        return Stats(mean, var, mass)

    def total(self) -> Stats:
        """The moments of all groups together, as one group: (1, C)."""
        share = (self.mass / self.mass.sum().clamp_min(1)).unsqueeze(1)  # (G, 1)
        mean = (share * self.mean).sum(0, keepdim=True)
        var = (share * (self.var + (self.mean - mean).square())).sum(0, keepdim=True)
        return Stats(mean, var, self.mass.sum().reshape(1))


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float32 for half and bfloat16 activations, whose variance would overflow or lose digits; else as x."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each image: x (B, C, H, W) -> (B, C), (B, C) in at least float32."""
    exact = x.to(statistics_dtype(x))
    mean = exact.mean((2, 3))
    # In two passes: torch.var_mean over these axes is several times slower on a CPU.
    return mean, (exact - mean[:, :, None, None]).square().mean((2, 3))


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
