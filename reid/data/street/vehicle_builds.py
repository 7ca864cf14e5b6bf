"""The measures of a vehicle and what its shapes are made of: prisms, slabs and panels.

Knows how to cut a convex solid and where a panel lies; which vehicle has which of them is the business
of :mod:`vehicle_shapes`.  Figures face +y, x is their right, z is up; lengths are metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.data.street.geometry import Capsule, Solid, Vec
from reid.data.street.render import Panel

SILL = 0.24  # height of the underside
CARS = ("hatchback", "saloon", "estate", "suv")
PAINTED = ("paint", "second", "roof", "trim")


@dataclass(frozen=True)
class Build:
    """Measures of a vehicle, metres: ``nose`` is bonnet, ``tail`` boot or load bed, ``rake`` and ``slope`` how
    far windscreen and rear window lean; ``belt`` the lower edge of the windows; ``windows`` a side."""

    kind: str
    length: float
    width: float
    height: float
    wheel: float
    nose: float
    tail: float
    rake: float
    slope: float
    belt: float
    windows: int


@dataclass(frozen=True)
class Decal:
    """A print on the sides, centre (``along``, ``up``) and half sizes in metres; 4 x 4 ``bits``; ``slot`` its ink."""

    along: float
    up: float
    half_width: float
    half_height: float
    bits: int
    slot: str = "ink"


@dataclass(frozen=True)
class Trim:
    """What tells one vehicle of a model from another.

    ``stripe``: "" or where a stripe runs ("belt", "sill", "wedge", "double", "bonnet"); ``stripe_at`` metres
    high, ``stripe_high`` metres; ``roof_load``: "", "rails", "bars", "box", "sign", "lights", "ladder",
    "cargo"; ``hub`` 0..1 the share of the wheel that is rim; ``plastic``: bare bumpers; ``lamps``: height of the
    lamps 0..1; ``skirt``: lower part in the second colour; ``load`` 0.7..1.2 scales the roof load.
    """

    stripe: str
    stripe_at: float
    stripe_high: float
    roof_load: str
    load: float
    hub: float
    plastic: bool
    skirt: bool
    lamps: float
    decals: tuple[Decal, ...]


Shapes = list[Capsule | Solid]


def prism(profile: Sequence[tuple[float, float]], half_width: float, slot: str, lean: float = 0.0, chamfer: float = 0.0,
          rounding: float = 0.12) -> Solid:  # fmt: skip
    """A convex ``profile`` of (y, z), anticlockwise, drawn out to -+``half_width`` at its foot.

    The sides lean inwards by ``lean`` metres a metre of height; ``chamfer`` metres are cut off the four
    upright edges.
    """
    places = np.array(profile)
    foot = float(places[:, 1].min())
    normals: list[Vec] = []
    offsets: list[float] = []
    for (y, z), (y2, z2) in zip(places, np.roll(places, -1, axis=0), strict=True):
        across, down = z2 - z, y - y2
        length = float(np.hypot(across, down))
        normals.append((0.0, float(across / length), float(down / length)))
        offsets.append(float((across * y + down * z) / length))
    steep = float(np.hypot(1.0, lean))
    ends = float(places[:, 0].min()), float(places[:, 0].max())
    for side in (-1.0, 1.0):
        normals.append((side / steep, 0.0, lean / steep))
        offsets.append((half_width + lean * foot) / steep)
        if chamfer > 0:
            for end, direction in zip(ends, (-1.0, 1.0), strict=True):
                normals.append((side * 0.6, direction * 0.8, 0.0))
                offsets.append(0.6 * half_width + 0.8 * abs(end) * np.sign(end * direction) - 0.8 * chamfer)
    corners = [
        (side * (half_width - lean * (float(z) - foot)), float(y), float(z)) for y, z in places for side in (-1, 1)
    ]
    return Solid(tuple(normals), tuple(offsets), tuple(corners), slot, rounding)


def slab(
    x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], slot: str, rounding: float = 0.04
) -> Solid:
    """An upright box."""
    normals = ((-1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (0.0, 0.0, 1.0))
    offsets = (-x[0], x[1], -y[0], y[1], -z[0], z[1])
    return Solid(normals, offsets, tuple((i, j, k) for i in x for j in y for k in z), slot, rounding)


def patch(
    face: str,
    across: tuple[float, float],
    up: tuple[float, float],
    slot: str,
    on: tuple[str, ...] = ("paint",),
    *,
    oval: bool = False,
    bits: int = 0xFFFF,
) -> Panel:
    """An upright rectangle on a ``face``, metres: the panel that every lamp, plate and door is made of."""
    return Panel(face, up[0], up[1], (across[0], across[0]), (across[1], across[1]), slot, on, oval, bits)
