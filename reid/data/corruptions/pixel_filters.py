"""Filters that several corruptions share: smoothing, zooming, motion along a line, and cloudy random maps.

Pixels are arrays (H, W, C) of float64 in 0..1, where C is 3, or 1 for an infrared image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float64]
Random = np.random.Generator


def smooth(pixels: Pixels, sigma: float) -> Pixels:
    """Blur (H, W, C) with a Gaussian of ``sigma`` pixels; the border is repeated."""
    from scipy import ndimage

    found: Pixels = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
    return found


def convolve(pixels: Pixels, kernel: Pixels) -> Pixels:
    """Convolve every channel of (H, W, C) with a kernel (k, k) of odd side; the border is mirrored."""
    from scipy import signal

    reach = len(kernel) // 2
    around = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    found: Pixels = signal.fftconvolve(around, kernel[:, :, None], mode="valid", axes=(0, 1))
    return found


def disk_kernel(radius: int, alias_sigma: float) -> Pixels:
    """Draw the image of a point that is out of focus: a disk that sums to 1, its edge smoothed.

    Args:
        radius: Radius of the disk in pixels.
        alias_sigma: Sigma of the Gaussian, 3 pixels wide up to radius 8 and 5 pixels above, that smooths the edge.

    Returns:
        The kernel (k, k), k odd.
    """
    from scipy import signal

    reach, half = max(8, radius), 1 if radius <= 8 else 2
    offsets = np.arange(-reach - half, reach + half + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * alias_sigma**2))
    weights /= weights.sum()
    kernel: Pixels = signal.convolve2d(disk / disk.sum(), np.outer(weights, weights), mode="same")
    return kernel


def zoom(pixels: Pixels, factor: float) -> Pixels:
    """Enlarge the middle of (H, W, C) by ``factor``, at least 1, to the same size, by linear interpolation."""
    for axis in (0, 1):
        middle = (pixels.shape[axis] - 1) / 2
        positions = middle + (np.arange(pixels.shape[axis]) - middle) / factor
        before = np.floor(positions).astype(int)
        share = (positions - before)[:, None, None] if axis == 0 else (positions - before)[:, None]
        after = np.minimum(before + 1, pixels.shape[axis] - 1)
        pixels = (1 - share) * pixels.take(before, axis) + share * pixels.take(after, axis)
    return pixels


def smear(pixels: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """Blur (H, W, C) as motion in one direction does.

    Step i of 2 ``radius`` + 1 moves the image i pixels along the angle and counts exp(-i^2 / (2 sigma^2)).  Steps that
    would leave the image are left out, and the others keep their weights in proportion.

    Args:
        pixels: The image.
        radius: Half the number of steps.
        sigma: Decides how fast the weights fall, in pixels.
        angle: Direction in degrees; 0 is horizontal.

    Returns:
        The blurred image, of the same shape.
    """
    height, width = pixels.shape[:2]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down = -np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    across = -np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    inside = (np.abs(down) < height) & (np.abs(across) < width)
    total = np.zeros_like(pixels)
    for weight, row, column in zip(weights[inside], down[inside], across[inside], strict=True):
        rows = np.clip(np.arange(height) - row, 0, height - 1)
        columns = np.clip(np.arange(width) - column, 0, width - 1)
        total += weight * pixels[rows][:, columns]
    return total / float(weights[inside].sum())


def cloud_map(height: int, width: int, decay: float, random: Random) -> Pixels:
    """Draw a cloudy map by midpoint displacement on a square that wraps around.

    Every step halves the distance of the known points and divides the size of the random displacements by ``decay``, so
    a larger decay gives a smoother map.

    Args:
        height: Rows wanted.
        width: Columns wanted.
        decay: How fast the displacements fall, above 1.
        random: Decides the map.

    Returns:
        The map (height, width, 1), part of a square of 0..1.
    """
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    table = np.zeros((side, side))
    step, reach = side, 1.0
    while step >= 2:
        half = step // 2
        corners = table[::step, ::step]
        middle = (corners + np.roll(corners, -1, 0) + np.roll(corners, -1, 1) + np.roll(corners, (-1, -1), (0, 1))) / 4
        table[half::step, half::step] = middle + random.uniform(-reach, reach, middle.shape)
        centres = table[half::step, half::step]
        top = (corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0)) / 4
        left = (corners + np.roll(corners, -1, 0) + centres + np.roll(centres, 1, 1)) / 4
        table[::step, half::step] = top + random.uniform(-reach, reach, top.shape)
        table[half::step, ::step] = left + random.uniform(-reach, reach, left.shape)
        step, reach = half, reach / decay
    table -= table.min()
    return (table / (table.max() or 1.0))[:height, :width, None]


def luminance(pixels: Pixels) -> Pixels:
    """Return the grey (H, W, 1) of an image, by the weights of ITU-R BT.601; an image of one channel is its own."""
    return pixels if pixels.shape[2] == 1 else pixels @ np.array([[0.299], [0.587], [0.114]])


def tint(colour: tuple[int, int, int], channels: int) -> Pixels:
    """Return a colour of 0..255 as (C,) in 0..1: itself for three channels, its grey for one."""
    values = np.array(colour, np.float64)[None, None, :] / 255
    found: Pixels = (values if channels == 3 else luminance(values))[0, 0]
    return found
