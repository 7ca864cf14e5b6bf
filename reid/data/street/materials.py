"""Colours, fabrics and patterns: what a surface reflects in visible and in infrared light.

The reflectance in near infrared is drawn once for a garment, so every infrared camera sees the same one.  Only about
half of its variance follows from what a visible camera sees, which is the brightness and the fabric.  The rest depends
on the dye, as it does in reality.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.data.street.geometry import FloatArray, Vec
from reid.data.street.random_draws import clipped

LUMINANCE = (0.2126, 0.7152, 0.0722)
GAMMA = 2.2


@dataclass(frozen=True)
class Fabric:
    """How a fabric reflects light.

    Args:
        gloss: 0..1.
        wrinkle: Strength of folds.
        weave: Strength of the grain.
        infrared: Shift of the near-infrared brightness, on the display scale, that the fibre causes.
    """

    gloss: float
    wrinkle: float
    weave: float
    infrared: float


FABRICS = {
    "cotton": Fabric(0.02, 0.22, 0.04, 0.02),
    "denim": Fabric(0.03, 0.14, 0.16, 0.13),
    "wool": Fabric(0.0, 0.10, 0.10, -0.07),
    "synthetic": Fabric(0.16, 0.30, 0.01, 0.17),
    "leather": Fabric(0.38, 0.16, 0.02, -0.20),
    "skin": Fabric(0.06, 0.0, 0.02, 0.0),
    "hair": Fabric(0.12, 0.0, 0.12, 0.0),
    "metal": Fabric(0.55, 0.0, 0.01, 0.0),
    "stone": Fabric(0.0, 0.0, 0.08, 0.0),
}

MUTED = {  # sRGB, 0..255
    "black": (24, 24, 26),
    "charcoal": (54, 54, 58),
    "navy": (28, 35, 60),
    "grey": (108, 110, 114),
    "light grey": (162, 163, 166),
    "brown": (84, 62, 46),
    "dark brown": (52, 41, 35),
    "olive": (74, 77, 54),
    "beige": (176, 158, 130),
    "white": (212, 212, 210),
    "burgundy": (86, 30, 40),
    "slate": (70, 84, 104),
    "bottle green": (34, 56, 46),
    "khaki": (126, 111, 83),
}
SATURATED = {
    "red": (176, 32, 38),
    "royal": (32, 70, 168),
    "green": (32, 124, 62),
    "yellow": (214, 174, 36),
    "orange": (212, 98, 34),
    "pink": (214, 112, 150),
    "teal": (24, 126, 136),
    "purple": (98, 52, 138),
    "sky": (112, 168, 214),
}
DENIM = {"dark blue": (36, 45, 68), "blue": (60, 80, 114), "pale": (122, 143, 170), "black": (30, 30, 34)}
HAIR = {
    "black": (20, 18, 18),
    "dark brown": (44, 32, 26),
    "brown": (76, 54, 38),
    "fair": (128, 98, 64),
    "blond": (178, 148, 98),
    "grey": (138, 136, 134),
    "red": (120, 58, 32),
}
SKIN = ((236, 196, 172), (222, 176, 146), (196, 146, 114), (160, 112, 82), (112, 76, 56), (76, 52, 40))


@dataclass(frozen=True)
class Logo:
    """A print of 4 x 4 ``bits`` on the front or the back, with its centre and half sizes in metres."""

    across: float
    up: float
    half_width: float
    half_height: float
    front: bool
    bits: int
    colour: Vec
    infrared: float


@dataclass(frozen=True)
class SurfaceMaterial:
    """What a surface reflects; reflectances are linear, 0..1.

    Args:
        colour: R, G and B.
        infrared: Reflectance in near infrared.
        fabric: A key of ``FABRICS``, or of the fabrics of a figure.
        second: R, G and B of the second colour.
        second_infrared: Near infrared of the second colour.
        pattern: A key of ``PATTERNS``, which tells where the second colour shows.
        period: Length of the pattern in metres.
        duty: Share of the period in the second colour, 0..1.
        phase: Shift of the pattern in periods.
        logos: Prints.
    """

    colour: Vec
    infrared: float
    fabric: str = "cotton"
    second: Vec = (0.5, 0.5, 0.5)
    second_infrared: float = 0.5
    pattern: str = "plain"
    period: float = 0.1
    duty: float = 0.5
    phase: float = 0.0
    logos: tuple[Logo, ...] = ()


def srgb_to_linear(rgb: tuple[float, float, float]) -> Vec:
    """Convert sRGB 0..255 to linear reflectance 0..1 by a power of 2.2."""
    red, green, blue = (float(np.clip(value / 255.0, 0.0, 1.0)) ** GAMMA for value in rgb)
    return red, green, blue


def draw_shade(rng: np.random.Generator, rgb: tuple[int, int, int], spread: float = 0.1) -> Vec:
    """Draw a linear colour near ``rgb`` (sRGB, 0..255), so that no two garments have the same colour."""
    gain = max(0.4, clipped(rng, 1.0, spread))
    red, green, blue = (value * gain + clipped(rng, 0.0, 3.5) for value in rgb)
    return srgb_to_linear((red, green, blue))


def brightness(colour: Vec) -> float:
    """Compute the luminance of a linear colour on the display scale, 0..1."""
    return float(sum(w * c for w, c in zip(LUMINANCE, colour, strict=True)) ** (1 / GAMMA))


def draw_infrared(rng: np.random.Generator, colour: Vec, fabric: str) -> float:
    """Draw the linear near-infrared reflectance of a fabric from its brightness, its fibre and a random dye."""
    display = 0.24 + 0.36 * brightness(colour) + FABRICS[fabric].infrared + clipped(rng, 0.0, 0.125)
    infrared: float = float(np.clip(display, 0.12, 0.9)) ** GAMMA
    return infrared


def _plain(along: FloatArray, _across: FloatArray, _material: SurfaceMaterial) -> FloatArray:
    return np.zeros_like(along)


def _wave(position: FloatArray, material: SurfaceMaterial) -> FloatArray:
    periods = position / np.float32(material.period) + np.float32(material.phase)
    inside: FloatArray = (periods - np.floor(periods) < material.duty).astype(np.float32)
    return inside


def _bands(along: FloatArray, _across: FloatArray, material: SurfaceMaterial) -> FloatArray:
    return _wave(along, material)


def _stripes(_along: FloatArray, across: FloatArray, material: SurfaceMaterial) -> FloatArray:
    return _wave(across, material)


def _checks(along: FloatArray, across: FloatArray, material: SurfaceMaterial) -> FloatArray:
    crossed: FloatArray = np.float32(0.5) * (_wave(along, material) + _wave(across, material))
    return crossed


def _block(along: FloatArray, _across: FloatArray, material: SurfaceMaterial) -> FloatArray:
    upper: FloatArray = (along > material.period).astype(np.float32)
    return upper


def _band(along: FloatArray, _across: FloatArray, material: SurfaceMaterial) -> FloatArray:
    ring: FloatArray = (np.abs(along - material.period) < np.float32(0.08 * material.duty)).astype(np.float32)
    return ring


def _sides(_along: FloatArray, across: FloatArray, material: SurfaceMaterial) -> FloatArray:
    side: FloatArray = (np.abs(across) > np.float32(material.period)).astype(np.float32)
    return side


def _speckle(along: FloatArray, across: FloatArray, _material: SurfaceMaterial) -> FloatArray:
    grain = np.sin(along * 391 + across * 173) * np.sin(along * 97 - across * 311)
    mottled: FloatArray = (np.float32(0.5) * np.clip(grain + np.float32(0.2), 0, 1)).astype(np.float32)
    return mottled


PATTERNS = {
    "plain": _plain,
    "bands": _bands,
    "stripes": _stripes,
    "checks": _checks,
    "block": _block,
    "band": _band,
    "sides": _sides,
    "speckle": _speckle,
}


def reflectance(material: SurfaceMaterial, along: FloatArray, across: FloatArray) -> FloatArray:
    """Compute R, G, B and near infrared (4, N) at N positions along and across the garment, in metres."""
    base = np.array([*material.colour, material.infrared], np.float32)
    if material.pattern == "plain":
        return np.repeat(base[:, None], len(along), axis=1)
    step = np.array([*material.second, material.second_infrared], np.float32) - base
    mixed: FloatArray = base[:, None] + step[:, None] * PATTERNS[material.pattern](along, across, material)
    return mixed


def print_logos(
    material: SurfaceMaterial, colours: FloatArray, across: FloatArray, up: FloatArray, facing: FloatArray
) -> None:
    """Print the logos of a material.

    Args:
        material: The material.
        colours: (4, N), changed where a logo covers a point.
        across: (N,) metres on the figure.
        up: (N,) metres on the figure.
        facing: (N,) forward part of the normals.
    """
    for logo in material.logos:
        side = across - logo.across if logo.front else logo.across - across
        column = np.floor((side / np.float32(logo.half_width) + 1) * 2).astype(np.int64)
        row = np.floor((np.float32(logo.up) - up) / np.float32(logo.half_height) * 2 + 2).astype(np.int64)
        inside = (column >= 0) & (column < 4) & (row >= 0) & (row < 4)
        inside &= facing > 0.05 if logo.front else facing < -0.05
        where = np.flatnonzero(inside)
        lit = where[(logo.bits >> (row[where] * 4 + column[where])) & 1 == 1]
        colours[:, lit] = np.array([*logo.colour, logo.infrared], np.float32)[:, None]
