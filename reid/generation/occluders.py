"""Occluders that are drawn in front of crops, with their masks: to learn completion, and to measure what it is worth.

A mask is (B, 1, H, W) bool and True where the crop is hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reid.errors import DataError

# How wide an occluder is, as a fraction of the crop's width, and where it stands: post and board touch an edge.
SHAPES = ("post", "board", "box")


def draw_masks(count: int, size: tuple[int, int], share: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw the masks of occluders: posts of full height, boards of full width at the bottom, and boxes anywhere.

    Args:
        count: B.
        size: Height and width in pixels.
        share: The least and the most of the crop that is hidden, 0..1.  The hidden share differs from the drawn one
            by less than one row or column of the occluder.
        generator: Decides the result.

    Returns:
        (B, 1, H, W) bool.

    Raises:
        DataError: The shares are not in order within 0..1.

    Example:
        >>> masks = draw_masks(4, (64, 32), (0.25, 0.25), torch.Generator().manual_seed(0))
        >>> bool((masks.float().mean((1, 2, 3)) - 0.25).abs().max() < 0.03)
        True
    """
    low, high = share
    if not 0 <= low <= high <= 1:
        raise DataError(f"hidden share: expected 0 <= least <= most <= 1, got {low} and {high}")
    height, width = size
    uniform = torch.rand((count, 5), generator=generator, dtype=torch.float64)
    masks = torch.zeros(count, 1, height, width, dtype=torch.bool)
    for mask, (whether, across, down, shape, aspect) in zip(masks, uniform.tolist(), strict=True):
        area = (low + whether * (high - low)) * height * width
        if area < 0.5:
            continue
        name = SHAPES[min(int(shape * len(SHAPES)), len(SHAPES) - 1)]
        if name == "post":
            rows = height
        elif name == "board":
            rows = max(1, round(area / width))
        else:
            least = min(height, max(1, -(-int(area) // width)))  # lower, and the box would be wider than the crop
            rows = least + int(aspect * (height - least))
        columns = min(width, max(1, round(area / rows)))
        top = height - rows if name == "board" else int(down * (height - rows + 1))
        left = int(across * (width - columns + 1))
        mask[:, top : top + rows, left : left + columns] = True
    return masks


def draw_textures(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Draw what occluders look like: one colour, a colour with stripes or noise, or a part of another crop.

    Args:
        crops: (B, 3, H, W) float in -1..1; parts of these are taken.  Where a crop has no colour, neither has its
            occluder.
        generator: Decides the result.

    Returns:
        (B, 3, H, W) in -1..1.
    """
    count, _, height, width = crops.shape
    colour = torch.rand((count, 3, 1, 1), generator=generator) * 2 - 1
    noise = functional.interpolate(
        torch.randn((count, 1, max(height // 4, 1), max(width // 4, 1)), generator=generator), (height, width)
    )
    strength = torch.rand((count, 1, 1, 1), generator=generator) * 0.4
    period = torch.randint(3, 9, (count, 1, 1, 1), generator=generator)
    rows = torch.arange(height).view(1, 1, -1, 1)
    stripes = ((rows % period) < period // 2).float() * 2 - 1
    which = torch.randint(0, 4, (count, 1, 1, 1), generator=generator)
    texture = colour + strength * torch.where(which == 1, stripes, torch.where(which == 2, noise, torch.zeros(())))
    other = crops.roll(1, 0).roll((height // 3, width // 4), (2, 3))
    texture = torch.where(which == 3, other, texture).clamp(-1, 1)
    colourless = (crops[:, :1] == crops[:, 1:]).flatten(1).all(1).view(-1, 1, 1, 1)
    return torch.where(colourless, texture.mean(1, keepdim=True), texture)


def occlude(crops: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """Draw occluders in front of crops (B, 3, H, W) in -1..1 where the masks (B, 1, H, W) are True."""
    return torch.where(masks, draw_textures(crops, generator), crops)
