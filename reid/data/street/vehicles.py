"""Draw vehicles and render their crops.

A vehicle has a build, a paint, a trim and decals, which are drawn from the seed, the site and the number of the
vehicle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from reid.data.street.crop_rendering import Visit, compose, draw_obstacles
from reid.data.street.geometry import Vec
from reid.data.street.materials import FABRICS, Fabric, SurfaceMaterial, draw_infrared, draw_shade, srgb_to_linear
from reid.data.street.photometry import compute_light
from reid.data.street.random_draws import between, clipped, generator, pick
from reid.data.street.render import Figure, Light
from reid.data.street.street_cameras import Camera
from reid.data.street.vehicle_builds import CARS, Build, Decal, Trim, slab
from reid.data.street.vehicle_shapes import vehicle_parts

VEHICLE_SIZE = (96, 128)
BLOCK = 4  # look-alikes are neighbours by number within blocks of this size
LOOKALIKES = {"": 0.62, "fleet": 0.22, "model": 0.16}
FARTHER = 2.2  # factor for the depth of the scenery, compared with that for people

COATS = FABRICS | {
    "paint": Fabric(0.5, 0.0, 0.0, 0.0),
    "glass": Fabric(0.3, 0.0, 0.0, 0.0),
    "rubber": Fabric(0.03, 0.0, 0.03, 0.0),
}
MIRRORS = {
    "paint": 0.16,
    "second": 0.14,
    "roof": 0.16,
    "glass": 0.42,
    "lamp": 0.3,
    "hub": 0.2,
    "tail": 0.15,
    "load": 0.08,
}

PAINTS = {  # sRGB 0..255, and how common
    (226, 227, 226): 0.2, (168, 171, 175): 0.15, (112, 115, 120): 0.14, (70, 73, 78): 0.1, (26, 27, 29): 0.17,
    (30, 40, 70): 0.08,
    (48, 76, 120): 0.03, (140, 28, 32): 0.05, (88, 24, 32): 0.02, (150, 138, 118): 0.03, (44, 62, 52): 0.02,
    (196, 160, 40): 0.01,
}  # fmt: skip
INKS = {
    (200, 40, 40): 0.2, (30, 70, 150): 0.2, (30, 110, 60): 0.12, (230, 150, 30): 0.12, (240, 210, 60): 0.06,
    (30, 30, 32): 0.16,
    (235, 235, 235): 0.14,
}  # fmt: skip
KINDS = {
    "hatchback": 0.24,
    "saloon": 0.17,
    "estate": 0.14,
    "suv": 0.14,
    "van": 0.14,
    "pickup": 0.05,
    "truck": 0.07,
    "bus": 0.05,
}
FLEET_KINDS = {"van": 0.4, "saloon": 0.18, "hatchback": 0.14, "estate": 0.1, "truck": 0.1, "bus": 0.08}
LOADS = {"": 0.56, "rails": 0.18, "bars": 0.09, "box": 0.09, "sign": 0.05, "cargo": 0.03}
WORK_LOADS = {"": 0.5, "bars": 0.15, "ladder": 0.15, "lights": 0.1, "cargo": 0.1}


@dataclass(frozen=True)
class Vehicle:
    """One identity; ``slots`` maps the names of materials to materials."""

    build: Build
    trim: Trim
    slots: dict[str, SurfaceMaterial]


class _Range(NamedTuple):
    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    wheel: tuple[float, float]
    nose: tuple[float, float]
    tail: tuple[float, float]
    rake: tuple[float, float]
    slope: tuple[float, float]
    belt: tuple[float, float]  # share of the height
    windows: tuple[int, ...]


MEASURES = {
    "hatchback": _Range((3.5, 4.2), (1.66, 1.8), (1.42, 1.56), (0.29, 0.33), (0.85, 1.1), (0.06, 0.2), (0.5, 0.75),
                        (0.3, 0.55), (0.58, 0.63),
                        (2, 2, 3)),
    "saloon": _Range((4.4, 4.95), (1.78, 1.9), (1.4, 1.48), (0.31, 0.34), (1.15, 1.35), (0.7, 0.95), (0.6, 0.8),
                     (0.5, 0.8), (0.6, 0.65),
                     (2, 2, 3)),
    "estate": _Range((4.4, 4.9), (1.76, 1.88), (1.44, 1.54), (0.31, 0.34), (1.1, 1.3), (0.04, 0.12), (0.6, 0.8),
                     (0.2, 0.42), (0.59, 0.64),
                     (3, 3, 2)),
    "suv": _Range((4.2, 4.85), (1.82, 1.95), (1.6, 1.8), (0.35, 0.39), (1.0, 1.25), (0.06, 0.16), (0.45, 0.65),
                  (0.2, 0.45), (0.6, 0.65), (3, 2)),
    "van": _Range((4.5, 6.0), (1.85, 2.02), (1.9, 2.6), (0.32, 0.36), (0.55, 0.85), (0.0, 1.0), (0.55, 0.8),
                  (0.0, 1.0), (0.0, 0.0), (1, 1, 1, 3, 4)),
    "pickup": _Range((5.0, 5.4), (1.82, 1.95), (1.74, 1.86), (0.36, 0.39), (1.15, 1.3), (1.5, 2.1), (0.55, 0.7),
                     (0.1, 0.2), (0.58, 0.62), (1, 2)),
    "truck": _Range((6.0, 8.4), (2.15, 2.4), (2.7, 3.4), (0.4, 0.46), (1.6, 2.0), (0.0, 1.0), (0.1, 0.35), (0.0, 1.0),
                    (0.0, 0.0), (1,)),
    "bus": _Range((8.0, 11.0), (2.4, 2.5), (2.85, 3.2), (0.44, 0.48), (0.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.0, 1.0),
                  (0.0, 0.0), (5, 6, 7)),
}  # fmt: skip
BELTS = {"van": (1.08, 1.22), "truck": (1.3, 1.5), "bus": (1.25, 1.5)}  # metres


def draw_build(rng: np.random.Generator, kind: str) -> Build:
    """Draw the measures of a vehicle of a type."""
    ranges = MEASURES[kind]
    length, width, height, wheel, nose, tail, rake, slope, share = (between(rng, *ranges[i]) for i in range(9))
    absolute = between(rng, *BELTS.get(kind, (0.0, 0.0)))
    windows = ranges.windows[int(rng.integers(len(ranges.windows)))]
    return Build(kind, length, width, height, wheel, nose, tail, rake, slope, absolute or share * height, windows)


def _draw_paint_material(
    rng: np.random.Generator, palette: dict[tuple[int, int, int], float], spread: float = 0.08
) -> SurfaceMaterial:
    """Draw a paint; its infrared reflectance does not follow from its colour alone."""
    colour = draw_shade(rng, pick(rng, palette), spread)
    return SurfaceMaterial(colour, draw_infrared(rng, colour, "metal"), "paint")


def draw_paint(rng: np.random.Generator, kind: str) -> dict[str, SurfaceMaterial]:
    """Draw the materials of body, second colour, roof and ink."""
    palette = (
        PAINTS
        if kind in (*CARS, "pickup")
        else PAINTS | {(226, 227, 226): 0.45, (196, 160, 40): 0.05, (140, 28, 32): 0.09}
    )
    if kind == "bus":
        palette = palette | INKS
    body, second, ink = (_draw_paint_material(rng, colours) for colours in (palette, INKS | PAINTS, INKS))
    roof = body
    contrast = float(rng.random())
    if kind in CARS and contrast < 0.13:
        roof = _draw_paint_material(rng, {(22, 22, 24): 0.7, (228, 228, 228): 0.3})
    if kind == "truck" and contrast < 0.6:
        second = _draw_paint_material(rng, {(222, 222, 220): 0.6, (150, 152, 156): 0.2, (60, 62, 70): 0.2})
    return {"paint": body, "second": second, "roof": roof, "ink": ink}


def draw_decals(rng: np.random.Generator, build: Build, wanted: bool) -> tuple[Decal, ...]:
    """Draw prints on the sides; about three of four cells of a 4 x 4 grid have ink."""
    length, belt, decals = build.length, build.belt, []
    middle = {"truck": build.height * 0.55 + 0.2, "van": 0.85, "bus": belt * 0.7}.get(build.kind, belt * 0.66)
    for number in range(1 + int(rng.random() < 0.4)):
        big = build.kind == "truck" or (build.kind == "van" and build.windows == 1)
        half_width = between(rng, 0.1, 0.2) * length if big else between(rng, 0.05, 0.11) * length
        half_height = between(rng, 0.3, 0.6) if big else between(rng, 0.11, 0.2)
        along = between(rng, -0.22, -0.05) * length if big or number else between(rng, -0.02, 0.1) * length
        bits = int(rng.integers(1 << 16)) | int(rng.integers(1 << 16))
        up = middle + (half_height * 0.5 if build.kind == "van" and big else 0.0)
        decals.append(Decal(along, up, half_width, half_height, bits))
    return tuple(decals) if wanted else ()


def draw_trim(rng: np.random.Generator, build: Build, decals: tuple[Decal, ...]) -> Trim:
    """Draw stripes, roof load, wheels and bumpers."""
    at_work = build.kind in ("van", "truck", "pickup")
    stripe = pick(rng, {"": 0.72, "belt": 0.1, "sill": 0.08, "double": 0.05, "wedge": 0.05} if build.kind != "bus" else
                  {"": 0.3, "belt": 0.25, "sill": 0.15, "double": 0.15, "wedge": 0.15})  # fmt: skip
    if build.kind in CARS and rng.random() < 0.03:
        stripe = "bonnet"
    at = build.belt * (between(rng, 0.35, 0.5) if stripe == "sill" else between(rng, 0.66, 0.84))
    load = pick(rng, WORK_LOADS if at_work else LOADS)
    if build.kind in ("truck", "bus"):
        load = ""
    hub = pick(rng, {0.66: 0.5, 0.76: 0.3, 0.52: 0.2}) * between(rng, 0.95, 1.05)
    plastic = rng.random() < (0.5 if build.kind in ("van", "suv", "pickup", "truck") else 0.22)
    skirt = rng.random() < {"bus": 0.5, "van": 0.1, "truck": 0.0}.get(build.kind, 0.04)
    return Trim(
        stripe,
        at,
        between(rng, 0.07, 0.16),
        load,
        between(rng, 0.75, 1.2),
        hub,
        bool(plastic),
        bool(skirt),
        float(rng.random()),
        decals,
    )


def _fittings(rng: np.random.Generator) -> dict[str, SurfaceMaterial]:
    """Draw the materials of everything that is not painted, and of the roof load."""
    grey, dark = between(rng, 0.25, 0.62), rng.random() < 0.25
    rim = 0.03 if dark else grey
    load = _draw_paint_material(
        rng, {(24, 24, 26): 0.4, (180, 182, 185): 0.25, (230, 228, 220): 0.15, (230, 170, 40): 0.1, (60, 90, 140): 0.1}
    )
    tint = between(rng, 0.008, 0.03)
    rack, board = (0.02, 0.3)[int(rng.random() < 0.5)], between(rng, 0.01, 0.05)
    plate = pick(rng, {(228, 228, 224): 0.75, (226, 190, 60): 0.25})
    return {
        "hub": SurfaceMaterial((rim, rim, rim * 1.02), rim * 0.9 + 0.02, "metal"),
        "load": load,
        "glass": SurfaceMaterial((tint, tint * 1.15, tint * 1.2), 0.012 + tint * 0.4, "glass"),
        "tyre": SurfaceMaterial((0.014, 0.014, 0.015), 0.03, "rubber"),
        "trim": SurfaceMaterial((0.022, 0.022, 0.024), between(rng, 0.03, 0.14), "rubber"),
        "rack": SurfaceMaterial((rack, rack, rack), rack + 0.04, "metal"),
        "lamp": SurfaceMaterial((0.6, 0.62, 0.64), 0.8, "glass"),
        "tail": SurfaceMaterial((0.3, 0.012, 0.014), between(rng, 0.3, 0.6), "glass"),
        "plate": SurfaceMaterial(srgb_to_linear(plate), 0.9, "stone"),
        "board": SurfaceMaterial((board * 1.5, board, board * 0.5), 0.05, "rubber"),
    }


def draw_vehicle(seed: int, site: str, split: str, index: int) -> Vehicle:
    """Draw a vehicle, which does not depend on which other vehicles are drawn.

    In some blocks of neighbours the first two to four are look-alikes: a fleet (the same type, paint and decals, but
    other measures, wheels and roof loads) or one model (the same measures and colour, everything else differs).  They
    take the roof loads in turn, so that no two of them have the same.

    Args:
        seed: The seed of the street.
        site: The site.
        split: "test" or "train".
        index: The number of the vehicle.

    Returns:
        The vehicle.
    """
    block, member = divmod(index, BLOCK)
    rng = generator(seed, "vehicle", site, split, "block", block)
    relation, size = pick(rng, LOOKALIKES), pick(rng, {2: 0.4, 3: 0.3, 4: 0.3})
    relation = relation if member < size else ""
    shared = {"": (), "fleet": ("kind", "paint", "decals"), "model": ("kind", "build", "paint")}[relation]

    def aspect(name: str) -> np.random.Generator:
        number = -1 - block if name in shared else index
        return generator(seed, "vehicle", site, split, name, abs(number), int(number < 0))

    rng = aspect("kind")
    kind, work = pick(rng, FLEET_KINDS if relation == "fleet" else KINDS), float(rng.random())
    build = draw_build(aspect("build"), kind)
    wanted = relation == "fleet" or work < (0.6 if kind in ("van", "truck", "bus") else 0.08)
    trim = draw_trim(aspect("trim"), build, draw_decals(aspect("decals"), build, wanted))
    if relation:
        loads = list(WORK_LOADS if kind in ("van", "truck", "pickup") else LOADS)
        load = loads[(block + member) % len(loads)] if kind not in ("truck", "bus") else ""
        trim = replace(trim, roof_load=load)
    return Vehicle(build, trim, draw_paint(aspect("paint"), kind) | _fittings(aspect("fittings")))


def vehicle_figure(vehicle: Vehicle, position: Vec, yaw: float) -> Figure:
    """Place a vehicle in the world, with the dark ground under it."""
    shapes, panels = vehicle_parts(vehicle.build, vehicle.trim)
    half, wide = vehicle.build.length / 2, vehicle.build.width / 2
    under = slab((-wide + 0.02, wide - 0.02), (-half + 0.05, half - 0.05), (0.0, 0.01), "under")
    slots = vehicle.slots | {"under": SurfaceMaterial((0.02, 0.02, 0.022), 0.015, "stone")}
    return Figure([*shapes, under], slots, position, yaw, panels=panels, fabrics=COATS, mirrors=MIRRORS)


def _shadow(figure: Figure, vehicle: Vehicle, camera: Camera, light: Light) -> list[Figure]:
    """Build the shadow beside the vehicle as a slab on the ground in the colour of the shade."""
    lx, ly, lz = light.direction
    if light.lamp > 0 or sum(light.sun) < 0.5:
        return []
    long = min(vehicle.build.height * 0.75 / max(lz, 0.25), 3.0)
    position = figure.position[0] - lx * long * 0.5, figure.position[1] - ly * long * 0.5, 0.0
    wide, half = vehicle.build.width / 2 + 0.1, vehicle.build.length / 2 + 0.05
    floor = srgb_to_linear(camera.ground.floor_colour)
    shade_of = [0.8 * sky / (sky + sun * lz) for sky, sun in zip(light.sky, light.sun, strict=True)]
    colour = floor[0] * shade_of[0], floor[1] * shade_of[1], floor[2] * shade_of[2]
    return [
        Figure(
            [slab((-wide, wide), (-half, half), (0.0, 0.005), "under")],
            {"under": SurfaceMaterial(colour, 0.05, "stone")},
            position,
            figure.yaw,
        )
    ]


def render_vehicle_crop(rng: np.random.Generator, vehicle: Vehicle, camera: Camera, visit: Visit) -> bytes:
    """Render one crop of a vehicle as JPEG."""
    bearing = visit.bearing + clipped(rng, 0.0, 0.03)
    length = vehicle.build.length
    distance = visit.distance * between(rng, 0.9, 1.1) + 0.8 * max(0.0, length - 4.2)
    position = (distance * float(np.sin(bearing)), distance * float(np.cos(bearing)), 0.0)
    yaw = float(np.radians(visit.heading + clipped(rng, 0.0, 7.0)) - bearing)
    figure = vehicle_figure(vehicle, position, yaw)
    nearer = max(0.3, 1 - (length / 2 + 0.2) / distance)
    before = draw_obstacles(rng, (position[0] * nearer, position[1] * nearer, 0.0), 1.4, None)
    wide = replace(camera.ground, wall_at=camera.ground.wall_at * FARTHER + 8.0)
    exposure = camera.exposure * (1.7 if camera.infrared else 1.0)  # the lamps of a road reach farther
    others = before + _shadow(figure, vehicle, camera, compute_light(camera, visit.hour, visit.cloud))
    return compose(rng, figure, others, replace(camera, ground=wide, exposure=exposure), visit, VEHICLE_SIZE)
