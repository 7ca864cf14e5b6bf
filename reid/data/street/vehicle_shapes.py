"""Build vehicles from convex boxes, wheels and roof loads, with windows, lamps and stripes as panels.

Figures face +y, x is their right, z is up; lengths are metres.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from reid.data.street.geometry import Capsule, Solid
from reid.data.street.render import Panel
from reid.data.street.vehicle_builds import CARS, PAINTED, SILL, Build, Shapes, Trim, patch, prism, slab


def _wheel(build: Build, side: float, axle: float, wide: float = 0.22) -> Solid:
    """Build a tyre as a horizontal prism with 12 faces."""
    angles = np.arange(12) * np.pi / 6
    normals = [(0.0, float(np.cos(a)), float(np.sin(a))) for a in angles]
    offsets = [float(build.wheel + axle * np.cos(a) + build.wheel * np.sin(a)) for a in angles]
    inner, outer = build.width / 2 - wide, build.width / 2 + 0.012
    normals += [(side, 0.0, 0.0), (-side, 0.0, 0.0)]
    offsets += [outer, -inner]
    corners = tuple((side * x, axle + dy, build.wheel + dz) for x in (inner, outer)
                    for dy in (-build.wheel, build.wheel) for dz in (-build.wheel, build.wheel))  # fmt: skip
    return Solid(tuple(normals), tuple(offsets), corners, "tyre", 0.03)


def axles(build: Build) -> tuple[float, ...]:
    """Return the positions of the axles along y."""
    half = build.length / 2
    if build.kind == "bus":
        return -half + 0.27 * build.length, half - 0.23 * build.length
    if build.kind == "truck":
        rear = -half + 0.2 * build.length
        return (rear, half - 1.1) if build.length < 7.4 else (rear - 0.55, rear + 0.55, half - 1.1)
    return -half + 0.19 * build.length, half - (0.185 if build.kind != "van" else 0.17) * build.length


def _wheels(build: Build, trim: Trim) -> tuple[Shapes, list[Panel]]:
    wheels: Shapes = [_wheel(build, side, axle) for axle in axles(build) for side in (-1.0, 1.0)]
    panels: list[Panel] = []
    r = build.wheel
    for axle in axles(build):
        arch = r * 1.17
        panels.append(
            patch("side", (axle - arch, axle + arch), (r - arch, r + arch), "tyre", (*PAINTED, "ink"), oval=True)
        )
    for axle in axles(build):
        hub = r * trim.hub
        panels.append(patch("side", (axle - hub, axle + hub), (r - hub, r + hub), "hub", ("tyre",), oval=True))
        cap = hub * 0.3
        panels.append(patch("side", (axle - cap, axle + cap), (r - cap, r + cap), "tyre", ("hub",), oval=True))
    return wheels, panels


def _car(build: Build) -> tuple[Shapes, list[Panel]]:
    """Build a hatchback, saloon, estate or off-road car: a body with a cabin on it."""
    half, wide, belt = build.length / 2, build.width / 2, build.belt
    foot = SILL if build.kind != "suv" else SILL + 0.1
    screen, back = half - build.nose, -half + build.tail
    top_front, top_back = screen - build.rake, back + build.slope
    body = prism(
        [(-half + 0.1, foot), (half - 0.12, foot), (half, foot + 0.18), (half - 0.02, belt * 0.68),
         (half - 0.16, belt * 0.83),
         (screen + 0.05, belt), (-half + 0.12, belt), (-half + 0.01, belt - 0.12), (-half, foot + 0.22)],
        wide, "paint", 0.03, 0.16, 0.14,
    )  # fmt: skip
    cabin = prism(
        [(back, belt - 0.05), (screen, belt - 0.05), (top_front, build.height - 0.03),
         ((top_front + top_back) / 2, build.height),
         (top_back, build.height - 0.04)],
        wide - 0.05, "roof", 0.28, 0.0, 0.08,
    )  # fmt: skip
    mirrors: Shapes = [Capsule((s * (wide + 0.02), screen - 0.25, belt + 0.06),
                               (s * (wide + 0.11), screen - 0.27, belt + 0.08),
                               0.07, 0.07, "trim", flat=(1, 1.6, 1)) for s in (-1, 1)]  # fmt: skip
    low, high = belt + 0.02, build.height - 0.11
    part = (high - belt + 0.05) / (build.height - belt + 0.02)  # of the lean that the window spans
    glass = _side_windows(build.windows, (back + 0.1, back + 0.1 + build.slope * part),
                          (screen - 0.14, screen - 0.12 - build.rake * part),
                          (low, high))  # fmt: skip
    inset = wide - 0.14
    for face in ("front", "rear"):
        glass.append(
            Panel(face, low, build.height - 0.06, (-inset, -inset + 0.13), (inset, inset - 0.13), "glass", ("roof",))
        )
    return [body, cabin, *mirrors], glass


def _side_windows(
    count: int, rear: tuple[float, float], front: tuple[float, float], up: tuple[float, float]
) -> list[Panel]:
    """Build ``count`` panes between two leaning edges, each of which is given at its lower and upper end."""
    panes: list[Panel] = []
    splits = np.linspace(0.0, 1.0, count + 1)
    gap = 0.045
    for start, end in pairwise(splits):
        upright = [(rear[0] + rear[1]) / 2 * (1 - s) + (front[0] + front[1]) / 2 * s for s in (start, end)]
        left = rear if start == 0 else (upright[0] + gap, upright[0] + gap)
        right = front if end == 1 else (upright[1] - gap, upright[1] - gap)
        panes.append(Panel("side", up[0], up[1], left, right, "glass", ("roof", "paint", "second")))
    return panes


def _car_face(build: Build, trim: Trim) -> list[Panel]:
    """Build lamps, grille, bumpers and plates of a vehicle with a bonnet, or of a van."""
    half, wide, belt = build.length / 2, build.width / 2, build.belt
    foot = SILL if build.kind not in ("suv", "pickup") else SILL + 0.1
    panels: list[Panel] = []
    if trim.plastic:
        panels += [patch(face, (-3, 3), (0, foot + 0.2), "trim", ("paint", "second")) for face in ("front", "rear")]
    panels.append(
        patch("side", (-half - 1, half + 1), (0, foot + (0.16 if trim.plastic else 0.05)), "trim", ("paint", "second"))
    )
    lamp = belt * (0.6 + 0.08 * trim.lamps)
    for side in (-1, 1):
        edges = sorted((side * (wide - 0.04), side * (wide - 0.42)))
        panels.append(patch("front", (edges[0], edges[1]), (lamp, lamp + 0.15), "lamp"))
        edges = sorted((side * (wide - 0.02), side * (wide - 0.34 + 0.1 * trim.lamps)))
        panels.append(patch("rear", (edges[0], edges[1]), (belt - 0.32, belt - 0.1), "tail"))
    panels.append(patch("side", (half - 0.3, half), (lamp, lamp + 0.13), "lamp"))
    panels.append(patch("side", (-half, -half + 0.22), (belt - 0.3, belt - 0.1), "tail"))
    panels.append(patch("front", (-wide + 0.46, wide - 0.46), (lamp - 0.02, lamp + 0.13), "trim"))
    panels.append(patch("front", (-wide * 0.7, wide * 0.7), (foot + 0.04, foot + 0.17), "trim"))
    panels.append(patch("front", (-0.27, 0.27), (foot + 0.17, foot + 0.29), "plate", PAINTED))
    panels.append(patch("rear", (-0.27, 0.27), (belt - 0.34, belt - 0.21), "plate", PAINTED))
    return panels


def _pickup(build: Build) -> tuple[Shapes, list[Panel]]:
    """Build a cab and an open bed of length ``tail``."""
    shapes, panels = _car(build)
    half, wide = build.length / 2, build.width / 2
    panels.append(patch("top", (-wide + 0.1, wide - 0.1), (-half + 0.1, -half + build.tail - 0.06), "trim"))
    return shapes, panels


def _van(build: Build) -> tuple[Shapes, list[Panel]]:
    """Build a van or minibus: one body with a short sloping nose."""
    half, wide, belt, height = build.length / 2, build.width / 2, build.belt, build.height
    screen = half - build.nose
    body = prism(
        [(-half + 0.05, SILL), (half - 0.1, SILL), (half, SILL + 0.2), (half - 0.03, belt * 0.78),
         (screen, belt + 0.02),
         (screen - build.rake, height - 0.06), (screen - build.rake - 0.3, height), (-half + 0.12, height),
         (-half, height - 0.12)],
        wide, "paint", 0.05, 0.0, 0.12,
    )  # fmt: skip
    low, high = belt + 0.05, min(height - 0.14, belt + 0.75)
    part = (high - low) / (height - 0.06 - belt)
    front = (screen - 0.12, screen - 0.12 - build.rake * part)
    first = front[0] - 0.95
    panels = [Panel("side", low, high, (first, first), front, "glass", ("paint", "second"))]
    if build.windows > 1:
        panels += _side_windows(
            build.windows - 1, (-half + 0.25, -half + 0.25), (first - 0.12, first - 0.12), (low, high)
        )
    inset = wide - 0.1
    panels.append(
        Panel("front", low - 0.02, high + 0.06, (-inset, -inset + 0.06), (inset, inset - 0.06), "glass", PAINTED)
    )
    panes = ((-inset, -0.06), (0.06, inset)) if build.slope > 0.5 else ()
    panels += [patch("rear", pane, (low + 0.05, high), "glass", PAINTED) for pane in panes]
    panels.append(patch("rear", (-0.018, 0.018), (SILL + 0.1, height - 0.1), "trim", PAINTED))
    mirrors: Shapes = [Capsule((s * (wide + 0.1), screen - 0.2, belt + 0.1),
                               (s * (wide + 0.1), screen - 0.2, belt + 0.3),
                               0.08, 0.08, "trim", flat=(1, 1.6, 1)) for s in (-1, 1)]  # fmt: skip
    return [body, *mirrors], panels


def _truck(build: Build, trim: Trim) -> tuple[Shapes, list[Panel]]:
    """Build a cab, a chassis and a box in the second colour; ``nose`` is the length of the cab."""
    half, wide, height = build.length / 2, build.width / 2, build.height
    back, roof = half - build.nose, build.belt + 0.98
    cab = prism([(back, 0.45), (half - 0.05, 0.45), (half, 0.7), (half - 0.04, build.belt),
                 (half - 0.04 - build.rake, roof - 0.08),
                 (half - 0.3 - build.rake, roof), (back, roof)], wide - 0.06, "paint", 0.03, 0.0, 0.1)  # fmt: skip
    box = slab((-wide, wide), (-half, back - 0.12), (0.95, height), "second", 0.03)
    chassis = slab((-wide + 0.25, wide - 0.25), (-half + 0.1, back), (0.5, 0.95), "trim")
    guard = slab((-wide + 0.03, wide - 0.03), (-half + 0.02, -half + 0.1), (0.5, 0.64), "trim")
    low, high = build.belt + 0.03, roof - 0.16
    panels = [
        Panel("side", low, high, (back + 0.35, back + 0.35), (half - 0.22, half - 0.22 - build.rake * 0.8), "glass"),
        patch("front", (-wide + 0.18, wide - 0.18), (low, high + 0.04), "glass"),
        patch("front", (-wide * 0.5, wide * 0.5), (build.belt - 0.42, build.belt - 0.16), "trim"),
        patch("front", (-0.27, 0.27), (0.52, 0.64), "plate"),
        patch("rear", (-0.27, 0.27), (0.5, 0.62), "plate", ("trim",)),
        patch("rear", (-0.02, 0.02), (1.0, height - 0.05), "trim", ("second",)),
        patch("front", (-wide, wide), (0, 0.68), "trim"),
    ]
    for side in (-1, 1):
        a, b = sorted((side * (wide - 0.1), side * (wide - 0.4)))
        panels.append(patch("front", (a, b), (0.72, 0.92), "lamp", PAINTED))
        panels.append(patch("rear", (a, b), (0.5, 0.62), "tail", ("trim",)))
    mirrors: Shapes = [Capsule((s * (wide + 0.06), half - 0.25, low), (s * (wide + 0.06), half - 0.25, low + 0.4),
                               0.08, 0.08, "trim",
                               flat=(1, 1.6, 1)) for s in (-1, 1)]  # fmt: skip
    deflector: Shapes = []
    if trim.plastic:
        deflector = [prism([(back, roof - 0.02), (half - 0.5, roof - 0.02), (back + 0.2, height - 0.05),
                            (back, height - 0.05)],
                           wide - 0.25, "paint")]  # fmt: skip
    return [cab, box, chassis, guard, *mirrors, *deflector], panels


def _bus(build: Build) -> tuple[Shapes, list[Panel]]:
    """A bus: one box with bands of windows and doors on the sides."""
    half, wide, belt, height = build.length / 2, build.width / 2, build.belt, build.height
    body = prism([(-half, 0.32), (half - 0.04, 0.32), (half, 0.6), (half - 0.02, belt - 0.1),
                  (half - 0.25, height - 0.1), (half - 0.4, height),
                  (-half + 0.1, height), (-half, height - 0.1)], wide, "paint", 0.02, 0.1, 0.12)  # fmt: skip
    high = height - 0.42
    panels = _side_windows(build.windows, (-half + 0.35, -half + 0.35), (half - 0.3, half - 0.38), (belt, high))
    doors = (half - 1.75, half - 0.62), (-0.6, 0.6)
    panels += [patch("side", door, (0.42, high), "glass", PAINTED) for door in doors[: 1 + int(build.tail > 0.5)]]
    panels.append(patch("front", (-wide + 0.1, wide - 0.1), (belt - 0.1, high + 0.05), "glass", PAINTED))
    panels.append(patch("front", (-wide + 0.45, wide - 0.45), (high + 0.12, high + 0.34), "board", PAINTED))
    if build.slope > 0.4:
        panels.append(patch("rear", (-wide + 0.25, wide - 0.25), (belt + 0.1, high), "glass", PAINTED))
    panels.append(patch("rear", (-wide + 0.4, wide - 0.4), (0.55, 1.0), "trim", PAINTED))
    for side in (-1, 1):
        a, b = sorted((side * (wide - 0.08), side * (wide - 0.4)))
        panels.append(patch("front", (a, b), (0.62, 0.84), "lamp", PAINTED))
        panels.append(patch("rear", (a, b), (0.62, 1.05), "tail", (*PAINTED, "trim")))
    panels.append(patch("front", (-0.27, 0.27), (0.45, 0.57), "plate", PAINTED))
    return [body], panels


def _stripes(build: Build, trim: Trim) -> list[Panel]:
    """Build the stripe and the skirt, along the sides and round the ends."""
    half, wide, at, high = build.length / 2, build.width / 2, trim.stripe_at, trim.stripe_high
    on = ("paint", "second") if build.kind == "truck" else ("paint",)
    panels: list[Panel] = []
    if trim.skirt:
        panels += [
            patch(face, (-9, 9), (0, build.belt * 0.62), "second", ("paint",)) for face in ("side", "front", "rear")
        ]
    if trim.stripe in ("belt", "double", "sill"):
        panels += [patch(face, (-9, 9), (at, at + high), "ink", on) for face in ("side", "rear")]
    if trim.stripe == "double":
        panels += [patch(face, (-9, 9), (at + 1.7 * high, at + 2.3 * high), "ink", on) for face in ("side", "rear")]
    if trim.stripe == "wedge":
        rear = -half + 0.35 * build.length
        panels.append(Panel("side", SILL, build.height, (-9, -9), (rear - 0.3, rear + 0.5), "ink", on))
    if trim.stripe == "bonnet":
        for x in (-0.22, 0.22):
            panels.append(patch("top", (x - 0.14, x + 0.14), (-half, half), "ink", ("paint", "roof")))
            panels.append(patch("front", (x - 0.14, x + 0.14), (0.3, wide * 2), "ink"))
    return panels


def _roof_load(build: Build, trim: Trim) -> Shapes:
    """Build what is on the roof."""
    top = build.height
    back, front = _roof_span(build)
    wide, size = build.width / 2 * 0.66, trim.load
    middle, length = (back + front) / 2, front - back
    if trim.roof_load == "rails":
        return [
            Capsule((s * wide, back + 0.15, top + 0.05), (s * wide, front - 0.15, top + 0.05), 0.03, 0.03, "rack")
            for s in (-1, 1)
        ]
    bars: Shapes = [
        Capsule((-wide, y, top + 0.07), (wide, y, top + 0.07), 0.03, 0.03, "rack")
        for y in (back + 0.3 * length, front - 0.2 * length)
    ]
    if trim.roof_load == "bars":
        return bars
    if trim.roof_load == "box":
        reach = min(0.9 * size, length * 0.55)
        return [*bars, prism([(middle - reach, top + 0.1), (middle + reach * 0.8, top + 0.1),
                              (middle + reach, top + 0.22),
                              (middle + reach * 0.6, top + 0.1 + 0.32 * size),
                              (middle - reach, top + 0.1 + 0.32 * size)],
                             0.4 * size, "load", 0.15)]  # fmt: skip
    if trim.roof_load == "cargo":
        return [
            *bars,
            slab(
                (-wide * 0.9, wide * 0.9),
                (middle - 0.7 * size, middle + 0.5 * size),
                (top + 0.08, top + 0.1 + 0.28 * size),
                "load",
                0.1,
            ),
        ]
    if trim.roof_load == "ladder":
        return [
            *bars,
            *(
                Capsule((x, back, top + 0.13), (x, front + 0.2, top + 0.13), 0.035, 0.035, "load")
                for x in (wide * 0.2, wide * 0.75)
            ),
        ]
    if trim.roof_load in ("sign", "lights"):
        y = middle + 0.1 * length if trim.roof_load == "sign" else front - 0.2
        reach = 0.3 * size if trim.roof_load == "sign" else wide
        return [slab((-reach, reach), (y - 0.09, y + 0.09), (top - 0.01, top + 0.17 * size), "load", 0.06)]
    return []


def _roof_span(build: Build) -> tuple[float, float]:
    half = build.length / 2
    if build.kind in (*CARS, "pickup"):
        return -half + build.tail + build.slope, half - build.nose - build.rake
    if build.kind == "van":
        return -half + 0.2, half - build.nose - build.rake - 0.2
    return (-half + 0.5, half - 0.8) if build.kind == "bus" else (-half + 0.3, half - build.nose - 0.5)


def vehicle_parts(build: Build, trim: Trim) -> tuple[Shapes, list[Panel]]:
    """Build the shapes and panels of a vehicle, whose wheels stand on z = 0 and whose middle is at y = 0."""
    if build.kind == "truck":
        shapes, openings = _truck(build, trim)
    elif build.kind == "bus":
        shapes, openings = _bus(build)
    else:
        shapes, openings = {"van": _van, "pickup": _pickup}.get(build.kind, _car)(build)
    wheels, hubs = _wheels(build, trim)
    decals = [patch("side", (d.along - d.half_width, d.along + d.half_width),
                  (d.up - d.half_height, d.up + d.half_height), d.slot,
                   PAINTED, bits=d.bits) for d in trim.decals]  # fmt: skip
    face = [] if build.kind in ("truck", "bus") else _car_face(build, trim)
    panels = [*_stripes(build, trim), *decals, *openings, *face, *hubs]
    return [*shapes, *wheels, *_roof_load(build, trim)], panels
