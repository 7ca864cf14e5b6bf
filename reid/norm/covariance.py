"""Moments with the covariances of channels, as values: what whitening needs and variances do not say.

The covariance form of :mod:`reid.norm.statistics`, in blocks of g neighbouring channels; computed per image,
pooled per domain, merged and mixed exactly by the same formulas.  Nothing here knows layers or names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reid.errors import ConfigError
from reid.norm.statistics import Stats, statistics_dtype
from reid.norm.synchronize import synchronized


@dataclass(frozen=True)
class CovStats:
    """Moments of G groups of images in C channels, with the covariances inside blocks of g channels.

    ``mean`` (G, C); ``cov`` (G, C / g, g, g), biased, over all positions of the group's images; ``mass``
    (G,): how many images the group holds (a group with mass 0 means nothing).  The diagonal is what
    :class:`~reid.norm.statistics.Stats` calls ``var``, and merging follows the same formulas.
    """

    mean: Tensor
    cov: Tensor
    mass: Tensor

    def diagonal(self) -> Stats:
        """The same moments without the covariances between channels."""
        return Stats(self.mean, self.cov.diagonal(dim1=-2, dim2=-1).flatten(1), self.mass)

    def merge(self, other: CovStats) -> CovStats:
        """The moments of both groups of images together, group by group, exact in any order."""
        mass = self.mass + other.mass
        share = (other.mass / mass.clamp_min(torch.finfo(mass.dtype).tiny))[:, None]  # (G, 1), of the other
        delta = other.mean - self.mean
        between = _outer(delta, self.cov.shape[-1]) * (share * (1 - share))[..., None, None]
        cov = self.cov + (other.cov - self.cov) * share[..., None, None] + between
        return CovStats(self.mean + delta * share, cov, mass)

    def lerp(self, other: CovStats, share: Tensor | float) -> CovStats:
        """Means and covariances each on the straight line to ``other``, at ``share``, 0..1 or (G, 1)."""
        part = torch.as_tensor(share)
        mean = self.mean + (other.mean - self.mean) * part
        return CovStats(mean, self.cov + (other.cov - self.cov) * part[..., None, None], self.mass)

    def mix(self, weights: Tensor) -> CovStats:
        """Crowds mixed from the groups: ``weights`` (R, G), rows that sum to 1 -> R groups, exact.

        mu_r = sum_g w_rg mu_g and Sigma_r = sum_g w_rg [Sigma_g + (mu_g - mu_r)(mu_g - mu_r)^T].
        """
        mean = weights @ self.mean
        deviation = (self.mean - mean[:, None]).view(len(mean), *self.cov.shape[:-1])  # (R, G, K, g)
        between = torch.einsum("rgki,rgkj->rkij", deviation * weights[:, :, None, None], deviation)
        within = (weights @ self.cov.flatten(1)).view(between.shape)
        return CovStats(mean, within + between, weights @ self.mass)

    def total(self) -> CovStats:
        """The moments of all groups together, as one group."""
        mixed = self.mix((self.mass / self.mass.sum().clamp_min(torch.finfo(self.mass.dtype).tiny))[None])
        return replace(mixed, mass=self.mass.sum().reshape(1))

    def where(self, known: Tensor, other: CovStats) -> CovStats:
        """These moments for the groups that are ``known`` (G,) bool, those of ``other`` for the rest."""
        return CovStats(
            torch.where(known[:, None], self.mean, other.mean),
            torch.where(known[:, None, None, None], self.cov, other.cov),
            torch.where(known, self.mass, other.mass),
        )

    def __getitem__(self, rows: slice) -> CovStats:
        """Some of the groups, as views."""
        return CovStats(self.mean[rows], self.cov[rows], self.mass[rows])


class _CovarianceMoments(torch.autograd.Function):
    """Mean (B, C) and block covariances (B, K, g, g) over positions, keeping only x for the backward pass.

    With z = x - mean: d mean / dx = 1 / HW, and the gradient by way of the covariance is (A + A^T) z / HW.
    """

    @staticmethod
    def forward(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        exact = x.to(statistics_dtype(x))
        mean = exact.mean((2, 3))
        z = blocks(exact - mean[:, :, None, None], size)
        return mean, z @ z.mT / z.shape[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])
        ctx.size = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        by_mean, by_cov = gradients
        z = blocks(x - mean[:, :, None, None], ctx.size)
        slope = ((by_cov + by_cov.mT) @ z).view(x.shape) + by_mean[:, :, None, None]
        return (slope / z.shape[-1]).to(x.dtype), None


def covariances(x: Tensor, labels: Tensor, groups: int, size: int) -> CovStats:
    """Moments of ``groups`` groups of the images x (B, C, H, W), with covariances in blocks of ``size`` channels.

    ``labels``: int64 (B,), or weights (B, G) >= 0.  Computed in float32 at least, also under autocast.
    Raises ConfigError when ``size`` does not divide C.
    """
    check_blocks(x.shape[1], size)
    with torch.autocast(x.device.type, enabled=False):
        mean, cov = _CovarianceMoments.apply(x, size)
        member = labels if labels.is_floating_point() else functional.one_hot(labels, groups)
        member = member.to(mean.dtype)
        mass = member.sum(0)
        share = (member / mass.clamp_min(torch.finfo(mass.dtype).tiny)).T  # (G, B), rows sum to 1 or are empty
        return replace(CovStats(mean, cov, torch.ones_like(mean[:, 0])).mix(share), mass=mass)


def synchronized_covariances(batch: CovStats) -> CovStats:
    """The statistics over the batches of all processes: the average of their raw moments, in float64."""
    size, channels, dtype = batch.cov.shape[-1], batch.mean.shape[1], batch.mean.dtype
    mean = batch.mean.double()
    raw = torch.cat([mean, (batch.cov.double() + _outer(mean, size)).flatten(1)], 1)
    total = synchronized(Stats(raw, torch.zeros_like(raw), batch.mass))
    mean, second = total.mean[:, :channels], total.mean[:, channels:]
    cov = second.view(batch.cov.shape) - _outer(mean, size)
    return CovStats(mean.to(dtype), cov.to(dtype), total.mass.to(dtype))


def check_blocks(channels: int, size: int) -> None:
    """Refuse blocks that do not fill the channels; the error names the sizes that do."""
    if size < 1 or channels % size:
        fitting = max((d for d in range(1, size + 1) if channels % d == 0), default=1)
        raise ConfigError(
            f"whitening: blocks of {size} channels do not fill {channels};"
            f" set group = {fitting}, the largest below it that does, or leave this layer out"
        )


def blocks(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C / g, g, HW)."""
    return x.reshape(x.shape[0], x.shape[1] // size, size, x.shape[2] * x.shape[3])


def _outer(x: Tensor, size: int) -> Tensor:
    """(G, C) -> x x^T in blocks, (G, C / g, g, g)."""
    parts = x.reshape(len(x), -1, size)
    return parts[..., :, None] * parts[..., None, :]
