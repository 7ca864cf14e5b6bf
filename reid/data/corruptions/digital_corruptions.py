"""Digital faults and colour: contrast, elastic transform, pixelate, JPEG compression and saturation.

Each function takes pixels (H, W, C) in 0..1, a severity of 1..5 and a random generator, and returns pixels that may lie
outside 0..1.  The constants are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), and for the elastic
transform those by which Michaelis et al. (2019, arXiv 1907.07484) made it follow the size of the image.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from reid.data.corruptions.pixel_filters import Pixels, Random

CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what stays of the distance from the mean
ELASTIC = (12.5, 16.25, 21.25, 25.0, 30.0)  # factor of the smoothed shifts
SHIFT, SHIFT_SIGMA = 0.005, 0.01  # largest random shift, and the sigma that smooths them, in shares of the size
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)  # share of the rows and columns that stays
JPEG_QUALITY = (25, 18, 15, 10, 7)
SATURATION = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))  # factor, summand


def lower_contrast(pixels: Pixels, severity: int, random: Random) -> Pixels:  # noqa: ARG001
    """Move every value towards the mean of its channel."""
    mean: Pixels = pixels.mean(axis=(0, 1), keepdims=True)
    return mean + CONTRAST[severity - 1] * (pixels - mean)


def bend(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Move the pixels by smoothed random shifts."""
    from scipy import ndimage

    height, width, channels = pixels.shape
    sigma = (SHIFT_SIGMA * height, SHIFT_SIGMA * width)

    def draw() -> Pixels:
        shifts = random.uniform(-SHIFT * height, SHIFT * height, (height, width))
        found: Pixels = ELASTIC[severity - 1] * ndimage.gaussian_filter(shifts, sigma, mode="reflect", truncate=3)
        return found

    across, down = draw(), draw()
    grid = [np.arange(height)[:, None] + down, np.arange(width) + across]
    return np.stack(
        [ndimage.map_coordinates(pixels[:, :, channel], grid, order=1, mode="reflect") for channel in range(channels)],
        axis=2,
    )


def pixelate(pixels: Pixels, severity: int, random: Random) -> Pixels:  # noqa: ARG001
    """Make the image smaller, each new pixel the mean of those it covers, and enlarge it without interpolation."""
    image = to_image(pixels)
    share = PIXELATE[severity - 1]
    size = max(1, int(image.width * share)), max(1, int(image.height * share))
    small = image.resize(size, Image.Resampling.BOX)
    return from_image(small.resize(image.size, Image.Resampling.NEAREST))


def compress_jpeg(pixels: Pixels, severity: int, random: Random) -> Pixels:  # noqa: ARG001
    """Write the image as a JPEG of low quality and read it back."""
    file = io.BytesIO()
    to_image(pixels).save(file, "JPEG", quality=JPEG_QUALITY[severity - 1])
    return from_image(Image.open(file))


def change_saturation(pixels: Pixels, severity: int, random: Random) -> Pixels:  # noqa: ARG001
    """Change the saturation of hue, saturation and value: less up to severity 2, more above.

    As in the published corruption, a grey pixel has the hue of red, so a summand above 0 colours it.
    """
    factor, summand = SATURATION[severity - 1]
    value: Pixels = pixels.max(axis=2, keepdims=True)
    depth = value - pixels  # saturation times value, in shares that follow from the hue
    saturation = depth.max(axis=2, keepdims=True) / np.where(value > 0, value, 1)
    wanted = np.clip(saturation * factor + summand, 0, 1)
    coloured = depth * wanted / np.where(saturation > 0, saturation, 1)
    red = value * wanted * np.array([0.0, 1.0, 1.0])
    found: Pixels = value - np.where(saturation > 0, coloured, red)
    return found


def to_image(pixels: Pixels) -> Image.Image:
    """Round pixels (H, W, C), clipped to 0..1, to an image of mode RGB, or L where C is 1."""
    values = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def from_image(image: Image.Image) -> Pixels:
    """Return the pixels (H, W, C) in 0..1 of an image of mode RGB or L."""
    values = np.asarray(image, np.float64) / 255
    return values if values.ndim == 3 else values[:, :, None]
