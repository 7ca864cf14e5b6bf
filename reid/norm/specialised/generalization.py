"""Normalizations against style for networks that must work where they were never trained.

:class:`MixStyle` perturbs the style of training images, :class:`SNR` takes it out and gives back the part
that tells identities apart, :class:`DomainNorm` keeps of every position only the direction of its channels.
None needs a domain label, and none knows of domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.norm.specialised.style import instance_norm
from reid.norm.statistics import moments, statistics_dtype


class MixStyle(nn.Module):
    """MixStyle (Zhou et al. 2021): in training, images get means and deviations between theirs and another's.

    With ``probability`` the whole batch is mixed, each image with one of a random permutation, in the ratio
    lambda ~ Beta(alpha, alpha) of its own.  No gradient passes through the statistics.  In evaluation, and in
    batches that are not mixed, the output is x bit for bit.
    """

    def __init__(self, probability: float = 0.5, alpha: float = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        self.probability, self.alpha, self.eps = probability, alpha, eps

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        if not self.training:
            return x
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((len(x),)).to(x.device)
        mixed = torch.rand((), device=x.device) < self.probability  # not an if: the choice can be compiled
        share = torch.where(mixed, share, torch.ones_like(share))
        return mix_style(x, torch.randperm(len(x), device=x.device), share, self.eps)


def mix_style(x: Tensor, partner: Tensor, share: Tensor, eps: float = 1e-6) -> Tensor:
    """x (B, C, H, W) in the style of ``share`` (B,) parts itself, the rest image ``partner`` (B,) int64.

    Means and standard deviations are mixed, not variances.  Only the ratio of deviations counts, so it does
    not matter that they are biased.
    """
    with torch.no_grad():
        mean, var = moments(x)
        deviation = (var + eps).sqrt()
        own = share.to(mean.dtype).unsqueeze(1)  # (B, 1)
        # lerp is exact at its ends: an image that keeps its style is not touched.
        factor = torch.lerp(deviation[partner], deviation, own) / deviation
        shift = torch.lerp(mean[partner], mean, own) - mean * factor
    return torch.addcmul(shift[:, :, None, None].to(x.dtype), x, factor[:, :, None, None].to(x.dtype))


@dataclass(frozen=True)
class Restitution:
    """The maps of :class:`SNR`, (B, C, H, W) each: ``normalized`` IN(x); ``enhanced`` with the part of the removed
    style that tells identities apart; ``contaminated`` with the other part."""

    normalized: Tensor
    enhanced: Tensor
    contaminated: Tensor


class SNR(nn.Module):
    """Style normalization and restitution (Jin et al. 2020): IN(x) + a R with R = x - IN(x).

    The gate a (B, C) in 0..1 is squeeze-and-excitation on R: mean over positions, a bottleneck of
    ``channels`` / ``reduction``, sigmoid.  ``weight`` and ``bias`` (C,) are the affine of the IN.
    """

    def __init__(self, channels: int, reduction: int = 16, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        bottleneck = max(channels // reduction, 1)
        self.gate = nn.Sequential(nn.Linear(channels, bottleneck), nn.ReLU(), nn.Linear(bottleneck, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the enhanced map, the same shape."""
        return self.restitute(x).enhanced

    def restitute(self, x: Tensor) -> Restitution:
        """All three maps, which :func:`dual_causality_loss` compares (a forward hook on the layer sees x)."""
        normalized = instance_norm(x, self.weight, self.bias, self.eps)
        removed = x - normalized
        gate = self.gate(removed.mean((2, 3))).sigmoid()[:, :, None, None].to(x.dtype)
        return Restitution(normalized, normalized + gate * removed, normalized + (1 - gate) * removed)


def dual_causality_loss(maps: Restitution, identities: Tensor) -> Tensor:
    """SNR's loss, a scalar: the enhanced maps tell ``identities`` (B,) int64 apart better than the normalized
    ones, the contaminated ones worse.

    d(a, b) = 1/2 - cos(a, b) / 2 of maps averaged over positions.  Mean over pairs of one identity of
    softplus(d+ - d) + softplus(d - d-), and over pairs of two of softplus(d - d+) + softplus(d- - d), d+ and d-
    being distances of enhanced and contaminated maps (Jin et al. 2020, section 3.2, there over sampled
    triplets; here over all pairs of the batch).  A kind of pair that the batch does not have counts 0.
    """
    plain, enhanced, contaminated = (_cosine_distances(m) for m in (maps.normalized, maps.enhanced, maps.contaminated))
    same = identities[:, None] == identities[None, :]
    positive = same & ~torch.eye(len(identities), dtype=torch.bool, device=same.device)
    closer = functional.softplus(enhanced - plain) + functional.softplus(plain - contaminated)
    farther = functional.softplus(plain - enhanced) + functional.softplus(contaminated - plain)
    return sum(  # type: ignore[return-value]
        (loss * pairs).sum() / pairs.sum().clamp_min(1) for loss, pairs in ((closer, positive), (farther, ~same))
    )


def _cosine_distances(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, B), 0 for the same direction, 1 for the opposite one."""
    rows = functional.normalize(maps.mean((2, 3)))
    return 0.5 - rows @ rows.T / 2


class DomainNorm(nn.Module):
    """DomainNorm (Zhang et al. 2020): instance norm, then each position's channels to unit length, then affine.

    Invariant to gain and offset of every channel of an image, and to the contrast of each position; positions
    can be compared by cosine.  The same in training and evaluation.  ``weight`` and ``bias`` are (C,).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        exact = x.to(statistics_dtype(x))
        unit = functional.normalize(instance_norm(exact, eps=self.eps), dim=1, eps=1e-12)
        return torch.addcmul(self.bias[:, None, None], unit, self.weight[:, None, None]).to(x.dtype)
