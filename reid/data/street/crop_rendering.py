"""Render one crop: where the object stands, how a detector cuts it out, and what stands in front of it.

Every crop has a random generator of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reid.data.street.geometry import CameraView, Capsule, FloatArray, Solid, Vec, look_at
from reid.data.street.materials import SurfaceMaterial
from reid.data.street.people import Person, draw_pose, person_shapes
from reid.data.street.photometry import compute_light, develop, draw_moment, encode
from reid.data.street.random_draws import between, clipped, pick
from reid.data.street.render import Figure, render
from reid.data.street.scenery import render_background
from reid.data.street.street_cameras import Camera

PERSON_SIZE = (128, 64)
OBSTACLE = SurfaceMaterial((0.12, 0.12, 0.13), 0.1, "metal", (0.5, 0.5, 0.5), 0.4)


@dataclass(frozen=True)
class Visit:
    """One visit of an object to a camera, of which there are several crops.

    Args:
        bearing: Direction of the object from the camera, in radians.
        distance: Distance from the camera, in metres.
        heading: Direction in which the object moves, in degrees; 0 is away from the camera.
        hour: Hour of the day.
        cloud: Cloudiness, 0..1.
    """

    bearing: float
    distance: float
    heading: float
    hour: float
    cloud: float


def draw_visit(rng: np.random.Generator, camera: Camera, reach: float = 1.0) -> Visit:
    """Draw a visit to a camera; ``reach`` multiplies the distance, for larger objects."""
    way = pick(rng, {"usual": 0.62, "back": 0.16, "any": 0.22})
    heading = {"usual": camera.heading, "back": camera.heading + 180.0, "any": 360.0 * float(rng.random())}[way]
    return Visit(
        bearing=clipped(rng, 0.0, 0.2),
        distance=between(rng, *camera.distance) * reach,
        heading=heading + clipped(rng, 0.0, 22.0),
        hour=between(rng, *camera.hours),
        cloud=float(rng.random()) ** 1.5,
    )


def corner_points(parts: Sequence[Capsule | Solid]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return points x, y, z and radii (N, 4) of balls that enclose all parts."""
    rows: list[tuple[float, float, float, float]] = []
    for part in parts:
        if isinstance(part, Capsule):
            rows += [(*part.a, part.ra), (*part.b, part.rb)]
        else:
            rows += [(*corner, 0.0) for corner in part.corners]
    return np.array(rows)


def _combine(first: Vec, much: float, second: Vec, little: float) -> Vec:
    """Add two vectors with the weights ``much`` and ``little``."""
    return (
        much * first[0] + little * second[0],
        much * first[1] + little * second[1],
        much * first[2] + little * second[2],
    )


def frame_figure(
    figure: Figure, camera: Camera, aspect: float, jitter: tuple[float, float, float, float]
) -> CameraView:
    """Point a camera at a figure and cut it out as a detector does.

    Args:
        figure: The figure.
        camera: The camera.
        aspect: Width of the crop by its height.
        jitter: The errors of the detector: shifts across and up, a factor for the size and a factor for the width.

    Returns:
        The view that the crop shows.
    """
    points = corner_points(figure.shapes)
    cosine, sine = np.cos(figure.yaw), np.sin(figure.yaw)
    x = figure.position[0] + cosine * points[:, 0] - sine * points[:, 1]
    y = figure.position[1] + sine * points[:, 0] + cosine * points[:, 1]
    middle = (float(np.mean(x)), float(np.mean(y)), float((points[:, 2].max() + points[:, 2].min()) / 2))
    origin = (0.0, 0.0, camera.height)
    right, up, forward = look_at(origin, middle)
    cosine, sine = float(np.cos(np.radians(camera.roll))), float(np.sin(np.radians(camera.roll)))
    right, up = _combine(right, cosine, up, sine), _combine(up, cosine, right, -sine)
    relative = np.stack([x, y, points[:, 2]], axis=1) - np.array(origin)
    depth = np.maximum(relative @ np.array(forward), 0.5)
    across, above = (relative @ np.array(axis) / depth for axis in (right, up))
    reach = points[:, 3] / depth
    low_u, high_u = (across - reach).min(), (across + reach).max()
    low_v, high_v = (above - reach).min(), (above + reach).max()
    height = max(high_v - low_v, (high_u - low_u) / aspect * 0.95) * jitter[2]
    width = height * aspect * jitter[3]
    u, v = (low_u + high_u) / 2 + jitter[0] * width, (low_v + high_v) / 2 + jitter[1] * height
    window = (float(u - width / 2), float(u + width / 2), float(v - height / 2), float(v + height / 2))
    return CameraView(origin, right, up, forward, window)


def _draw_detector_errors(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw the errors of a detector: mostly small ones, but sometimes feet or head are cut off."""
    across, above = clipped(rng, 0.0, 0.05), clipped(rng, 0.0, 0.018)
    size, wide = 1.06 * float(np.exp(clipped(rng, 0.0, 0.05))), float(np.exp(clipped(rng, 0.0, 0.06)))
    fault = pick(rng, {"": 0.87, "feet": 0.07, "head": 0.025, "loose": 0.035})
    if fault == "feet":
        above, size = above + 0.11, size * 0.8
    elif fault == "head":
        above, size = above - 0.06, size * 0.9
    elif fault == "loose":
        size *= 1.25
    return across, above, size, wide


def _point_in_front(position: Vec, nearer: float, aside: float) -> Vec:
    """Return a point on the ground, ``nearer`` metres closer to the camera at the origin and ``aside`` metres right."""
    distance = float(np.hypot(position[0], position[1]))
    along = max(0.25, 1.0 - nearer / distance)
    return (
        position[0] * along + position[1] / distance * aside,
        position[1] * along - position[0] / distance * aside,
        0.0,
    )


def draw_obstacles(
    rng: np.random.Generator, position: Vec, half_width: float, bystander: Person | None
) -> list[Figure]:
    """Draw what stands in front of a position: a pole, bollard, bench, sign or bystander, and mostly nothing."""
    kind = pick(rng, {"": 0.78, "pole": 0.055, "bollard": 0.04, "bench": 0.03, "sign": 0.025, "bystander": 0.07})
    aside, nearer = clipped(rng, 0.0, 0.6) * half_width, between(rng, 0.7, 1.8)
    where = _point_in_front(position, nearer, aside)
    tone = between(rng, 0.02, 0.45)
    material = replace(OBSTACLE, colour=(tone, tone, tone * between(rng, 0.8, 1.1)), infrared=tone * 0.7)
    turn, thick = 2 * np.pi * float(rng.random()), between(rng, 0.04, 0.085)
    posed = draw_pose(rng, bystander.body) if bystander is not None else None
    if not kind:
        return []
    if kind == "bystander":
        if bystander is None or posed is None:
            return []
        edge = half_width * between(rng, 0.75, 1.2) * (1 if aside > 0 else -1)
        return [
            person_figure(
                bystander, person_shapes(bystander, posed), _point_in_front(position, nearer * 0.6, edge), turn
            )
        ]
    parts: Sequence[Capsule | Solid] = {
        "pole": [Capsule((0, 0, 0), (0, 0, 4.5), thick, thick * 0.8, "stuff")],
        "bollard": [Capsule((0, 0, 0), (0, 0, 0.85), thick * 1.7, thick * 1.5, "stuff")],
        "bench": [Capsule((-0.8, 0, h), (0.8, 0, h), 0.05, 0.05, "stuff") for h in (0.42, 0.6, 0.78)]
        + [Capsule((s, 0, 0), (s, 0, 0.8), 0.045, 0.045, "stuff") for s in (-0.7, 0.7)],
        "sign": [Capsule((0, 0, 0), (0, 0, 2.2), 0.035, 0.035, "stuff"),
                 Capsule((-0.2, 0, 1.0), (0.2, 0, 1.0), 0.26, 0.26, "stuff", flat=(1, 4, 1))],
    }[kind]  # fmt: skip
    if kind in ("bench", "sign"):
        where, turn = _point_in_front(position, nearer, aside), clipped(rng, 0.0, 0.4)
    return [Figure(parts, {"stuff": material}, where, turn)]


def person_figure(person: Person, parts: Sequence[Capsule | Solid], position: Vec, yaw: float) -> Figure:
    """Place a person in the world."""
    base = 0.93 * person.body.height / 1.75 * person.body.legs
    return Figure(parts, person.slots(), position, yaw, base, person.top.open_front)


def render_person_crop(
    rng: np.random.Generator, person: Person, bystander: Person, camera: Camera, visit: Visit
) -> bytes:
    """Render one crop of a person as JPEG; the bystander may stand in front."""
    bearing = visit.bearing + clipped(rng, 0.0, 0.05)
    distance = visit.distance * between(rng, 0.9, 1.1)
    position = (distance * float(np.sin(bearing)), distance * float(np.cos(bearing)), 0.0)
    yaw = np.radians(visit.heading + clipped(rng, 0.0, 9.0)) - bearing
    figure = person_figure(person, person_shapes(person, draw_pose(rng, person.body)), position, yaw)
    return compose(rng, figure, draw_obstacles(rng, position, 0.45, bystander), camera, visit, PERSON_SIZE)


def compose(
    rng: np.random.Generator,
    figure: Figure,
    others: list[Figure],
    camera: Camera,
    visit: Visit,
    size: tuple[int, int],
) -> bytes:
    """Cut out, light, photograph and encode a figure and what stands in front of it.

    Args:
        rng: The generator of the crop.
        figure: The person or vehicle.
        others: What stands in front of it or on the ground beside it.
        camera: The camera.
        visit: Gives the hour and the clouds.
        size: Height and width of the crop.

    Returns:
        The crop as JPEG.
    """
    moment = draw_moment(rng, visit.hour)
    native = min(64, int(rng.integers(camera.pixels[0], camera.pixels[1] + 1)))
    if rng.random() < 0.08:
        native = max(20, native // 2)
    small = (max(16, round(size[0] * native / 64)), max(16, round(size[1] * native / 64)))
    view = frame_figure(figure, camera, size[1] / size[0], _draw_detector_errors(rng))
    light = compute_light(camera, visit.hour, visit.cloud)
    drawn = render(view, [figure, *others], light, small)
    behind = render_background(
        view, small, camera.ground, light, [(figure.position, 0.28)] + [(f.position, 0.2) for f in others]
    )
    scene: FloatArray = behind * (1 - drawn.cover) + drawn.light
    return encode(develop(rng, scene, camera, moment), size, camera.quality)
