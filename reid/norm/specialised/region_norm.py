"""Region normalization (Yu et al. 2020): statistics of their own inside and outside a mask.

An occluder or the background then does not change the statistics of the person.  The mask comes from
``Given(network)(images, mask=...)``, or the layer computes one.  Both regions are treated alike, whichever shows the
person.

The published layer pools statistics over the batch, in evaluation too, so that the embedding of an image depends on the
other images of its batch.  Here evaluation always uses the statistics of single images; training pools as published, or
with ``pooled=False`` computes as evaluation does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError
from reid.norm.condition import current_condition
from reid.norm.statistics import Statistics, statistics_dtype


def region_stats(x: Tensor, region: Tensor) -> Statistics:
    """Compute the moments of each image over its region.

    Args:
        x: (B, C, H, W).
        region: (B, 1, H, W) bool.

    Returns:
        Statistics of B groups, whose ``mass`` counts positions; an empty region has mass, mean and variance 0.
    """
    member = region.to(x.dtype)
    mass = member.sum((1, 2, 3))
    share = member / mass.clamp_min(1)[:, None, None, None]
    mean = (x * share).sum((2, 3))
    return Statistics(mean, ((x - mean[:, :, None, None]).square() * share).sum((2, 3)), mass)


def standardize_regions(x: Tensor, mask: Tensor, pooled: bool = False, eps: float = 1e-5) -> Tensor:
    """Give the inside and the outside of a mask mean 0 and variance 1 each.

    A region R of an image of N positions becomes (x - mu_R) / sqrt(var_R + eps N / |R|), which is what the published
    steps amount to (fill with the region's mean, BN, multiply by sqrt(|R| / N)): a small region is damped.  A region of
    a single position becomes 0.

    Args:
        x: (B, C, H, W).
        mask: (B, 1, H, W) bool.
        pooled: Use the statistics of the region in the whole batch instead of those of each image.
        eps: As above.

    Returns:
        (B, C, H, W), of the type of ``x``.
    """
    exact = x.to(statistics_dtype(x))
    regions = []
    for region in (mask, ~mask):
        stats = region_stats(exact, region)
        stats = stats.merge_all() if pooled else stats
        positions = x.shape[2] * x.shape[3] * (len(x) if pooled else 1)
        damping = (eps * positions / stats.mass.clamp_min(1)).unsqueeze(1)  # (B, 1), or (1, 1) when pooled
        mean, sharp = stats.mean, torch.rsqrt(stats.var + damping)
        regions.append((exact - mean[:, :, None, None]) * sharp[:, :, None, None])
    return torch.where(mask, regions[0], regions[1]).to(x.dtype)


class RegionNorm(nn.Module):
    """Basic region norm: statistics and affine of their own inside and outside a given mask.

    ``weight`` and ``bias`` are (2, C): row 0 inside (mask 1), row 1 outside.  A bias is added in its region only; the
    published code adds both everywhere, where only their sum counts.

    Args:
        channels: C.
        pooled: In training, pool the statistics over the batch.
        eps: As in :func:`standardize_regions`.

    Example:
        >>> from reid.norm import Given
        >>> masks = torch.zeros(2, 1, 8, 8)
        >>> masks[..., :4] = 1
        >>> Given(RegionNorm(3))(torch.randn(2, 3, 8, 8), mask=masks).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, channels: int, pooled: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.pooled, self.eps = pooled, eps
        self.weight = nn.Parameter(torch.ones(2, channels))
        self.bias = nn.Parameter(torch.zeros(2, channels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize a map.

        Args:
            x: (B, C, H, W).
            mask: (B, 1, h, w), bool or 0..1, of any size.  It is averaged over the area of each position of the map; a
                half or more counts as inside.  By default the mask that ``Given`` passes.

        Returns:
            (B, C, H, W).

        Raises:
            ConditionError: If there is no mask, or it has another shape.
        """
        inside = mask_at(current_mask() if mask is None else mask, x) >= 0.5
        y = standardize_regions(x, inside, self.pooled and self.training, self.eps)
        weight, bias = self.weight[..., None, None].to(x.dtype), self.bias[..., None, None].to(x.dtype)
        return torch.where(inside, torch.addcmul(bias[0], y, weight[0]), torch.addcmul(bias[1], y, weight[1]))


class LearnedRegionNorm(nn.Module):
    """Learnable region norm: computes the mask from the map itself, and an affine for each position.

    A 7x7 convolution of the mean and the maximum over channels gives an importance in 0..1; positions at ``threshold``
    or above form the inside.  Two more convolutions of the importance give scale - 1 and shift (B, 1, H, W).  The
    threshold passes no gradient, so the importance learns only through scale and shift.  These start with 0, so that
    the layer starts as a region norm without affine.
    """

    def __init__(self, threshold: float = 0.8, pooled: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.threshold, self.pooled, self.eps = threshold, pooled, eps
        self.importance = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.affine = nn.Conv2d(1, 2, 7, padding=3)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W); the result has the same shape."""
        importance = self.importance(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        y = standardize_regions(x, importance >= self.threshold, self.pooled and self.training, self.eps)
        scale, shift = self.affine(importance).to(x.dtype).chunk(2, dim=1)
        return torch.addcmul(shift, y, 1 + scale)


def current_mask() -> Tensor:
    """Return the mask of the forward pass of this thread; raise ConditionError if there is none."""
    condition = current_condition()
    if condition is None or condition.mask is None:
        raise ConditionError(
            "this network normalizes by region and was given no mask: call Given(network)(images, mask=...),"
            " mask (B, 1, H, W) as large as the images"
        )
    return condition.mask


def mask_at(mask: Tensor, x: Tensor) -> Tensor:
    """Resize a mask (B, 1, h, w), bool or 0..1, to a map (B, C, H, W): the mean over the area of each position."""
    if mask.dim() != 4 or mask.shape[:2] != (len(x), 1):
        raise ConditionError(f"mask: expected ({len(x)}, 1, H, W), one for each image, got {tuple(mask.shape)}")
    return functional.interpolate(mask.to(statistics_dtype(x)), size=x.shape[2:], mode="area")
