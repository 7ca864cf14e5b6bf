"""The Swin transformer of SOLIDER, whose stages are scaled and shifted by how much meaning the features shall carry.

The network is that of Liu et al., "Swin Transformer", ICCV 2021; the controller is that of Chen et al., "Beyond
appearance: a semantic controllable self-supervised learning framework", CVPR 2023, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.models.networks.vision_transformer import FeedForward

WINDOW = 7  # tokens of a side of a window
PATCH_SIDE = 4  # pixels of a side of a patch
MASKED = -100.0  # added to the attention between tokens that the shift brought together


@dataclass(frozen=True)
class SwinShape:
    """The sizes of a Swin transformer.

    Args:
        width: Channels of the first stage; each further stage has twice as many.
        depths: Blocks of the stages.
        heads: Heads of the stages.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]


class WindowAttention(nn.Module):
    """Self-attention inside windows of 7x7 tokens, with a bias for each pair of relative positions.

    Args:
        width: Channels of a token.
        heads: The number of heads.
        shift: Tokens by which the windows are shifted: 0 or half a window.
    """

    position_index: Tensor

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        place = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))  # (49, 2)
        between = place[:, None] - place[None] + WINDOW - 1
        self.register_buffer("position_index", between[..., 0] * (2 * WINDOW - 1) + between[..., 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, H, W, C) within their windows; the map is padded to whole windows with zeros."""
        height, width = x.shape[1:3]
        x = functional.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        padded = (x.shape[1], x.shape[2])
        x = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        mixed = _join(self._attend(_split(x), self._mask(padded, x.device)), *padded)
        mixed = mixed.roll((self.shift, self.shift), (1, 2)) if self.shift else mixed
        return mixed[:, :height, :width]

    def _attend(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Mix the tokens of windows (B, windows, 49, C)."""
        size, count, tokens, width = windows.shape
        queries, keys, values = self.qkv(windows).view(size, count, tokens, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.position_index].permute(2, 0, 1)  # (heads, 49, 49)
        bias = bias if mask is None else bias + mask[:, None]  # (windows, heads, 49, 49)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        output: Tensor = self.proj(mixed.transpose(2, 3).reshape(size, count, tokens, width))
        return output

    def _mask(self, size: tuple[int, int], device: torch.device) -> Tensor | None:
        """Compute (windows, 49, 49): what keeps tokens apart that were not neighbours before the shift."""
        if not self.shift:
            return None
        sides = []
        for length in size:
            position = torch.arange(length, device=device)
            sides.append((position >= length - WINDOW).int() + (position >= length - self.shift).int())
        region = (3 * sides[0][:, None] + sides[1][None])[None, :, :, None]
        of_windows = _split(region)[0, :, :, 0]  # (windows, 49)
        return (of_windows[:, :, None] != of_windows[:, None]) * MASKED


class SwinBlock(nn.Module):
    """A block: attention inside windows, then feed-forward layers, each with its norm before it."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, shift)
        self.mlp = FeedForward(width, 4 * width, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class PatchMerging(nn.Module):
    """Join 2x2 tokens (B, H, W, C) into one of 2 C channels; the order of the joined channels is that of nn.Unfold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = functional.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        size, height, width, channels = x.shape
        joined = x.view(size, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 5, 2, 4).flatten(3)
        output: Tensor = self.reduction(self.norm(joined))
        return output


class SemanticScale(nn.Module):
    """Scale and shift the channels of a stage by the wanted part of meaning, between 0 and 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Linear(2, width), nn.Linear(2, width)

    def forward(self, x: Tensor, part: float) -> Tensor:
        parts = x.new_tensor([part, 1.0 - part])
        output: Tensor = x * functional.softplus(self.scale(parts)) + self.shift(parts)
        return output


class SemanticSwin(nn.Module):
    """SOLIDER's Swin transformer.

    Args:
        shape: Its sizes.
        part: How much meaning, rather than appearance, the features shall carry, 0..1; re-identification takes 0.2.
            Negative where the network was trained without the controller.
    """

    def __init__(self, shape: SwinShape, part: float) -> None:
        super().__init__()
        widths = [shape.width * 2**stage for stage in range(len(shape.depths))]
        self.part, self.channels = part, widths[-1]
        self.patches = nn.Conv2d(3, shape.width, PATCH_SIDE, PATCH_SIDE)
        self.patch_norm = nn.LayerNorm(shape.width)
        self.stages = nn.ModuleList(
            nn.Sequential(*(SwinBlock(width, heads, WINDOW // 2 * (block % 2)) for block in range(depth)))
            for width, depth, heads in zip(widths, shape.depths, shape.heads, strict=True)
        )
        self.merging = nn.ModuleList(PatchMerging(width) for width in widths[:-1])
        self.semantic = nn.ModuleList(SemanticScale(width) for width in widths[1:] if part >= 0)
        self.norm = nn.LayerNorm(widths[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Compute the map (B, C, h, w) of the last stage of normalised images (B, 3, H, W) float."""
        images = functional.pad(images, (0, -images.shape[3] % PATCH_SIDE, 0, -images.shape[2] % PATCH_SIDE))
        x = self.patch_norm(self.patches(images).permute(0, 2, 3, 1))
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number < len(self.merging):
                x = self.merging[number](x)
                x = self.semantic[number](x, self.part) if self.part >= 0 else x
        feature_map: Tensor = self.norm(x).permute(0, 3, 1, 2)
        return feature_map


def _split(x: Tensor) -> Tensor:
    """Cut a map (B, H, W, C) into windows (B, windows, 49, C)."""
    size, height, width, channels = x.shape
    parts = x.view(size, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return parts.transpose(2, 3).reshape(size, -1, WINDOW**2, channels)


def _join(windows: Tensor, height: int, width: int) -> Tensor:
    """Put windows back into a map, the reverse of :func:`_split`."""
    size, _, _, channels = windows.shape
    parts = windows.view(size, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
    return parts.transpose(2, 3).reshape(size, height, width, channels)
