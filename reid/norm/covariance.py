"""Statistics with the covariances of channels, as whitening needs them.

This is the covariance form of :mod:`reid.norm.statistics`, in blocks of g neighbouring channels: computed for each
image, pooled by domain, merged and mixed exactly by the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reid.errors import ConfigError
from reid.norm.statistics import Statistics, statistics_dtype
from reid.norm.synchronize import synchronized


@dataclass(frozen=True)
class CovarianceStatistics:
    """The mean of every channel and the covariances inside blocks of g channels, in G groups of images.

    Attributes:
        mean: (G, C).
        cov: (G, C / g, g, g), biased, over all positions of all images of the group.  Its diagonal is what
            :class:`~reid.norm.statistics.Statistics` calls ``var``.
        mass: (G,), how many images the group holds, or the sum of their weights.  The values of a group of mass 0 have
            no meaning.
    """

    mean: Tensor
    cov: Tensor
    mass: Tensor

    def diagonal(self) -> Statistics:
        """Drop the covariances between different channels."""
        return Statistics(self.mean, self.cov.diagonal(dim1=-2, dim2=-1).flatten(1), self.mass)

    def merge(self, other: CovarianceStatistics) -> CovarianceStatistics:
        """Compute the statistics of the images of both, group by group.  The result is exact in any order."""
        mass = self.mass + other.mass
        share = (other.mass / mass.clamp_min(torch.finfo(mass.dtype).tiny))[:, None]  # (G, 1), of the other
        delta = other.mean - self.mean
        between = _outer(delta, self.cov.shape[-1]) * (share * (1 - share))[..., None, None]
        cov = self.cov + (other.cov - self.cov) * share[..., None, None] + between
        return CovarianceStatistics(self.mean + delta * share, cov, mass)

    def interpolate(self, other: CovarianceStatistics, share: Tensor | float) -> CovarianceStatistics:
        """Move means and covariances along the straight line to ``other``; ``share`` is 0..1 or (G, 1)."""
        part = torch.as_tensor(share)
        mean = self.mean + (other.mean - self.mean) * part
        return CovarianceStatistics(mean, self.cov + (other.cov - self.cov) * part[..., None, None], self.mass)

    def mix(self, weights: Tensor) -> CovarianceStatistics:
        """Compute the statistics of R mixtures of the G groups.  The result is exact.

        mu_r = sum_g w_rg mu_g and Sigma_r = sum_g w_rg [Sigma_g + (mu_g - mu_r)(mu_g - mu_r)^T].

        Args:
            weights: (R, G), rows sum to 1.

        Returns:
            The statistics of R groups.
        """
        mean = weights @ self.mean
        deviation = (self.mean - mean[:, None]).view(len(mean), *self.cov.shape[:-1])  # (R, G, K, g)
        between = torch.einsum("rgki,rgkj->rkij", deviation * weights[:, :, None, None], deviation)
        within = (weights @ self.cov.flatten(1)).view(between.shape)
        return CovarianceStatistics(mean, within + between, weights @ self.mass)

    def merge_all(self) -> CovarianceStatistics:
        """Compute the statistics of all groups together, as one group."""
        mixed = self.mix((self.mass / self.mass.sum().clamp_min(torch.finfo(self.mass.dtype).tiny))[None])
        return replace(mixed, mass=self.mass.sum().reshape(1))

    def keep_where(self, known: Tensor, other: CovarianceStatistics) -> CovarianceStatistics:
        """Keep the groups that are ``known``, (G,) bool, and take the others from ``other``."""
        return CovarianceStatistics(
            torch.where(known[:, None], self.mean, other.mean),
            torch.where(known[:, None, None, None], self.cov, other.cov),
            torch.where(known, self.mass, other.mass),
        )

    def to(self, device: torch.device | str) -> CovarianceStatistics:
        """Return the same numbers on a device."""
        return CovarianceStatistics(self.mean.to(device), self.cov.to(device), self.mass.to(device))

    def __getitem__(self, groups: slice) -> CovarianceStatistics:
        """Return some of the groups, as views."""
        return CovarianceStatistics(self.mean[groups], self.cov[groups], self.mass[groups])


class _CovarianceMoments(torch.autograd.Function):
    """Mean (B, C) and block covariances (B, K, g, g) over positions, keeping only x for the backward pass.

    With z = x - mean: d mean / dx = 1 / HW, and the gradient by way of the covariance is (A + A^T) z / HW.
    """

    @staticmethod
    def forward(x: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
        exact = x.to(statistics_dtype(x))
        mean = exact.mean((2, 3))
        z = split_into_blocks(exact - mean[:, :, None, None], block_size)
        return mean, z @ z.mT / z.shape[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])
        ctx.block_size = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        by_mean, by_cov = gradients
        z = split_into_blocks(x - mean[:, :, None, None], ctx.block_size)
        slope = ((by_cov + by_cov.mT) @ z).view(x.shape) + by_mean[:, :, None, None]
        return (slope / z.shape[-1]).to(x.dtype), None


def covariances(x: Tensor, domain: Tensor, domain_count: int, block_size: int) -> CovarianceStatistics:
    """Measure mean and block covariances of every domain, in float32 at least, also under autocast.

    Args:
        x: Maps (B, C, H, W).
        domain: The domain of each image, int64 (B,), or weights (B, G), at least 0.
        domain_count: G, the number of domains.
        block_size: g, how many neighbouring channels have covariances with each other.

    Returns:
        The statistics of the G domains.

    Raises:
        ConfigError: If ``block_size`` does not divide C.
    """
    check_block_size(x.shape[1], block_size)
    with torch.autocast(x.device.type, enabled=False):
        mean, cov = _CovarianceMoments.apply(x, block_size)
        member = domain if domain.is_floating_point() else functional.one_hot(domain, domain_count)
        member = member.to(mean.dtype)
        mass = member.sum(0)
        share = (member / mass.clamp_min(torch.finfo(mass.dtype).tiny)).T  # (G, B), rows sum to 1 or are empty
        images = CovarianceStatistics(mean, cov, torch.ones_like(mean[:, 0]))
        return replace(images.mix(share), mass=mass)


def synchronized_covariances(batch: CovarianceStatistics) -> CovarianceStatistics:
    """Compute the statistics over the batches of all processes: the average of their raw moments, in float64."""
    block_size, channels, dtype = batch.cov.shape[-1], batch.mean.shape[1], batch.mean.dtype
    mean = batch.mean.double()
    raw = torch.cat([mean, (batch.cov.double() + _outer(mean, block_size)).flatten(1)], 1)
    total = synchronized(Statistics(raw, torch.zeros_like(raw), batch.mass))
    mean, second = total.mean[:, :channels], total.mean[:, channels:]
    cov = second.view(batch.cov.shape) - _outer(mean, block_size)
    return CovarianceStatistics(mean.to(dtype), cov.to(dtype), total.mass.to(dtype))


def check_block_size(channels: int, block_size: int) -> None:
    """Raise ConfigError when blocks of this size do not fill the channels; the error names a size that does."""
    if block_size < 1 or channels % block_size:
        fitting = max((size for size in range(1, block_size + 1) if channels % size == 0), default=1)
        raise ConfigError(
            f"whitening: blocks of {block_size} channels do not fill {channels};"
            f" set block_size = {fitting}, the largest below it that does, or leave this layer out"
        )


def split_into_blocks(x: Tensor, block_size: int) -> Tensor:
    """Reshape (B, C, H, W) to (B, C / g, g, HW)."""
    return x.reshape(x.shape[0], x.shape[1] // block_size, block_size, x.shape[2] * x.shape[3])


def _outer(x: Tensor, block_size: int) -> Tensor:
    """(G, C) -> x x^T in blocks, (G, C / g, g, g)."""
    parts = x.reshape(len(x), -1, block_size)
    return parts[..., :, None] * parts[..., None, :]
