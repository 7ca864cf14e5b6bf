"""Blur: Gaussian, defocus, glass, motion and zoom blur (Hendrycks and Dietterich, ICLR 2019).

Each function takes pixels (H, W, C) in 0..1, a severity of 1..5 and a random generator, and returns pixels of the same
shape.  The constants are those of ImageNet-C, in pixels of the image as it comes, before it is resized.
"""

from __future__ import annotations

import numpy as np

from reid.data.corruptions.pixel_filters import Pixels, Random, convolve, disk_kernel, smear, smooth, zoom

GAUSSIAN_SIGMA = (1.0, 2.0, 3.0, 4.0, 6.0)
DISK = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius, sigma that smooths its edge
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # sigma, reach of a swap, rounds
MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, sigma
ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))  # end, step of the factors from 1


def blur_gaussian(pixels: Pixels, severity: int, random: Random) -> Pixels:  # noqa: ARG001
    """Blur with a Gaussian."""
    return smooth(pixels, GAUSSIAN_SIGMA[severity - 1])


def blur_defocus(pixels: Pixels, severity: int, random: Random) -> Pixels:  # noqa: ARG001
    """Blur with a disk, as a lens out of focus does."""
    return convolve(pixels, disk_kernel(*DISK[severity - 1]))


def blur_glass(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Look through frosted glass: blur, swap pixels with near ones, and blur again."""
    sigma, reach, rounds = GLASS[severity - 1]
    height, width, channels = pixels.shape
    order = swap_near(height, width, reach, rounds, random)
    shuffled = smooth(pixels, sigma).reshape(-1, channels)[order].reshape(pixels.shape)
    return smooth(shuffled, sigma)


def swap_near(height: int, width: int, reach: int, rounds: int, random: Random) -> np.typing.NDArray[np.int64]:
    """Swap the pixels of an image one after another, from the last to the first, each with a near one.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        reach: A pixel goes at most so many rows and columns at a time; the outermost ones stay.
        rounds: How often all pixels are swapped.
        random: Decides the partners.

    Returns:
        Positions (height * width,) int64: the pixel that stands at each position afterwards.
    """
    order = list(range(height * width))
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    rows, columns = rows[rows < height], columns[columns < width]
    here = (rows[:, None] * width + columns).ravel()
    for _ in range(rounds):
        moves = random.integers(-reach, reach, (2, len(rows), len(columns)))
        down = np.clip(rows[:, None] + moves[0], 0, height - 1)
        across = np.clip(columns + moves[1], 0, width - 1)
        there = (down * width + across).ravel()
        for one, other in zip(here.tolist(), there.tolist(), strict=True):
            order[one], order[other] = order[other], order[one]
    return np.array(order, np.int64)


def blur_motion(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Blur along a line, at most 45 degrees from the horizontal."""
    radius, sigma = MOTION[severity - 1]
    return smear(pixels, radius, sigma, float(random.uniform(-45, 45)))


def blur_zoom(pixels: Pixels, severity: int, random: Random) -> Pixels:  # noqa: ARG001
    """Average the image and its enlargements, as moving towards it does."""
    end, step = ZOOM[severity - 1]
    factors = np.arange(1, end, step)
    total = pixels.copy()
    for factor in factors:
        total += zoom(pixels, float(factor))
    return total / (len(factors) + 1)
