"""Intersect rays with tapered capsules and convex solids, in closed form for all pixels of a crop.

Lengths are metres, z points up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Vec = tuple[float, float, float]
Window = tuple[slice, slice]

TINY = np.float32(1e-12)


@dataclass(frozen=True)
class Capsule:
    """A rounded cone: two balls and their convex hull.

    Args:
        a: Centre of the first ball.
        b: Centre of the second ball.
        ra: Radius of the first ball.
        rb: Radius of the second ball.
        slot: Name of the material.
        beyond: Name of the material beyond the fraction ``cut`` of the axis.
        cut: Fraction of the axis at which the material changes.
        flat: Factors that stretch space about ``a`` before the intersection; (1, 1.5, 1) flattens the body along y.
        offset: Length along the garment at which this piece starts.
        open_end: Leave out the ball at ``b``, for the hem of a skirt.
    """

    a: Vec
    b: Vec
    ra: float
    rb: float
    slot: str
    beyond: str = ""
    cut: float = 2.0
    flat: Vec = (1.0, 1.0, 1.0)
    offset: float = 0.0
    open_end: bool = False


@dataclass(frozen=True)
class Solid:
    """A convex body: all points x with normals[i] . x <= offsets[i], where normals have unit length.

    Args:
        normals: Normals of the faces.
        offsets: Distances of the faces from the origin.
        corners: Points whose hull contains the body.
        slot: Name of the material.
        rounding: Distance from an edge, in metres, within which the normals turn.
    """

    normals: tuple[Vec, ...]
    offsets: tuple[float, ...]
    corners: tuple[Vec, ...]
    slot: str
    rounding: float = 0.05


@dataclass(frozen=True)
class Rays:
    """Rays of a crop in the coordinates of one figure.

    Args:
        origin: (3,) float64, position of the camera.
        right: (3,) float64, unit vector to the right.
        up: (3,) float64, unit vector upwards.
        forward: (3,) float64, unit vector forwards.
        u: (W,) float32, positions of the columns on the plane at depth 1.
        v: (H,) float32, positions of the rows on that plane.
        directions: (3, H, W) float32 with directions . forward = 1, so that the ray parameter is the depth in metres.
    """

    origin: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]
    up: npt.NDArray[np.float64]
    forward: npt.NDArray[np.float64]
    u: FloatArray
    v: FloatArray
    directions: FloatArray


@dataclass(frozen=True)
class CameraView:
    """A camera and the part of its image plane that the crop shows.

    Args:
        origin: Position of the camera in the world.
        right: Unit vector to the right, in the world.
        up: Unit vector upwards.
        forward: Unit vector forwards.
        window: Left, right, bottom and top on the plane at depth 1.
    """

    origin: Vec
    right: Vec
    up: Vec
    forward: Vec
    window: tuple[float, float, float, float]


def look_at(origin: Vec, target: Vec) -> tuple[Vec, Vec, Vec]:
    """Return the axes right, up and forward of an upright camera at ``origin`` that looks at ``target``."""
    forward = np.subtract(target, origin)
    forward = forward / np.sqrt(np.sum(forward**2))
    right = np.array([forward[1], -forward[0], 0.0])
    right = right / np.sqrt(np.sum(right**2))
    up = np.cross(right, forward)
    return _vec(right), _vec(up), _vec(forward)


def _vec(values: npt.NDArray[np.float64]) -> Vec:
    return float(values[0]), float(values[1]), float(values[2])


def cast_rays(view: CameraView, height: int, width: int, position: Vec = (0.0, 0.0, 0.0), yaw: float = 0.0) -> Rays:
    """Cast rays through the pixel centres, in the coordinates of a figure; its ``yaw`` is in radians."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    right, up, forward = (np.sum(turn * np.array(axis), axis=1) for axis in (view.right, view.up, view.forward))
    origin = np.sum(turn * np.subtract(view.origin, position), axis=1)
    left, far, bottom, top = view.window
    u = (left + (far - left) * (np.arange(width) + 0.5) / width).astype(np.float32)
    v = (top + (bottom - top) * (np.arange(height) + 0.5) / height).astype(np.float32)
    columns = forward[:, None] + right[:, None] * u
    rows = up[:, None] * v
    directions = (rows[:, :, None] + columns[:, None, :]).astype(np.float32)
    return Rays(origin, right, up, forward, u, v, directions)


def project(rays: Rays, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Project points (N, 3) to right and up on the image plane at depth 1, and depth (N, 3)."""
    axes = np.stack([rays.right, rays.up, rays.forward])
    local: npt.NDArray[np.float64] = np.sum((points - rays.origin)[:, None, :] * axes, axis=2)
    local[:, :2] /= np.maximum(local[:, 2:], 1e-3)
    return local


def _window(rays: Rays, points: npt.NDArray[np.float64], radii: npt.NDArray[np.float64]) -> Window | None:
    """Return the pixels that balls at ``points`` (N, 3) with ``radii`` (N,) can cover; None if there are none."""
    local = project(rays, points)
    if np.any(local[:, 2] <= radii + 0.05):
        return None  # a figure behind or around the camera is not drawn
    tangent = 1.0 + np.abs(local[:, :2]).max(axis=1)
    reach = radii / (local[:, 2] - radii) * tangent
    low, high = (local[:, :2] - reach[:, None]).min(axis=0), (local[:, :2] + reach[:, None]).max(axis=0)
    first, last = np.searchsorted(rays.u, low[0]), np.searchsorted(rays.u, high[0])
    top, bottom = np.searchsorted(-rays.v, -high[1]), np.searchsorted(-rays.v, -low[1])
    if first >= last or top >= bottom:
        return None
    return slice(int(top), int(bottom)), slice(int(first), int(last))


def capsule_window(rays: Rays, capsule: Capsule) -> Window | None:
    """Return the rectangle of pixels that a capsule can cover, or None."""
    stretch = 1.0 / min(capsule.flat)
    ends = np.array([capsule.a, capsule.b])
    return _window(rays, ends, np.array([capsule.ra, capsule.rb]) * stretch)


def hit_capsule(rays: Rays, capsule: Capsule, window: Window) -> FloatArray:
    """Compute the depth (h, w) at which the rays of a window first hit a capsule; inf where they miss.

    Each ray starts at the plane through the middle of the capsule.  So squares stay small, and float32 is exact to a
    thousandth of a millimetre at any distance.
    """
    a, flat = np.array(capsule.a), np.array(capsule.flat)
    ba = (np.array(capsule.b) - a) * flat
    depth = float(np.sum(rays.forward * ((a + np.array(capsule.b)) / 2 - rays.origin)))
    scale = flat.astype(np.float32)
    dx, dy, dz = (rays.directions[i][window] * scale[i] for i in range(3))
    offset = (rays.origin - a) * flat
    ox, oy, oz = (d * np.float32(depth) + np.float32(o) for d, o in zip((dx, dy, dz), offset, strict=True))
    dd = dx * dx + dy * dy + dz * dz
    do = dx * ox + dy * oy + dz * oz
    oo = ox * ox + oy * oy + oz * oz
    bx, by, bz = (np.float32(value) for value in ba)
    bd = bx * dx + by * dy + bz * dz
    bo = bx * ox + by * oy + bz * oz
    t = _hit_ball(dd, do, oo, capsule.ra)
    if not capsule.open_end:
        bb = float(np.sum(ba * ba))
        end = _hit_ball(dd, do - bd, oo - np.float32(2) * bo + np.float32(bb), capsule.rb)
        np.minimum(t, end, out=t)
    np.minimum(t, _hit_cone(capsule, ba, (dd, do, oo, bd, bo)), out=t)
    return t + np.float32(depth)


def _hit_ball(dd: FloatArray, do: FloatArray, oo: FloatArray, radius: float) -> FloatArray:
    """Return the first root of |o + t d| = radius, or inf; the inputs (h, w) hold d.d, d.o and o.o."""
    root = do * do - dd * (oo - np.float32(radius * radius))
    t: FloatArray = (-do - np.sqrt(np.maximum(root, 0))) / dd
    t[root < 0] = np.inf
    return t


def _hit_cone(capsule: Capsule, ba: npt.NDArray[np.float64], dots: tuple[FloatArray, ...]) -> FloatArray:
    """Return the first hit of the cone between the balls, or inf; ``dots`` hold d.d, d.o, o.o, b.d and b.o."""
    dd, do, oo, bd, bo = dots
    taper, bb = capsule.ra - capsule.rb, float(np.sum(ba * ba))
    slant = bb - taper * taper
    if slant <= 0:
        return np.full_like(dd, np.inf)  # one ball contains the other
    lean, span = np.float32(taper * capsule.ra), np.float32(slant)
    k2 = span * dd - bd * bd
    k1 = span * do - bo * bd + lean * bd
    k0 = span * oo - bo * bo + (lean + lean) * bo - np.float32(bb * capsule.ra * capsule.ra)
    root = k1 * k1 - k0 * k2
    k2 = np.where(np.abs(k2) < TINY, TINY, k2)
    square = np.sqrt(np.maximum(root, 0))
    t: FloatArray = (-k1 - square) / k2
    y = bo - lean + t * bd
    outside = (root < 0) | (y < 0) | (y > span)
    t[outside] = np.inf
    return t


def solid_window(rays: Rays, solid: Solid) -> Window | None:
    """Return the rectangle of pixels that a solid can cover, or None."""
    return _window(rays, np.array(solid.corners), np.full(len(solid.corners), 1e-3))


def hit_solid(rays: Rays, solid: Solid, window: Window) -> FloatArray:
    """Compute the depth (h, w) at which the rays of a window enter a solid; inf where they miss.

    A ray hits a plane at 1 / depth = (normal . direction) / gap, which is linear over the image plane.  It enters
    through the last of the planes that the camera is outside of (smallest 1 / depth), and must do so before it leaves
    through the first of the others (largest 1 / depth).
    """
    u, v = rays.u[window[1]][None, :], rays.v[window[0]][:, None]
    shape = (v.shape[0], u.shape[1])
    enter, leave = np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)
    for normal, offset in zip(solid.normals, solid.offsets, strict=True):
        n = np.array(normal)
        gap = float(offset - np.sum(n * rays.origin))
        n = n / (gap if abs(gap) > 1e-9 else 1e-9)
        ahead, across, above = (np.float32(np.sum(n * axis)) for axis in (rays.forward, rays.right, rays.up))
        inverse = (ahead + across * u) + above * v
        if gap < 0:
            np.minimum(enter, inverse, out=enter)
        else:
            np.maximum(leave, inverse, out=leave)
    is_hit = (enter > leave) & (enter < np.inf)
    depth: FloatArray = np.where(is_hit, 1 / np.where(is_hit, enter, np.float32(1)), np.float32(np.inf))
    return depth


def cast(
    rays: Rays, shapes: Sequence[Capsule | Solid], depth: FloatArray, owner: npt.NDArray[np.int16], first: int = 0
) -> None:
    """Draw shapes into a depth map and a map of owners.

    Args:
        rays: Rays in the coordinates of the figure.
        shapes: The shapes of the figure.
        depth: (H, W), changed where a shape is nearer.
        owner: (H, W), set there to the index of the shape plus ``first``.
        first: Index of the first shape.
    """
    for index, shape in enumerate(shapes):
        window = capsule_window(rays, shape) if isinstance(shape, Capsule) else solid_window(rays, shape)
        if window is None:
            continue
        t = hit_capsule(rays, shape, window) if isinstance(shape, Capsule) else hit_solid(rays, shape, window)
        nearer = t < depth[window]
        depth[window][nearer] = t[nearer]
        owner[window][nearer] = first + index
