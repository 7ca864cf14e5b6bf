"""Normalizations against style, for networks that must work on cameras they were not trained on.

:class:`MixStyle` perturbs the style of training images.  :class:`SNR` removes the style and restores the part that
distinguishes identities.  :class:`DomainNorm` keeps only the direction of the channels at every position.  None of them
needs to know the domain of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.norm.specialised.style import instance_norm
from reid.norm.statistics import moments, statistics_dtype


class MixStyle(nn.Module):
    """MixStyle (Zhou et al. 2021): in training, images get means and deviations between their own and another image's.

    Each image is mixed with one of a random permutation of the batch; the fraction lambda ~ Beta(alpha, alpha) is its
    own.  No gradient passes through the statistics.  In evaluation, and in batches that are not mixed, the output is x
    to the bit.

    Args:
        probability: How often a batch is mixed.
        alpha: The parameter of the Beta distribution.
        eps: Is added to variances.
    """

    def __init__(self, probability: float = 0.5, alpha: float = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        self.probability, self.alpha, self.eps = probability, alpha, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W); the result has the same shape."""
        if not self.training:
            return x
        fractions = torch.distributions.Beta(self.alpha, self.alpha, validate_args=False)
        share = fractions.sample((len(x),)).to(x.device)
        mixed = torch.rand((), device=x.device) < self.probability  # without an if, so that the choice can be compiled
        share = torch.where(mixed, share, torch.ones_like(share))
        return mix_style(x, torch.randperm(len(x), device=x.device), share, self.eps)


def mix_style(x: Tensor, partner: Tensor, share: Tensor, eps: float = 1e-6) -> Tensor:
    """Mix the style of each image with that of another image.

    Means and standard deviations are mixed.  Only the ratio of deviations matters, so biased ones do no harm.

    Args:
        x: (B, C, H, W).
        partner: (B,) int64, the other image of each image.
        share: (B,) in 0..1, the fraction of an image's own style.
        eps: Is added to variances.

    Returns:
        (B, C, H, W), without a gradient through the statistics.

    Example:
        >>> x = torch.randn(2, 3, 8, 8)
        >>> torch.equal(mix_style(x, torch.tensor([1, 0]), torch.ones(2)), x)
        True
    """
    with torch.no_grad():
        mean, var = moments(x)
        deviation = (var + eps).sqrt()
        own = share.to(mean.dtype).unsqueeze(1)  # (B, 1)
        # lerp is exact at its ends, so an image that keeps its style does not change.
        factor = torch.lerp(deviation[partner], deviation, own) / deviation
        shift = torch.lerp(mean[partner], mean, own) - mean * factor
    return torch.addcmul(shift[:, :, None, None].to(x.dtype), x, factor[:, :, None, None].to(x.dtype))


@dataclass(frozen=True)
class Restitution:
    """The three maps of :class:`SNR`, (B, C, H, W) each.

    Args:
        normalized: IN(x).
        enhanced: IN(x) and the part of the removed style that distinguishes identities.
        contaminated: IN(x) and the other part.
    """

    normalized: Tensor
    enhanced: Tensor
    contaminated: Tensor


class SNR(nn.Module):
    """Style normalization and restitution (Jin et al. 2020): IN(x) + a R with R = x - IN(x).

    The gate a (B, C) in 0..1 is squeeze-and-excitation on R: mean over positions, a bottleneck, sigmoid.  ``weight``
    and ``bias`` (C,) are the affine of the instance norm.

    Args:
        channels: C.
        reduction: The bottleneck has ``channels`` / ``reduction`` units.
        eps: Is added to variances.
    """

    def __init__(self, channels: int, reduction: int = 16, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        bottleneck = max(channels // reduction, 1)
        self.gate = nn.Sequential(nn.Linear(channels, bottleneck), nn.ReLU(), nn.Linear(bottleneck, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the enhanced map of x (B, C, H, W), of the same shape."""
        return self.restitute(x).enhanced

    def restitute(self, x: Tensor) -> Restitution:
        """Compute all three maps of x (B, C, H, W), which :func:`dual_causality_loss` compares."""
        normalized = instance_norm(x, self.weight, self.bias, self.eps)
        removed = x - normalized
        gate = self.gate(removed.mean((2, 3))).sigmoid()[:, :, None, None].to(x.dtype)
        return Restitution(normalized, normalized + gate * removed, normalized + (1 - gate) * removed)


def dual_causality_loss(maps: Restitution, identities: Tensor) -> Tensor:
    """Compute SNR's loss, which makes enhanced maps separate identities better than normalized maps do.

    It also makes contaminated maps separate them worse.

    d(a, b) = 1/2 - cos(a, b) / 2 is the distance of maps averaged over positions; d+ and d- are those of enhanced and
    of contaminated maps.  The loss is the mean of softplus(d+ - d) + softplus(d - d-) over pairs of one identity, plus
    the mean of softplus(d - d+) + softplus(d- - d) over pairs of two identities (Jin et al. 2020, section 3.2; there
    over sampled triplets, here over all pairs of the batch).  Where the batch has no such pairs, a mean counts as 0.

    Args:
        maps: The maps of B images.
        identities: (B,) int64.

    Returns:
        A scalar.
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
    """(B, C, H, W) -> (B, B) in 0..1, 0 for the same direction."""
    rows = functional.normalize(maps.mean((2, 3)))
    return 0.5 - rows @ rows.T / 2


class DomainNorm(nn.Module):
    """DomainNorm (Zhang et al. 2020): instance norm, then scaling each position to unit length, then an affine.

    The result does not depend on gain and offset of a channel of an image, nor on the contrast of a position; positions
    can be compared by cosine.  Training and evaluation compute the same.  ``weight`` and ``bias`` are (C,).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W); the result has the same shape."""
        exact = x.to(statistics_dtype(x))
        unit = functional.normalize(instance_norm(exact, eps=self.eps), dim=1, eps=1e-12)
        return torch.addcmul(self.bias[:, None, None], unit, self.weight[:, None, None]).to(x.dtype)
