"""Render figures: compute the light that reaches every pixel of a camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from reid.data.street.geometry import CameraView, Capsule, FloatArray, Rays, Solid, Vec, cast, cast_rays
from reid.data.street.materials import FABRICS, Fabric, SurfaceMaterial, print_logos, reflectance
from reid.data.street.surface import Surface, find_surface

TRUNK_SLOTS = frozenset({"top"})


@dataclass(frozen=True)
class Panel:
    """A flat field of another material on a figure: a window, a lamp, a stripe, a sign.

    Args:
        face: The face that shows it: "side" (both), "front", "rear" or "top".  Its plane has the axes y and z, x and
            z, x and z, or x and y.
        low: Lower end on the second axis, in metres.
        high: Upper end on the second axis.
        left: Left ends on the first axis, at ``low`` and at ``high``.
        right: Right ends on the first axis, at ``low`` and at ``high``.
        slot: Name of the material.
        on: Names of the materials that are repainted.
        oval: Repaint only the ellipse inside.
        bits: Which cells of a 4 x 4 grid are repainted.
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
    """Shapes and their materials, placed in the world.

    Args:
        shapes: The shapes.
        slots: Materials by name.
        position: Position in the world, in metres.
        yaw: Turn about the vertical axis, in radians.
        base: Height from which the patterns of the trunk are measured.
        open_front: Half width in metres of the part where "inner" shows instead of "top".
        panels: Repaint the shapes, later ones over earlier ones.
        fabrics: Fabrics by name.
        mirrors: Share of the light from the surroundings that a material mirrors, by the name of its slot.
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
    """Light of a scene.

    Args:
        direction: Unit vector towards the sun.
        sun: Colour of the sun.
        sky: Colour of the sky.
        ground: Colour of the light from the ground.
        lamp: Strength at 10 m of an infrared lamp at the camera; above 0 it is the only light.
    """

    direction: Vec = (0.0, 0.0, 1.0)
    sun: Vec = (1.0, 1.0, 1.0)
    sky: Vec = (0.6, 0.6, 0.6)
    ground: Vec = (0.2, 0.2, 0.2)
    lamp: float = 0.0


@dataclass(frozen=True)
class Rendered:
    """Rendered figures.

    Args:
        light: (C, H, W) linear light, 0 where no figure is; C is 3, or 1 in infrared.
        cover: (H, W) share of each pixel that figures cover, 0..1.
    """

    light: FloatArray
    cover: FloatArray


def render(view: CameraView, figures: Sequence[Figure], light: Light, size: tuple[int, int], over: int = 2) -> Rendered:
    """Render figures.

    Args:
        view: The camera and the part of its image plane.
        figures: The figures.
        light: The light of the scene.
        size: Height and width in pixels.
        over: Each pixel has ``over`` x ``over`` rays.

    Returns:
        The light of the figures and the pixels that they cover.
    """
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
            hits = find_surface(ray, figure.shapes, depth[rows, columns], shape, (rows, columns))
            canvas[:, rows, columns] = _shade(figure, hits, depth[rows, columns], light)
    cover = (owner >= 0).astype(np.float32)
    return Rendered(_shrink(canvas, over), _shrink(cover[None], over)[0])


def _shrink(image: FloatArray, over: int) -> FloatArray:
    """Average blocks of pixels, (C, H * over, W * over) to (C, H, W)."""
    total = sum(image[:, i::over, j::over] for i in range(over) for j in range(over))
    return np.asarray(total * np.float32(1 / over**2), np.float32)


def _find_materials(figure: Figure, hits: Surface) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the names of materials, and for each point (N,) the index of its material."""
    names = sorted(figure.slots)
    index_of = {name: i for i, name in enumerate(names)}
    slot = np.array([index_of[s.slot] for s in figure.shapes])
    beyond = np.array([index_of.get(s.beyond, 0) if isinstance(s, Capsule) else 0 for s in figure.shapes])
    found: npt.NDArray[np.int64] = np.where(hits.beyond, beyond[hits.shape], slot[hits.shape])
    if figure.open_front > 0:
        is_open = (np.abs(hits.points[0]) < figure.open_front) & (hits.normals[1] > 0.1) & (found == index_of["top"])
        found[is_open] = index_of["inner"]
    if figure.panels:
        _lay_panels(figure.panels, hits, index_of, found)
    return names, found


def _lay_panels(
    panels: Sequence[Panel], hits: Surface, index_of: Mapping[str, int], found: npt.NDArray[np.int64]
) -> None:
    """Set the indices of materials ``found`` (N,) where panels cover the points."""
    nx, ny, nz = hits.normals
    visible = {
        "side": (np.flatnonzero(np.abs(nx) > 0.6), 1, 2),
        "front": (np.flatnonzero((ny > 0.3) & (np.abs(nx) < 0.75)), 0, 2),
        "rear": (np.flatnonzero((ny < -0.3) & (np.abs(nx) < 0.75)), 0, 2),
        "top": (np.flatnonzero(nz > 0.85), 0, 1),
    }
    faces = {
        face: (where, hits.points[first][where], hits.points[second][where])
        for face, (where, first, second) in visible.items()
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
        allowed = np.zeros(len(index_of), np.bool_)
        allowed[[index_of[name] for name in panel.on if name in index_of]] = True
        found[chosen[allowed[found[chosen]]]] = index_of[panel.slot]


def _surface_properties(figure: Figure, hits: Surface) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray | None]:
    """Return reflectance (4, N), gloss (N,), normals (3, N) with folds of cloth, and mirrored shares (N,) or None."""
    names, material = _find_materials(figure, hits)
    colours = np.empty((4, len(material)), np.float32)
    up = hits.points[2] - np.float32(figure.base)
    across = np.sin(hits.angle) * np.float32(0.12)
    for index, name in enumerate(names):
        where = np.flatnonzero(material == index)
        if not len(where):
            continue
        surface_material = figure.slots[name]
        trunk = name in TRUNK_SLOTS
        along_here = up[where] if trunk else hits.along[where]
        part = reflectance(surface_material, along_here, hits.points[0][where] if trunk else across[where])
        if surface_material.logos:
            print_logos(surface_material, part, hits.points[0][where], up[where], hits.normals[1][where])
        colours[:, where] = part
    fabrics = [figure.fabrics[figure.slots[name].fabric] for name in names]
    gloss, wrinkle, weave = (
        np.array([getattr(fabric, name) for fabric in fabrics], np.float32)[material]
        for name in ("gloss", "wrinkle", "weave")
    )
    x, y, z = hits.points
    fold = np.sin(z * 37 + x * 19 + y * 11) * np.sin(z * 13 - x * 29)
    normals = hits.normals.copy()
    normals[2] += wrinkle * fold
    normals[0] += wrinkle * np.float32(0.6) * np.sin(z * 23 + y * 31)
    normals /= np.sqrt(np.sum(normals * normals, axis=0))
    colours *= 1 + weave * np.sin(x * 710 + z * 430) * np.sin(z * 650 - y * 520)
    if not figure.mirrors:
        return colours, gloss, normals, None
    return colours, gloss, normals, np.array([figure.mirrors.get(name, 0.0) for name in names], np.float32)[material]


def _shade(figure: Figure, hits: Surface, depth: FloatArray, light: Light) -> FloatArray:
    """Compute the light (C, N) that the surface sends to the camera."""
    colours, gloss, normals, mirror = _surface_properties(figure, hits)
    if light.lamp > 0:
        facing = np.clip(np.sum(normals * hits.towards, axis=0), 0, 1)
        strength = np.float32(light.lamp) * (np.float32(10) / (depth + 1)) ** 1.4
        lamp: FloatArray = strength * (colours[3] * (0.12 + 0.88 * facing) + 0.3 * gloss * facing**24)
        return lamp[None]
    cosine, sine = np.float32(np.cos(figure.yaw)), np.float32(np.sin(figure.yaw))
    lx, ly, lz = (np.float32(value) for value in light.direction)
    sun = (cosine * lx + sine * ly, cosine * ly - sine * lx, lz)  # in the figure's coordinates
    glow = normals[0] * sun[0] + normals[1] * sun[1] + normals[2] * sun[2]
    direct = np.clip((glow + 0.15) / 1.15, 0, 1)
    above = 0.5 + 0.5 * normals[2]
    half = hits.towards + np.array(sun, np.float32)[:, None]
    half /= np.sqrt(np.sum(half * half, axis=0)) + np.float32(1e-6)
    shine = gloss * np.clip(np.sum(half * normals, axis=0), 0, 1) ** 16
    out = np.empty((3, len(depth)), np.float32)
    for c in range(3):
        arriving = light.sky[c] * above + light.ground[c] * (1 - above) + light.sun[c] * direct
        out[c] = colours[c] * arriving + shine * light.sun[c] * np.float32(0.5)
    if mirror is not None:
        out += _mirrored_light(normals, hits.towards, mirror, light)
    return out


def _mirrored_light(normals: FloatArray, towards: FloatArray, mirror: FloatArray, light: Light) -> FloatArray:
    """Compute the mirrored light (3, N) of the sky and the street, which is stronger at a glancing angle."""
    facing = np.clip(np.sum(normals * towards, axis=0), 0, 1)
    upward = 2 * facing * normals[2] - towards[2]
    share = mirror * (np.float32(0.45) + np.float32(0.55) * (1 - facing) ** 3)
    sky = np.clip(upward * np.float32(2.5) + np.float32(0.25), 0, 1)
    found: FloatArray = np.stack([share * (s * sky + np.float32(0.3) * g * (1 - sky))
                                  for s, g in zip(light.sky, light.ground, strict=True)])  # fmt: skip
    return found
