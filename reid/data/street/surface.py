"""Find position, normal and garment coordinates of every pixel that shows a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.data.street.geometry import Capsule, FloatArray, Rays, Solid

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Surface:
    """N points where rays hit a figure, in the coordinates of the figure.

    Args:
        points: (3, N) metres.
        normals: (3, N) unit vectors.
        towards: (3, N) unit vectors towards the camera.
        along: (N,) metres along the garment.
        angle: (N,) radians round the axis of the shape, 0 at the front.
        shape: (N,) index among the shapes of the figure.
        beyond: (N,) bool, whether the point is beyond the cut of its shape.
    """

    points: FloatArray
    normals: FloatArray
    towards: FloatArray
    along: FloatArray
    angle: FloatArray
    shape: IndexArray
    beyond: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Frames:
    """Coordinate frames of K capsules: origin, scale, axis, front and side (3, K), and numbers (K,)."""

    origin: FloatArray
    scale: FloatArray
    axis: FloatArray
    front: FloatArray
    side: FloatArray
    span: FloatArray
    lean: FloatArray
    length: FloatArray
    offset: FloatArray
    cut: FloatArray


def find_surface(
    rays: Rays,
    shapes: Sequence[Capsule | Solid],
    depth: FloatArray,
    shape: IndexArray,
    pixels: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]],
) -> Surface:
    """Find the surface at N pixels.

    Args:
        rays: Rays in the coordinates of the figure.
        shapes: The shapes of the figure.
        depth: (N,) depth of the pixels.
        shape: (N,) index of the shape that each pixel shows.
        pixels: Rows (N,) and columns (N,).

    Returns:
        The surface.
    """
    directions = rays.directions[:, pixels[0], pixels[1]]
    points = rays.origin.astype(np.float32)[:, None] + directions * depth
    towards = -directions / np.sqrt(np.sum(directions * directions, axis=0))
    count = len(depth)
    normals = np.zeros((3, count), np.float32)
    along, angle = np.zeros(count, np.float32), np.zeros(count, np.float32)
    beyond = np.zeros(count, np.bool_)
    round_shapes = np.array([isinstance(s, Capsule) for s in shapes])
    curved = np.flatnonzero(round_shapes[shape])
    if len(curved):
        result = _curved_surface(shapes, points[:, curved], shape[curved])
        normals[:, curved], along[curved], angle[curved], beyond[curved] = result
    for index in np.flatnonzero(~round_shapes):
        solid = shapes[int(index)]
        where = np.flatnonzero(shape == index)
        if len(where) and isinstance(solid, Solid):
            normals[:, where] = _bevelled_normals(solid, points[:, where])
    return Surface(points, normals, towards, along, angle, shape, beyond)


def _capsule_frames(shapes: Sequence[Capsule | Solid]) -> _Frames:
    blank = Capsule((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 1.0, 1.0, "")
    capsules = [shape if isinstance(shape, Capsule) else blank for shape in shapes]
    origin, scale = np.array([c.a for c in capsules]), np.array([c.flat for c in capsules])
    axis = (np.array([c.b for c in capsules]) - origin) * scale
    square = np.sum(axis * axis, axis=1)
    start, end = np.array([c.ra for c in capsules]), np.array([c.rb for c in capsules])
    unit = axis / np.sqrt(np.maximum(square, 1e-12))[:, None]
    front = np.tile([0.0, 1.0, 0.0], (len(capsules), 1)) - unit * unit[:, 1:2]
    lying = np.sum(front * front, axis=1) < 0.05  # for an axis along y the front is up
    front[lying] = np.array([0.0, 0.0, 1.0]) - unit[lying] * unit[lying, 2:3]
    front /= np.sqrt(np.sum(front * front, axis=1))[:, None]
    side = np.cross(front, unit)
    columns = [values.T.astype(np.float32) for values in (origin, scale, axis, front, side)]
    scalars = (
        np.maximum(square - (start - end) ** 2, 1e-9),
        (start - end) * start,
        np.sqrt(square),
        np.array([c.offset for c in capsules]),
        np.array([c.cut for c in capsules]),
    )
    return _Frames(*columns, *(values.astype(np.float32) for values in scalars))


def _dot(x: FloatArray, y: FloatArray) -> FloatArray:
    """Compute the dot products (N,) of vectors (3, N)."""
    product: FloatArray = x[0] * y[0] + x[1] * y[1] + x[2] * y[2]
    return product


def _curved_surface(
    shapes: Sequence[Capsule | Solid], points: FloatArray, shape: IndexArray
) -> tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Return normals (3, N), along (N,), angle (N,) and beyond (N,) of points (3, N) on the capsules ``shape`` (N,)."""
    frames = _capsule_frames(shapes)
    scale, axis = frames.scale[:, shape], frames.axis[:, shape]
    x = (points - frames.origin[:, shape]) * scale
    fraction = np.clip((_dot(x, axis) - frames.lean[shape]) / frames.span[shape], 0, 1)
    normal = x - axis * fraction
    angle = np.arctan2(_dot(normal, frames.side[:, shape]), _dot(normal, frames.front[:, shape]))
    normal *= scale
    normal /= np.sqrt(_dot(normal, normal)) + np.float32(1e-9)
    along = frames.offset[shape] + fraction * frames.length[shape]
    return normal, along, angle, fraction > frames.cut[shape]


def _bevelled_normals(solid: Solid, points: FloatArray) -> FloatArray:
    """Return normals (3, N) that turn smoothly from face to face within ``rounding`` metres of an edge."""
    normals = np.array(solid.normals, np.float32)
    offsets = np.array(solid.offsets, np.float32)
    gap = offsets[:, None] - sum(normals[:, i : i + 1] * points[i] for i in range(3))
    weight = np.maximum(1 - gap / np.float32(solid.rounding), 0) ** 2 + np.float32(1e-6)
    blended = np.stack([np.sum(weight * normals[:, i : i + 1], axis=0) for i in range(3)])
    return np.asarray(blended / np.sqrt(_dot(blended, blended)), np.float32)
