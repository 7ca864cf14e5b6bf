"""One crop: where the object stands, how the detector cut it out, what stands in the way.

A crop is drawn from its own generator; it knows nothing of files or splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reid.data.street.geometry import CameraView, Capsule, FloatArray, Solid, Vec, look_at
from reid.data.street.materials import SurfaceMaterial
from reid.data.street.people import Person, draw_pose, shapes
from reid.data.street.photometry import develop, draw_moment, encode, light_at
from reid.data.street.random_draws import between, clipped, pick
from reid.data.street.render import Figure, render
from reid.data.street.scenery import background
from reid.data.street.street_cameras import Camera

PERSON_SIZE = (128, 64)
OBSTACLE = SurfaceMaterial((0.12, 0.12, 0.13), 0.1, "metal", (0.5, 0.5, 0.5), 0.4)


@dataclass(frozen=True)
class Passing:
    """One walk of an object past a camera: ``bearing`` (radians), ``distance`` (metres), ``heading``
    (degrees, 0 away from the camera), ``hour`` of the day, ``cloud`` 0..1."""

    bearing: float
    distance: float
    heading: float
    hour: float
    cloud: float


def draw_passing(rng: np.random.Generator, camera: Camera, reach: float = 1.0) -> Passing:
    """A walk past ``camera``; ``reach`` stretches the distance, for larger objects."""
    way = pick(rng, {"usual": 0.62, "back": 0.16, "any": 0.22})
    heading = {"usual": camera.heading, "back": camera.heading + 180.0, "any": 360.0 * float(rng.random())}[way]
    return Passing(
        bearing=clipped(rng, 0.0, 0.2),
        distance=between(rng, *camera.distance) * reach,
        heading=heading + clipped(rng, 0.0, 22.0),
        hour=between(rng, *camera.hours),
        cloud=float(rng.random()) ** 1.5,
    )


def corners(parts: Sequence[Capsule | Solid]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(N, 4): points x, y, z and the radii round them that hold all ``parts``."""
    rows: list[tuple[float, float, float, float]] = []
    for part in parts:
        if isinstance(part, Capsule):
            rows += [(*part.a, part.ra), (*part.b, part.rb)]
        else:
            rows += [(*corner, 0.0) for corner in part.corners]
    return np.array(rows)


def _mixed(first: Vec, much: float, second: Vec, little: float) -> Vec:
    """``much`` of the first vector and ``little`` of the second."""
    return (
        much * first[0] + little * second[0],
        much * first[1] + little * second[1],
        much * first[2] + little * second[2],
    )


def frame(figure: Figure, camera: Camera, aspect: float, jitter: tuple[float, float, float, float]) -> CameraView:
    """The view of ``figure`` that a detector cuts out; ``aspect`` is width by height.

    ``jitter`` holds shifts across and up, a factor on the size and a factor on the width.
    """
    points = corners(figure.shapes)
    cosine, sine = np.cos(figure.yaw), np.sin(figure.yaw)
    x = figure.position[0] + cosine * points[:, 0] - sine * points[:, 1]
    y = figure.position[1] + sine * points[:, 0] + cosine * points[:, 1]
    middle = (float(np.mean(x)), float(np.mean(y)), float((points[:, 2].max() + points[:, 2].min()) / 2))
    origin = (0.0, 0.0, camera.height)
    right, up, forward = look_at(origin, middle)
    cosine, sine = float(np.cos(np.radians(camera.roll))), float(np.sin(np.radians(camera.roll)))
    right, up = _mixed(right, cosine, up, sine), _mixed(up, cosine, right, -sine)
    place = np.stack([x, y, points[:, 2]], axis=1) - np.array(origin)
    depth = np.maximum(place @ np.array(forward), 0.5)
    across, above = (place @ np.array(axis) / depth for axis in (right, up))
    reach = points[:, 3] / depth
    low_u, high_u = (across - reach).min(), (across + reach).max()
    low_v, high_v = (above - reach).min(), (above + reach).max()
    height = max(high_v - low_v, (high_u - low_u) / aspect * 0.95) * jitter[2]
    width = height * aspect * jitter[3]
    u, v = (low_u + high_u) / 2 + jitter[0] * width, (low_v + high_v) / 2 + jitter[1] * height
    window = (float(u - width / 2), float(u + width / 2), float(v - height / 2), float(v + height / 2))
    return CameraView(origin, right, up, forward, window)


def _cut(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Errors of the detector: mostly small, now and then feet or head are cut off."""
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


def _before(place: Vec, nearer: float, aside: float) -> Vec:
    """A point on the ground ``nearer`` metres towards the camera at the origin and ``aside`` metres right."""
    distance = float(np.hypot(place[0], place[1]))
    along = max(0.25, 1.0 - nearer / distance)
    return place[0] * along + place[1] / distance * aside, place[1] * along - place[0] / distance * aside, 0.0


def obstacles(rng: np.random.Generator, place: Vec, half_width: float, passer: Person | None) -> list[Figure]:
    """What stands between the camera and ``place``: a pole, bollard, bench, sign or ``passer``; often nothing."""
    kind = pick(rng, {"": 0.78, "pole": 0.055, "bollard": 0.04, "bench": 0.03, "sign": 0.025, "passer": 0.07})
    aside, nearer = clipped(rng, 0.0, 0.6) * half_width, between(rng, 0.7, 1.8)
    where = _before(place, nearer, aside)
    tone = between(rng, 0.02, 0.45)
    material = replace(OBSTACLE, colour=(tone, tone, tone * between(rng, 0.8, 1.1)), infrared=tone * 0.7)
    turn, thick = 2 * np.pi * float(rng.random()), between(rng, 0.04, 0.085)
    posed = draw_pose(rng, passer.body) if passer is not None else None
    if not kind:
        return []
    if kind == "passer":
        if passer is None or posed is None:
            return []
        edge = half_width * between(rng, 0.75, 1.2) * (1 if aside > 0 else -1)
        return [person_figure(passer, shapes(passer, posed), _before(place, nearer * 0.6, edge), turn)]
    parts: Sequence[Capsule | Solid] = {
        "pole": [Capsule((0, 0, 0), (0, 0, 4.5), thick, thick * 0.8, "stuff")],
        "bollard": [Capsule((0, 0, 0), (0, 0, 0.85), thick * 1.7, thick * 1.5, "stuff")],
        "bench": [Capsule((-0.8, 0, h), (0.8, 0, h), 0.05, 0.05, "stuff") for h in (0.42, 0.6, 0.78)]
        + [Capsule((s, 0, 0), (s, 0, 0.8), 0.045, 0.045, "stuff") for s in (-0.7, 0.7)],
        "sign": [Capsule((0, 0, 0), (0, 0, 2.2), 0.035, 0.035, "stuff"),
                 Capsule((-0.2, 0, 1.0), (0.2, 0, 1.0), 0.26, 0.26, "stuff", flat=(1, 4, 1))],
    }[kind]  # fmt: skip
    if kind in ("bench", "sign"):
        where, turn = _before(place, nearer, aside), clipped(rng, 0.0, 0.4)
    return [Figure(parts, {"stuff": material}, where, turn)]


def person_figure(person: Person, parts: Sequence[Capsule | Solid], position: Vec, yaw: float) -> Figure:
    """A person standing in the world."""
    base = 0.93 * person.body.height / 1.75 * person.body.legs
    return Figure(parts, person.slots(), position, yaw, base, person.top.open_front)


def person_crop(rng: np.random.Generator, person: Person, passer: Person, camera: Camera, passing: Passing) -> bytes:
    """The JPEG of one crop of ``person`` on ``passing``; ``passer`` may walk through the picture."""
    bearing = passing.bearing + clipped(rng, 0.0, 0.05)
    distance = passing.distance * between(rng, 0.9, 1.1)
    place = (distance * float(np.sin(bearing)), distance * float(np.cos(bearing)), 0.0)
    yaw = np.radians(passing.heading + clipped(rng, 0.0, 9.0)) - bearing
    figure = person_figure(person, shapes(person, draw_pose(rng, person.body)), place, yaw)
    return compose(rng, figure, obstacles(rng, place, 0.45, passer), camera, passing, PERSON_SIZE)


def compose(
    rng: np.random.Generator,
    figure: Figure,
    others: list[Figure],
    camera: Camera,
    passing: Passing,
    size: tuple[int, int],
) -> bytes:
    """Cut out, light, photograph and encode one figure and what stands before it."""
    moment = draw_moment(rng, passing.hour)
    native = min(64, int(rng.integers(camera.pixels[0], camera.pixels[1] + 1)))
    if rng.random() < 0.08:
        native = max(20, native // 2)
    small = (max(16, round(size[0] * native / 64)), max(16, round(size[1] * native / 64)))
    view = frame(figure, camera, size[1] / size[0], _cut(rng))
    light = light_at(camera, passing.hour, passing.cloud)
    drawn = render(view, [figure, *others], light, small)
    behind = background(
        view, small, camera.ground, light, [(figure.position, 0.28)] + [(f.position, 0.2) for f in others]
    )
    scene: FloatArray = behind * (1 - drawn.cover) + drawn.light
    return encode(develop(rng, scene, camera, moment), size, camera.quality)
