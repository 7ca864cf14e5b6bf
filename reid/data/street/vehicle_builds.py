"""The measures of vehicles, and the prisms, slabs and panels that their shapes consist of.

Figures face +y, x is their right, z is up; lengths are metres.
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
    """Measures of a vehicle, in metres.

    Args:
        kind: The type of the vehicle, such as "van".
        length: Length.
        width: Width.
        height: Height.
        wheel: Radius of the wheels.
        nose: Length of the bonnet, or of the cab of a truck.
        tail: Length of the boot or the load bed.
        rake: How far the windscreen leans.
        slope: How far the rear window leans.
        belt: Height of the lower edge of the windows.
        windows: Number of windows on each side.
    """

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
    """A print of 4 x 4 ``bits`` on the sides, with its centre and half sizes in metres; ``slot`` is its ink."""

    along: float
    up: float
    half_width: float
    half_height: float
    bits: int
    slot: str = "ink"


@dataclass(frozen=True)
class Trim:
    """What distinguishes vehicles of one model.

    Args:
        stripe: Where a stripe runs: "", "belt", "sill", "wedge", "double" or "bonnet".
        stripe_at: Height of the stripe above the ground, in metres.
        stripe_high: Width of the stripe, in metres.
        roof_load: "", "rails", "bars", "box", "sign", "lights", "ladder" or "cargo".
        load: Factor for the size of the roof load, 0.7..1.2.
        hub: Share of the wheel that is rim, 0..1.
        plastic: The bumpers are not painted.
        skirt: The lower part has the second colour.
        lamps: Height of the lamps, 0..1.
        decals: Prints on the sides.
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
    """Extrude a convex profile.

    Args:
        profile: Points (y, z), anticlockwise.
        half_width: Half width at the foot.
        slot: Name of the material.
        lean: How far the sides lean inwards, in metres for each metre of height.
        chamfer: How much is cut off the four upright edges.
        rounding: Distance from an edge within which the normals turn.

    Returns:
        The solid.
    """
    points = np.array(profile)
    foot = float(points[:, 1].min())
    normals: list[Vec] = []
    offsets: list[float] = []
    for (y, z), (y2, z2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        across, down = z2 - z, y - y2
        length = float(np.hypot(across, down))
        normals.append((0.0, float(across / length), float(down / length)))
        offsets.append(float((across * y + down * z) / length))
    steep = float(np.hypot(1.0, lean))
    ends = float(points[:, 0].min()), float(points[:, 0].max())
    for side in (-1.0, 1.0):
        normals.append((side / steep, 0.0, lean / steep))
        offsets.append((half_width + lean * foot) / steep)
        if chamfer > 0:
            for end, direction in zip(ends, (-1.0, 1.0), strict=True):
                normals.append((side * 0.6, direction * 0.8, 0.0))
                offsets.append(0.6 * half_width + 0.8 * abs(end) * np.sign(end * direction) - 0.8 * chamfer)
    corners = [
        (side * (half_width - lean * (float(z) - foot)), float(y), float(z)) for y, z in points for side in (-1, 1)
    ]
    return Solid(tuple(normals), tuple(offsets), tuple(corners), slot, rounding)


def slab(
    x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], slot: str, rounding: float = 0.04
) -> Solid:
    """Build an upright box."""
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
    """Build an upright rectangle on a face, in metres: the panel for lamps, plates and windows."""
    return Panel(face, up[0], up[1], (across[0], across[0]), (across[1], across[1]), slot, on, oval, bits)
