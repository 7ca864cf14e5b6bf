"""Noise of the sensor: Gaussian, shot, impulse and speckle noise (Hendrycks and Dietterich, ICLR 2019).

Each function takes pixels (H, W, C) in 0..1, a severity of 1..5 and a random generator, and returns pixels that may lie
outside 0..1.  The constants are those of ImageNet-C.
"""

from __future__ import annotations

from reid.data.corruptions.pixel_filters import Pixels, Random

GAUSSIAN_STD = (0.08, 0.12, 0.18, 0.26, 0.38)
PHOTONS = (60.0, 25.0, 12.0, 5.0, 3.0)  # that a white pixel counts
IMPULSE_SHARE = (0.03, 0.06, 0.09, 0.17, 0.27)  # of all values, half of them black and half white
SPECKLE_STD = (0.15, 0.2, 0.35, 0.45, 0.6)  # in shares of the value


def add_gaussian_noise(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Add noise of the same strength to every value, as a sensor in poor light does."""
    return pixels + random.normal(0, GAUSSIAN_STD[severity - 1], pixels.shape)


def add_shot_noise(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Count photons: each value becomes a Poisson number of them, divided by those of a white pixel."""
    photons = PHOTONS[severity - 1]
    return random.poisson(pixels * photons) / photons


def add_impulse_noise(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Make a share of all values black or white, as faulty cells and transmission do."""
    draws = random.random(pixels.shape)
    share = IMPULSE_SHARE[severity - 1]
    changed = pixels.copy()
    changed[draws < share] = 1.0
    changed[draws < share / 2] = 0.0
    return changed


def add_speckle_noise(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Multiply each value by a random number around 1, so bright parts are noisier."""
    return pixels * (1 + random.normal(0, SPECKLE_STD[severity - 1], pixels.shape))
