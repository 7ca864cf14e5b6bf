"""Resize images as Pillow does, with a gradient: what reaches the network is what a saved file would give.

Pillow resizes the columns and then the rows, each by a weighted sum of neighbouring pixels, and rounds to 8 bits after
both.  These are two matrix products.  The gradient passes the rounding unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from reid.data.transforms import EvaluationTransform


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    """Keys' cubic with a = -0.5 (Keys 1981), as Pillow has it."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def _lanczos(x: float) -> float:
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0


# An interpolation of an EvaluationTransform -> its kernel, and how far it reaches in pixels.
KERNELS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


@lru_cache(maxsize=64)
def resize_matrix(source: int, target: int, interpolation: str) -> Tensor:
    """Return the weights with which Pillow makes ``target`` pixels of ``source`` pixels.

    Args:
        source: Pixels of a side before.
        target: Pixels of the side after.
        interpolation: "nearest" or a key of :data:`KERNELS`.

    Returns:
        (target, source) float32; rows sum to 1.

    Example:
        >>> resize_matrix(4, 2, "nearest").tolist()
        [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    matrix = np.zeros((target, source))
    scale = source / target
    if interpolation == "nearest":
        matrix[np.arange(target), ((np.arange(target) + 0.5) * scale).astype(np.int64)] = 1.0
        return torch.from_numpy(matrix).float()
    kernel, reach = KERNELS[interpolation]
    width = max(scale, 1.0)
    for row in range(target):
        centre = (row + 0.5) * scale
        first = max(0, int(centre - reach * width + 0.5))
        last = min(source, int(centre + reach * width + 0.5))
        weights = np.array([kernel((x - centre + 0.5) / width) for x in range(first, last)])
        matrix[row, first:last] = weights / weights.sum()
    return torch.from_numpy(matrix).float()


def rounded(values: Tensor) -> Tensor:
    """Round to whole numbers in 0..255; the gradient is that of no rounding."""
    whole = (values.detach() + 0.5).floor().clamp(0, 255)
    return values + (whole - values).detach()


def resize(images: Tensor, transform: EvaluationTransform) -> Tensor:
    """Resize images as :meth:`~reid.data.transforms.EvaluationTransform.resize` does, with a gradient.

    Args:
        images: (B, 3, H, W) float, whole numbers in 0..255.
        transform: Gives height, width and interpolation.

    Returns:
        (B, 3, height, width) float, whole numbers in 0..255; a few in a thousand differ by 1 from Pillow's.
    """
    height, width = images.shape[2:]
    if width != transform.width:
        images = rounded(images @ resize_matrix(width, transform.width, transform.interpolation).T.to(images))
    if height != transform.height:
        images = rounded(resize_matrix(height, transform.height, transform.interpolation).to(images) @ images)
    return images


def network_input(images: Tensor, transform: EvaluationTransform) -> Tensor:
    """Prepare images (B, 3, H, W) float in 0..255 for a network, with a gradient: resize and scale their values."""
    crops = resize(images, transform)
    mean, std = (torch.tensor(numbers).view(3, 1, 1).to(images) for numbers in (transform.mean, transform.std))
    return (crops / 255 - mean) / std


def memory_of(height: int, width: int) -> int:
    """Estimate the bytes that an attack on one image of a size holds at a time."""
    return 40 * 3 * math.prod((height, width))
