"""A scene of figures seen by a camera: light that reaches every pixel, before the camera's electronics.

Rendering knows shapes, materials and light; it knows nothing of identities or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from reid.data.street.geometry import CameraView, Capsule, FloatArray, Rays, Solid, Vec, cast, cast_rays
from reid.data.street.materials import FABRICS, Fabric, SurfaceMaterial, print_logos, reflectance
from reid.data.street.surface import Surface, surface

TRUNK_SLOTS = frozenset({"top"})


@dataclass(frozen=True)
class Panel:
    """A flat field of another material on a figure: a window, a lamp, a stripe, a sign.

    ``face`` says from where it is seen: "side" (both), "front", "rear" or "top"; its plane has the axes
    (y, z), (x, z), (x, z) or (x, y).  It spans ``low`` .. ``high`` on the second axis and on the first
    from ``left`` to ``right``, each given at ``low`` and at ``high``; metres.  ``oval`` takes the ellipse
    within.  Only surface of the materials ``on`` is repainted.  ``bits`` keeps cells of a 4 x 4 grid.
    """

    face: str
    low: float
    high: float
    left: tuple[float, float]
    right: tuple[float, float]
    slot: str
    on: tuple[str, ...] = ("paint",)
    oval: bool = False
    bits: int = 0xFFFF


@dataclass(frozen=True)
class Figure:
    """Shapes and their materials at ``position`` (metres, world), turned by ``yaw`` radians.

    ``base`` is the height from which the patterns of the trunk are measured; ``open_front`` is the
    half width in metres of the strip where "inner" shows through "top".  ``panels`` repaint the shapes,
    later ones over earlier ones.  ``mirrors`` holds, by material, the share of light from the
    surroundings that its surface mirrors.
    """

    shapes: Sequence[Capsule | Solid]
    slots: Mapping[str, SurfaceMaterial]
    position: Vec = (0.0, 0.0, 0.0)
    yaw: float = 0.0
    base: float = 0.0
    open_front: float = 0.0
    panels: Sequence[Panel] = ()
    fabrics: Mapping[str, Fabric] = field(default_factory=lambda: FABRICS)
    mirrors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Light:
    """Light at the scene: ``sun`` direction to the light (unit) and colour, ``sky`` and ``ground`` colour.

    With ``lamp`` > 0 the scene is lit from the camera in infrared: strength at 10 m, and the other
    colours are not used.
    """

    direction: Vec = (0.0, 0.0, 1.0)
    sun: Vec = (1.0, 1.0, 1.0)
    sky: Vec = (0.6, 0.6, 0.6)
    ground: Vec = (0.2, 0.2, 0.2)
    lamp: float = 0.0


@dataclass(frozen=True)
class Rendered:
    """``light`` (C, H, W) linear, black where nothing is; ``cover`` (H, W) 0..1; C is 3, or 1 in infrared."""

    light: FloatArray
    cover: FloatArray


def render(view: CameraView, figures: Sequence[Figure], light: Light, size: tuple[int, int], over: int = 2) -> Rendered:
    """Draw ``figures`` at ``size`` (height, width) with ``over`` x ``over`` rays a pixel."""
    height, width = size[0] * over, size[1] * over
    depth = np.full((height, width), np.inf, np.float32)
    owner = np.full((height, width), -1, np.int16)
    rays: list[Rays] = []
    first: list[int] = [0]
    for figure in figures:
        rays.append(cast_rays(view, height, width, figure.position, figure.yaw))
        cast(rays[-1], figure.shapes, depth, owner, first[-1])
        first.append(first[-1] + len(figure.shapes))
    channels = 1 if light.lamp > 0 else 3
    canvas = np.zeros((channels, height, width), np.float32)
    for figure, ray, start, end in zip(figures, rays, first[:-1], first[1:], strict=True):
        rows, columns = np.nonzero((owner >= start) & (owner < end))
        if len(rows):
            shape = owner[rows, columns].astype(np.int64) - start
            met = surface(ray, figure.shapes, depth[rows, columns], shape, (rows, columns))
            canvas[:, rows, columns] = _lit(figure, met, depth[rows, columns], light)
    cover = (owner >= 0).astype(np.float32)
    return Rendered(_shrink(canvas, over), _shrink(cover[None], over)[0])


def _shrink(image: FloatArray, over: int) -> FloatArray:
    """(C, H * over, W * over) -> (C, H, W) by the mean of blocks."""
    total = sum(image[:, i::over, j::over] for i in range(over) for j in range(over))
    return np.asarray(total * np.float32(1 / over**2), np.float32)


def _material_of(figure: Figure, met: Surface) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of materials, and for each point (N,) the place of its material among them."""
    names = sorted(figure.slots)
    place = {name: i for i, name in enumerate(names)}
    slot = np.array([place[s.slot] for s in figure.shapes])
    beyond = np.array([place.get(s.beyond, 0) if isinstance(s, Capsule) else 0 for s in figure.shapes])
    found: npt.NDArray[np.int64] = np.where(met.beyond, beyond[met.shape], slot[met.shape])
    if figure.open_front > 0:
        strip = (np.abs(met.points[0]) < figure.open_front) & (met.normals[1] > 0.1) & (found == place["top"])
        found[strip] = place["inner"]
    if figure.panels:
        _lay_panels(figure.panels, met, place, found)
    return names, found


def _lay_panels(panels: Sequence[Panel], met: Surface, place: Mapping[str, int], found: npt.NDArray[np.int64]) -> None:
    """Set ``found`` (N,), the places of materials, to those of the panels that cover the points."""
    nx, ny, nz = met.normals
    seen = {
        "side": (np.flatnonzero(np.abs(nx) > 0.6), 1, 2),
        "front": (np.flatnonzero((ny > 0.3) & (np.abs(nx) < 0.75)), 0, 2),
        "rear": (np.flatnonzero((ny < -0.3) & (np.abs(nx) < 0.75)), 0, 2),
        "top": (np.flatnonzero(nz > 0.85), 0, 1),
    }
    faces = {
        face: (where, met.points[first][where], met.points[second][where])
        for face, (where, first, second) in seen.items()
    }
    for panel in panels:
        where, first, second = faces[panel.face]
        row = (second - np.float32(panel.low)) / np.float32(panel.high - panel.low)
        left = panel.left[0] + (panel.left[1] - panel.left[0]) * row
        right = panel.right[0] + (panel.right[1] - panel.right[0]) * row
        inside = (row > 0) & (row < 1) & (first > left) & (first < right)
        near = np.flatnonzero(inside)
        across, up = (first[near] - left[near]) / (right[near] - left[near]), row[near]
        if panel.oval:
            kept = (across - 0.5) ** 2 + (up - 0.5) ** 2 < 0.25
        else:
            cell = (up * 4).astype(np.int64) * 4 + (across * 4).astype(np.int64)
            kept = (panel.bits >> cell) & 1 == 1
        chosen = where[near[kept]]
        allowed = np.zeros(len(place), np.bool_)
        allowed[[place[name] for name in panel.on if name in place]] = True
        found[chosen[allowed[found[chosen]]]] = place[panel.slot]


def _painted(figure: Figure, met: Surface) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray | None]:
    """Reflectance (4, N), gloss (N,), normals (3, N) with the folds of the cloth, share mirrored (N,) if any is."""
    names, material = _material_of(figure, met)
    colours = np.empty((4, len(material)), np.float32)
    up = met.points[2] - np.float32(figure.base)
    across = np.sin(met.angle) * np.float32(0.12)
    for index, name in enumerate(names):
        where = np.flatnonzero(material == index)
        if not len(where):
            continue
        stuff = figure.slots[name]
        trunk = name in TRUNK_SLOTS
        along_here = up[where] if trunk else met.along[where]
        part = reflectance(stuff, along_here, met.points[0][where] if trunk else across[where])
        if stuff.logos:
            print_logos(stuff, part, met.points[0][where], up[where], met.normals[1][where])
        colours[:, where] = part
    fabrics = [figure.fabrics[figure.slots[name].fabric] for name in names]
    gloss, wrinkle, weave = (
        np.array([getattr(fabric, kind) for fabric in fabrics], np.float32)[material]
        for kind in ("gloss", "wrinkle", "weave")
    )
    x, y, z = met.points
    fold = np.sin(z * 37 + x * 19 + y * 11) * np.sin(z * 13 - x * 29)
    normals = met.normals.copy()
    normals[2] += wrinkle * fold
    normals[0] += wrinkle * np.float32(0.6) * np.sin(z * 23 + y * 31)
    normals /= np.sqrt(np.sum(normals * normals, axis=0))
    colours *= 1 + weave * np.sin(x * 710 + z * 430) * np.sin(z * 650 - y * 520)
    if not figure.mirrors:
        return colours, gloss, normals, None
    return colours, gloss, normals, np.array([figure.mirrors.get(name, 0.0) for name in names], np.float32)[material]


def _lit(figure: Figure, met: Surface, depth: FloatArray, light: Light) -> FloatArray:
    """Light (C, N) that leaves the surface towards the camera."""
    colours, gloss, normals, mirror = _painted(figure, met)
    if light.lamp > 0:
        facing = np.clip(np.sum(normals * met.towards, axis=0), 0, 1)
        strength = np.float32(light.lamp) * (np.float32(10) / (depth + 1)) ** 1.4
        lamp: FloatArray = strength * (colours[3] * (0.12 + 0.88 * facing) + 0.3 * gloss * facing**24)
        return lamp[None]
    cosine, sine = np.float32(np.cos(figure.yaw)), np.float32(np.sin(figure.yaw))
    lx, ly, lz = (np.float32(value) for value in light.direction)
    sun = (cosine * lx + sine * ly, cosine * ly - sine * lx, lz)  # into the figure's frame
    glow = normals[0] * sun[0] + normals[1] * sun[1] + normals[2] * sun[2]
    direct = np.clip((glow + 0.15) / 1.15, 0, 1)
    above = 0.5 + 0.5 * normals[2]
    half = met.towards + np.array(sun, np.float32)[:, None]
    half /= np.sqrt(np.sum(half * half, axis=0)) + np.float32(1e-6)
    shine = gloss * np.clip(np.sum(half * normals, axis=0), 0, 1) ** 16
    out = np.empty((3, len(depth)), np.float32)
    for c in range(3):
        arriving = light.sky[c] * above + light.ground[c] * (1 - above) + light.sun[c] * direct
        out[c] = colours[c] * arriving + shine * light.sun[c] * np.float32(0.5)
    if mirror is not None:
        out += _mirrored(normals, met.towards, mirror, light)
    return out


def _mirrored(normals: FloatArray, towards: FloatArray, mirror: FloatArray, light: Light) -> FloatArray:
    """Light (3, N) of sky above and street below, mirrored more at a glancing view."""
    facing = np.clip(np.sum(normals * towards, axis=0), 0, 1)
    upward = 2 * facing * normals[2] - towards[2]
    share = mirror * (np.float32(0.45) + np.float32(0.55) * (1 - facing) ** 3)
    sky = np.clip(upward * np.float32(2.5) + np.float32(0.25), 0, 1)
    found: FloatArray = np.stack([share * (s * sky + np.float32(0.3) * g * (1 - sky))
                                  for s, g in zip(light.sky, light.ground, strict=True)])  # fmt: skip
    return found
