"""Region normalization (Yu et al. 2020): the parts of an image inside and outside a mask, each by itself.

What an occluder or the background adds to the statistics then stays out of the person's.  The mask comes
with the condition of the forward pass, ``Given(network)(images, mask=...)``, or the layer finds one itself.
Which part shows the person, nothing here knows: the two regions are treated alike.

The published layer pools statistics over the batch, in evaluation too, so that an image's embedding depends
on its batch mates.  Here evaluation always uses the statistics of each image alone; training pools as
published, or with ``pooled=False`` does as evaluation does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError
from reid.norm.condition import current_condition
from reid.norm.statistics import Statistics, statistics_dtype


def region_stats(x: Tensor, region: Tensor) -> Statistics:
    """Moments of each image over its region: x (B, C, H, W), region (B, 1, H, W) bool -> Statistics of B groups.

    ``mass`` counts positions; an empty region has mass, mean and variance 0.
    """
    member = region.to(x.dtype)
    mass = member.sum((1, 2, 3))
    share = member / mass.clamp_min(1)[:, None, None, None]
    mean = (x * share).sum((2, 3))
    return Statistics(mean, ((x - mean[:, :, None, None]).square() * share).sum((2, 3)), mass)


def standardize_regions(x: Tensor, mask: Tensor, pooled: bool = False, eps: float = 1e-5) -> Tensor:
    """Mean 0 and variance 1 inside the mask and outside it: x (B, C, H, W), mask (B, 1, H, W) bool -> like x.

    Statistics are each image's own, or with ``pooled`` those of the region in the whole batch.  A region R of
    N positions in all is (x - mu_R) / sqrt(var_R + eps N / |R|), to which the published steps (fill with the
    region's mean, BN, multiply by sqrt(|R| / N)) amount: a small region is damped.  A region of a single
    position becomes 0.
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

    ``weight`` and ``bias`` (2, C): row 0 inside (mask 1), row 1 outside.  A bias stays in its region; the
    published code adds both everywhere, which makes the sum of the two one bias for all.
    """

    def __init__(self, channels: int, pooled: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.pooled, self.eps = pooled, eps
        self.weight = nn.Parameter(torch.ones(2, channels))
        self.bias = nn.Parameter(torch.zeros(2, channels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> the same shape.

        ``mask`` (B, 1, h, w), bool or 0..1, of any size: it is averaged over each position of the map, and half
        of it or more counts as inside.  Without it the condition's, or ConditionError.
        """
        inside = mask_at(current_mask() if mask is None else mask, x) >= 0.5
        y = standardize_regions(x, inside, self.pooled and self.training, self.eps)
        weight, bias = self.weight[..., None, None].to(x.dtype), self.bias[..., None, None].to(x.dtype)
        return torch.where(inside, torch.addcmul(bias[0], y, weight[0]), torch.addcmul(bias[1], y, weight[1]))


class LearnedRegionNorm(nn.Module):
    """Learnable region norm: the mask is found from the map itself, the affine differs from position to position.

    A 7x7 convolution of the mean and the maximum over channels gives an importance in 0..1; positions at
    ``threshold`` or above form the inside.  Two more convolutions of the importance give scale - 1 and shift
    (B, 1, H, W).  The threshold passes no gradient: the importance learns through scale and shift alone, which
    start at zero, so that the layer starts as a region norm without affine.
    """

    def __init__(self, threshold: float = 0.8, pooled: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.threshold, self.pooled, self.eps = threshold, pooled, eps
        self.importance = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.affine = nn.Conv2d(1, 2, 7, padding=3)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        importance = self.importance(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        y = standardize_regions(x, importance >= self.threshold, self.pooled and self.training, self.eps)
        scale, shift = self.affine(importance).to(x.dtype).chunk(2, dim=1)
        return torch.addcmul(shift, y, 1 + scale)


def current_mask() -> Tensor:
    """The mask of the forward pass that this thread is in; ConditionError if it was given none."""
    condition = current_condition()
    if condition is None or condition.mask is None:
        raise ConditionError(
            "this network normalizes by region and was told none: call Given(network)(images, mask=...),"
            " mask (B, 1, H, W) as large as the images"
        )
    return condition.mask


def mask_at(mask: Tensor, x: Tensor) -> Tensor:
    """The mask (B, 1, h, w), bool or 0..1, at the size of the map x (B, C, H, W): mean over each position's area."""
    if mask.dim() != 4 or mask.shape[:2] != (len(x), 1):
        raise ConditionError(f"mask: expected ({len(x)}, 1, H, W), one for each image, got {tuple(mask.shape)}")
    return functional.interpolate(mask.to(statistics_dtype(x)), size=x.shape[2:], mode="area")
