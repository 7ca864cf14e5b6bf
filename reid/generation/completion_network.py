"""The network that completes occluded crops, its discriminator, and a network that guesses where the occluder is.

The completion network is that of region normalization (Yu et al. 2020) at a size for crops of 64 x 32: an encoder with
basic region norms that get the mask, residual blocks and a decoder with learnable region norms, and a discriminator
with spectral norm.  The published layers pool statistics over the batch.  Here a crop is completed by itself, so all
statistics are those of single crops; the moments of the visible pixels, which such norms remove, are put back at the
end.  The network does not begin with a hole: it corrects a smooth fill, whose colours flow in from the visible pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.norm import Given
from reid.norm.specialised.region_norm import LearnedRegionNorm, RegionNorm, current_mask, region_stats
from reid.norm.specialised.weight_normalization import normalize_weights

CHANNELS = (16, 32, 48)
BLOCKS = 2
_LEAST_DEVIATION = 0.05  # of visible pixels in -1..1, so that a crop of one colour can be completed


class RegionBlock(nn.Module):
    """A residual block of two 3x3 convolutions, the first dilated by 2, with learnable region norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2),
            LearnedRegionNorm(pooled=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            LearnedRegionNorm(pooled=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (B, C, H, W); the result has the same shape."""
        y: Tensor = x + self.body(x)
        return y


class CompletionNetwork(nn.Module):
    """Predicts the pixels of a crop; those behind the mask are what it is for.

    Call :func:`complete`, which passes the mask to the layers.

    Args:
        channels: The channels at full, half and quarter size.
        blocks: The number of residual blocks at quarter size.
    """

    def __init__(self, channels: tuple[int, int, int] = CHANNELS, blocks: int = BLOCKS) -> None:
        super().__init__()
        full, half, quarter = channels
        self.encoder = nn.Sequential(
            nn.Conv2d(4, full, 7, padding=3), RegionNorm(full, pooled=False), nn.ReLU(),
            nn.Conv2d(full, half, 4, stride=2, padding=1), RegionNorm(half, pooled=False), nn.ReLU(),
            nn.Conv2d(half, quarter, 4, stride=2, padding=1), RegionNorm(quarter, pooled=False), nn.ReLU(),
        )  # fmt: skip
        last = nn.Conv2d(full, 3, 7, padding=3)
        nn.init.zeros_(last.weight)  # the network starts as the smooth fill
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.blocks = nn.Sequential(*(RegionBlock(quarter) for _ in range(blocks)))
        self.decoder = nn.Sequential(
            nn.Conv2d(quarter, 4 * half, 3, padding=1), nn.PixelShuffle(2), LearnedRegionNorm(pooled=False), nn.ReLU(),
            nn.Conv2d(half, 4 * full, 3, padding=1), nn.PixelShuffle(2), LearnedRegionNorm(pooled=False), nn.ReLU(),
            last,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Correct the smooth fill of images (B, 3, H, W) in about -1..1; H and W are multiples of 4.

        Pixels behind the mask of the condition, which is True where the crop is hidden, do not count.
        """
        hidden = current_mask().bool()
        visible = region_stats(images, ~hidden)
        mean = visible.mean[:, :, None, None]
        deviation = visible.var.sqrt().clamp_min(_LEAST_DEVIATION)[:, :, None, None]
        standard = (smooth_fill(images, hidden) - mean) / deviation
        maps = self.encoder(torch.cat([standard, hidden.to(images.dtype)], 1))
        predicted: Tensor = standard + self.decoder(self.blocks(maps))
        return predicted * deviation + mean


def smooth_fill(images: Tensor, masks: Tensor) -> Tensor:
    """Fill what is hidden with the means of the visible pixels around it, coarser where the hole is larger.

    A pyramid of averages over visible pixels is built, each level half as large; a pixel of a level that averages
    nothing takes the enlarged coarser level (pull-push, Gortler et al. 1996).

    Args:
        images: (B, 3, H, W).
        masks: (B, 1, H, W) bool, True where the image is hidden.  What is there does not count.

    Returns:
        (B, 3, H, W); an image that is hidden as a whole becomes 0.

    Example:
        >>> images, masks = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
        >>> masks[..., 2:5] = True
        >>> smooth_fill(images.masked_fill(masks, 9.0), masks).unique().tolist()
        [0.5]
    """
    weight = (~masks).to(images.dtype)
    values = torch.where(masks, torch.zeros_like(images), images)
    coarser = torch.zeros_like(images[..., :1, :1])
    if images.shape[2] * images.shape[3] > 1:
        share = functional.avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)
        total = functional.avg_pool2d(values * weight, 2, ceil_mode=True, count_include_pad=False)
        below = smooth_fill(total / share.clamp_min(torch.finfo(share.dtype).tiny), share == 0)
        coarser = functional.interpolate(below, images.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(masks, coarser, values)


def complete(network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Fill what is hidden and keep what is visible, bit for bit.

    Args:
        network: A :class:`CompletionNetwork`.
        images: (B, 3, H, W) in -1..1.
        masks: (B, 1, H, W) bool, True where the crop is hidden.

    Returns:
        (B, 3, H, W).
    """
    return torch.where(masks, Given(network)(images, mask=masks), images)


def build_patch_discriminator(channels: int = 16) -> nn.Module:
    """Build a discriminator of patches with spectral norm: images (B, 3, H, W) -> logits (B, 1, H / 16, W / 16)."""
    layers: list[nn.Module] = []
    width = 3
    for out in (channels, 2 * channels, 4 * channels, 4 * channels):
        layers += [nn.Conv2d(width, out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = out
    return normalize_weights(nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1)), "spectral")


class MaskGuesser(nn.Module):
    """Guesses which pixels of a crop an occluder hides: images (B, 3, H, W) in -1..1 -> logits (B, 1, H, W)."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.fine = _convolution(3, channels, 1)
        self.coarse = nn.Sequential(
            _convolution(channels, 2 * channels, 2),
            _convolution(2 * channels, 4 * channels, 2),
            _convolution(4 * channels, 4 * channels, 1, dilation=2),
            nn.Conv2d(4 * channels, 16 * channels, 3, padding=1),
            nn.PixelShuffle(4),
        )
        self.head = nn.Sequential(_convolution(2 * channels, channels, 1), nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits; H and W are multiples of 4."""
        fine = self.fine(images)
        logits: Tensor = self.head(torch.cat([fine, self.coarse(fine)], 1))
        return logits


def _convolution(inputs: int, outputs: int, stride: int, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
