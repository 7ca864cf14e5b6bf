"""Weather: snow, frost, fog, brightness, spatter and rain.

Each function takes pixels (H, W, C) in 0..1, a severity of 1..5 and a random generator, and returns pixels that may lie
outside 0..1.  Snow, fog, brightness and spatter follow ImageNet-C (Hendrycks and Dietterich, ICLR 2019), rain follows
the re-identification benchmark (Chen et al., NeurIPS 2021).  The benchmark lays photographs of ice over an image; here
the ice of the frost is drawn.
"""

from __future__ import annotations

import numpy as np

from reid.data.corruptions.pixel_filters import Pixels, Random, cloud_map, luminance, smear, smooth, tint, zoom

# Mean and std of the flakes, enlargement, threshold, radius and sigma of their fall, share of the image that stays.
SNOW = (
    (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
FROST = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # share of the image, share of the ice
FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # strength, decay of its map
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to the largest of R, G and B
# Mean, std, sigma and threshold of the drops, their strength or sigma, and whether they are mud.
SPATTER = (
    (0.65, 0.3, 4.0, 0.69, 0.6, False),
    (0.65, 0.3, 3.0, 0.68, 0.6, False),
    (0.65, 0.3, 2.0, 0.68, 0.5, False),
    (0.65, 0.3, 1.0, 0.65, 1.5, True),
    (0.67, 0.4, 1.0, 0.65, 1.5, True),
)
# Pixels a drop, length of a drop, side of the blur, and what is taken from the brightness.
RAIN = ((770, 10, 3, 0.1), (600, 30, 4, 0.15), (600, 30, 5, 0.2), (500, 60, 6, 0.25), (500, 60, 7, 0.3))
WATER, MUD, DROP, ICE = (175, 238, 238), (63, 42, 20), (200, 200, 200), (215, 230, 245)
SLANT = 10  # columns that a drop of rain moves sideways at most
FAR = 20.0  # pixels from an edge beyond which water looks the same


def add_snow(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Whiten the image and let flakes fall over it, the same ones also turned by 180 degrees."""
    mean, std, factor, threshold, radius, sigma, share = SNOW[severity - 1]
    flakes = zoom(random.normal(mean, std, (*pixels.shape[:2], 1)), factor)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    fallen = smear(flakes, int(radius), sigma, float(random.uniform(-135, -45)))
    whitened = share * pixels + (1 - share) * np.maximum(pixels, luminance(pixels) * 1.5 + 0.5)
    return whitened + fallen + np.rot90(fallen, 2)


def add_frost(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Lay ice over the image: needles that meet at ridges, densest where a cloudy map says so."""
    share, of_ice = FROST[severity - 1]
    height, width, channels = pixels.shape
    ridges = 1 - np.abs(2 * cloud_map(height, width, 1.4, random) - 1)
    needles = smear(random.random((height, width, 1)), 6, 4.0, float(random.uniform(20, 70)))
    thickness = np.clip(0.5 * ridges**2 + 0.3 * cloud_map(height, width, 2.0, random) + 0.3 * needles, 0, 1)
    return share * pixels + of_ice * thickness * tint(ICE, channels)


def add_fog(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Add a cloudy map, and scale the sum so that the brightest value of the image stays the brightest possible."""
    strength, decay = FOG[severity - 1]
    brightest = float(pixels.max(initial=0))
    fog = strength * cloud_map(pixels.shape[0], pixels.shape[1], decay, random)
    scale = brightest / (brightest + strength)
    return (pixels + fog) * scale


def brighten(pixels: Pixels, severity: int, random: Random) -> Pixels:  # noqa: ARG001
    """Add to the value of hue, saturation and value, so that colours keep their hue and their saturation."""
    value = pixels.max(axis=2, keepdims=True)
    brighter = np.clip(value + BRIGHTNESS[severity - 1], 0, 1)
    found: Pixels = np.where(value > 0, pixels * brighter / np.where(value > 0, value, 1), brighter)
    return found


def add_spatter(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Spatter the lens: drops of clear water up to severity 3, and of mud above."""
    mean, std, sigma, threshold, strength, is_mud = SPATTER[severity - 1]
    drops = smooth(random.normal(mean, std, (*pixels.shape[:2], 1)), sigma)
    drops = np.where(drops < threshold, 0, drops)
    channels = pixels.shape[2]
    if is_mud:
        cover = smooth((drops > threshold).astype(np.float64), strength)
        cover = np.where(cover < 0.8, 0, cover)
        return pixels * (1 - cover) + tint(MUD, channels) * cover
    shine = drops * _edge_light(drops[:, :, 0] > 0)[:, :, None]
    return pixels + strength * shine / max(float(shine.max(initial=0)), 1e-12) * tint(WATER, channels)


def _edge_light(is_wet: np.typing.NDArray[np.bool_]) -> Pixels:
    """How the surface of water (H, W) reflects light: by the slope of the distance to its edge; 0..1."""
    from scipy import ndimage

    if is_wet.all() or not is_wet.any():
        return is_wet.astype(np.float64)
    edge = is_wet ^ ndimage.binary_erosion(is_wet)
    distance = np.minimum(ndimage.distance_transform_edt(~edge), FAR)
    distance = ndimage.uniform_filter(distance, 3, mode="nearest")
    ranks = np.searchsorted(np.sort(distance, axis=None), distance, side="right") / distance.size  # equal histogram
    relief = ndimage.correlate(ranks, np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="nearest")
    found: Pixels = ndimage.uniform_filter(np.clip(relief, 0, 1), 3, mode="nearest")
    return found


def add_rain(pixels: Pixels, severity: int, random: Random) -> Pixels:
    """Draw slanted drops, blur the image with a box, and darken it."""
    from scipy import ndimage

    pixels_a_drop, length, side, darker = RAIN[severity - 1]
    height, width, channels = pixels.shape
    count, slant = max(1, height * width // pixels_a_drop), int(random.integers(-SLANT, SLANT + 1))
    first = random.integers(0, width, count), random.integers(0, height, count)
    steps = np.arange(length + 1)
    columns = np.rint(first[0][:, None] + slant * steps / length).astype(int)
    rows = first[1][:, None] + steps + 0 * columns
    inside = (columns >= 0) & (columns < width) & (rows < height)
    rained = pixels.copy()
    rained[rows[inside], columns[inside]] = tint(DROP, channels)
    blurred: Pixels = ndimage.uniform_filter(rained, (side, side, 1), mode="mirror")
    return blurred - darker
