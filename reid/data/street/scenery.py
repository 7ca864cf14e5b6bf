"""Render what is behind the figures: textured ground, a wall, and the shadows on them.

The scenery is fixed in the world of its camera, so a figure at another position has another background.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.data.street.geometry import CameraView, FloatArray, Vec, cast_rays
from reid.data.street.materials import srgb_to_linear
from reid.data.street.random_draws import generator
from reid.data.street.render import Light
from reid.data.street.street_cameras import Ground

TILE = 256


@lru_cache(maxsize=1)
def _noise_tile() -> FloatArray:
    """Draw noise of several octaves (TILE, TILE) float32 in about -1..1 that repeats without a seam."""
    rng = generator(0, "noise tile")
    tile = np.zeros((TILE, TILE), np.float32)
    for step, strength in ((64, 0.5), (16, 0.35), (4, 0.25), (1, 0.18)):
        coarse = rng.standard_normal((TILE // step, TILE // step)).astype(np.float32)
        rough = np.repeat(np.repeat(coarse, step, axis=0), step, axis=1)
        for axis in (0, 1):
            total = rough.copy()
            for shift in range(1, step):
                total += np.roll(rough, shift, axis=axis)
            rough = total / np.float32(step)
        tile += np.float32(strength) * rough / (rough.std() + np.float32(1e-6))
    return tile


def _noise(x: FloatArray, y: FloatArray, scale: float) -> FloatArray:
    """Look up noise at positions in metres, with ``scale`` samples a metre."""
    tile = _noise_tile()
    column = np.floor(x * np.float32(scale)).astype(np.int32) & (TILE - 1)
    row = np.floor(y * np.float32(scale)).astype(np.int32) & (TILE - 1)
    found: FloatArray = tile[row, column]
    return found


def _cell(x: FloatArray, y: FloatArray, wide: float, high: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the distances to the nearest joints of a grid, across and along, in metres, and a value for each cell."""
    column, row = np.floor(x / np.float32(wide)), np.floor(y / np.float32(high))
    across, along = x - column * np.float32(wide), y - row * np.float32(high)
    tile = _noise_tile()
    value = tile[row.astype(np.int32) * 37 & (TILE - 1), column.astype(np.int32) * 53 & (TILE - 1)]
    return np.minimum(across, np.float32(wide) - across), np.minimum(along, np.float32(high) - along), value


def _grid(
    x: FloatArray, y: FloatArray, wide: float, high: float, joint: float, depth: float, spread: float
) -> FloatArray:
    across, along, value = _cell(x, y, wide, high)
    gain = 1 + np.float32(spread) * value - np.float32(depth) * (np.minimum(across, along) < joint)
    return np.asarray(gain, np.float32)


def _bricks(x: FloatArray, y: FloatArray) -> FloatArray:
    row = np.floor(y / np.float32(0.16))
    return _grid(x + np.float32(0.2) * (row % 2), y, 0.42, 0.16, 0.015, 0.35, 0.16)


def _doors(x: FloatArray, y: FloatArray) -> FloatArray:
    across, _, value = _cell(x, y, 2.6, 60.0)
    door = (across > 0.75) & (y < 2.3)
    pane = (across > 0.55) & (y > 2.6) & (y < 4.2)
    gain: FloatArray = np.where(door, 0.35 + 0.25 * value, np.where(pane, 0.25, 1.0)) + 0.06 * _noise(x, y, 9)
    return gain


Texture = Callable[[FloatArray, FloatArray], npt.NDArray[np.floating[Any]]]

TEXTURES: dict[str, Texture] = {
    "asphalt": lambda x, y: 1 + 0.12 * _noise(x, y, 24) + 0.1 * _noise(x, y, 3) + 0.7 * (np.abs(x % 7.0 - 3.0) < 0.07),
    "slabs": lambda x, y: _grid(x, y, 0.9, 0.6, 0.02, 0.3, 0.08) + 0.06 * _noise(x, y, 14),
    "tiles": lambda x, y: _grid(x, y, 0.45, 0.45, 0.018, 0.25, 0.1),
    "grass": lambda x, y: 1 + 0.3 * _noise(x, y, 18) + 0.15 * _noise(x, y, 2),
    "bricks": _bricks,
    "panels": lambda x, y: _grid(x, y, 1.9, 3.1, 0.05, 0.4, 0.22) - 0.45 * (np.abs(y % 3.1 - 1.7) < 0.5),
    "doors": _doors,
    "hedge": lambda x, y: 1 + 0.4 * _noise(x, y, 12) + 0.25 * _noise(x, y, 2.5),
}


def render_background(
    view: CameraView, size: tuple[int, int], ground: Ground, light: Light, shadows: list[tuple[Vec, float]]
) -> FloatArray:
    """Render the light of ground and wall.

    Args:
        view: The camera and the part of its image plane.
        size: Height and width in pixels.
        ground: What the ground and the wall look like.
        light: The light of the scene.
        shadows: Positions and radii, in metres, of objects that cast shadows.

    Returns:
        (C, H, W) linear light; C is 3, or 1 in infrared.
    """
    rays = cast_rays(view, *size)
    d, origin = rays.directions, rays.origin.astype(np.float32)
    turn = np.radians(ground.wall_yaw)
    nx, ny = np.float32(np.sin(turn)), np.float32(np.cos(turn))
    down = np.where(d[2] < -1e-4, d[2], np.float32(-1e-4))
    to_ground = -origin[2] / down
    ahead = nx * d[0] + ny * d[1]
    to_wall = (np.float32(ground.wall_at) - nx * origin[0] - ny * origin[1]) / np.maximum(ahead, np.float32(1e-4))
    wall = to_wall < to_ground
    t = np.minimum(to_ground, to_wall)
    x, y, z = origin[0] + t * d[0], origin[1] + t * d[1], origin[2] + t * d[2]
    gain = np.empty_like(t)
    gain[wall] = TEXTURES[ground.wall](x[wall] * ny - y[wall] * nx, z[wall])
    floor = ~wall
    gain[floor] = TEXTURES[ground.floor](x[floor], y[floor])
    np.clip(gain, 0.05, 3.0, out=gain)
    colours = [np.where(wall, np.float32(w), np.float32(f)) * gain for w, f in
               zip(srgb_to_linear(ground.wall_colour), srgb_to_linear(ground.floor_colour), strict=True)]  # fmt: skip
    return _apply_light(np.stack(colours), (x, y, t), wall, light, shadows, (nx, ny))


def _apply_light(
    colours: FloatArray,
    position: tuple[FloatArray, FloatArray, FloatArray],
    wall: npt.NDArray[np.bool_],
    light: Light,
    shadows: list[tuple[Vec, float]],
    normal: tuple[np.float32, np.float32],
) -> FloatArray:
    x, y, t = position
    contact, cast_shadow = np.ones_like(t), np.ones_like(t)
    lx, ly, lz = light.direction
    reach = min(1.7 / max(lz, 0.2), 6.0)
    for (px, py, _), radius in shadows:
        dx, dy = x - np.float32(px), y - np.float32(py)
        contact *= 1 - np.float32(0.55) * np.exp(-(dx * dx + dy * dy) / np.float32(2 * radius * radius))
        along = np.clip(-(dx * lx + dy * ly), 0, np.float32(reach * np.hypot(lx, ly)))
        length = max(float(np.hypot(lx, ly)), 1e-3)
        sx, sy = dx + along * lx / length / length, dy + along * ly / length / length
        cast_shadow *= 1 - np.float32(0.9) * np.exp(-(((sx * sx + sy * sy) / np.float32(radius * radius)) ** 2))
    contact[wall] = 1
    cast_shadow[wall] = 1
    if light.lamp > 0:
        strength = np.float32(0.5 * light.lamp) * (np.float32(10) / (t + 1)) ** 1.9
        infrared: FloatArray = (colours.mean(axis=0) * strength * contact)[None]
        return infrared
    on_wall = max(0.0, float(-(normal[0] * lx + normal[1] * ly)))
    sunlit = np.where(wall, np.float32(on_wall), np.float32(max(lz, 0.0)) * cast_shadow)
    sky = np.where(wall, np.float32(0.6), np.float32(1.0)) * contact
    out = np.stack(
        [colours[c] * (np.float32(light.sky[c]) * sky + np.float32(light.sun[c]) * sunlit) for c in range(3)]
    )
    lit: FloatArray = out.astype(np.float32)
    return lit
