"""Closed-form intersections agree with a slow method that only computes distances and steps along the ray."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reid.data.street.geometry import CameraView, Capsule, Rays, cast_rays, hit_capsule, look_at
from reid.data.street.surface import find_surface

SIZE = 9


def distance_to(capsule: Capsule, point: np.ndarray) -> float:
    """Compute the signed distance from a point to the hull of two balls, the least |p - c(s)| - r(s), by search."""
    a, b = np.array(capsule.a), np.array(capsule.b)

    def at(s: float) -> float:
        return float(np.linalg.norm(point - (a + s * (b - a)))) - (capsule.ra + s * (capsule.rb - capsule.ra))

    low, high = 0.0, 1.0  # the function is convex in s
    for _ in range(44):
        third = (high - low) / 3
        if at(low + third) < at(high - third):
            high -= third
        else:
            low += third
    return min(at(0.0), at(1.0), at((low + high) / 2))


def trace(capsule: Capsule, origin: np.ndarray, direction: np.ndarray) -> tuple[float, float]:
    """Find the first hit of a ray (inf for none) and the least distance to it by sphere tracing."""
    speed = float(np.linalg.norm(direction))
    t, nearest = 0.0, math.inf
    for _ in range(400):
        gap = distance_to(capsule, origin + t * direction)
        nearest = min(nearest, gap)
        if gap < 1e-7:
            return t, nearest
        t += gap / speed
        if t > 60:
            break
    return math.inf, nearest


def random_case(number: int) -> tuple[Capsule, Rays]:
    rng = np.random.default_rng(number)
    a = rng.uniform(-0.3, 0.3, 3)
    b = a + rng.uniform(-0.6, 0.6, 3)
    capsule = Capsule(tuple(a), tuple(b), float(rng.uniform(0.03, 0.3)), float(rng.uniform(0.03, 0.3)), "stuff")
    origin = (float(rng.uniform(-3, 3)), -float(rng.uniform(3, 15)), float(rng.uniform(-1, 6)))
    right, up, forward = look_at(origin, tuple(rng.uniform(-0.2, 0.2, 3)))
    reach = 0.45 / abs(origin[1])
    view = CameraView(origin, right, up, forward, (-reach, reach, -reach, reach))
    position = (float(rng.uniform(-0.1, 0.1)), 0.0, 0.0)
    return capsule, cast_rays(view, SIZE, SIZE, position, float(rng.uniform(-3, 3)))


@pytest.mark.parametrize("number", range(8))
def test_capsule_depth_agrees_with_sphere_tracing(number: int) -> None:
    capsule, rays = random_case(number)
    depth = hit_capsule(rays, capsule, (slice(0, SIZE), slice(0, SIZE)))
    judged = 0
    for row in range(SIZE):
        for column in range(SIZE):
            wanted, nearest = trace(capsule, rays.origin, rays.directions[:, row, column].astype(np.float64))
            rim = _grazing(capsule, rays, row, column) if math.isfinite(wanted) else nearest < 1e-4
            if rim:
                continue  # at the rim both answers are right
            judged += 1
            if math.isinf(wanted):
                assert np.isinf(depth[row, column])
            else:
                assert depth[row, column] == pytest.approx(wanted, abs=1e-3)
    assert judged > SIZE * SIZE * 0.8


def _grazing(capsule: Capsule, rays: Rays, row: int, column: int) -> bool:
    thinner = Capsule(capsule.a, capsule.b, capsule.ra - 1e-3, capsule.rb - 1e-3, "stuff")
    return math.isinf(trace(thinner, rays.origin, rays.directions[:, row, column].astype(np.float64))[0])


def test_cases_hold_both_hits_and_misses() -> None:
    depths = [
        hit_capsule(rays, capsule, (slice(0, SIZE), slice(0, SIZE))) for capsule, rays in map(random_case, range(8))
    ]
    share = float(np.mean([np.isfinite(depth).mean() for depth in depths]))
    assert 0.1 < share < 0.9


@pytest.mark.parametrize("number", range(6))
def test_normal_is_the_gradient_of_the_distance(number: int) -> None:
    capsule, rays = random_case(number)
    depth = hit_capsule(rays, capsule, (slice(0, SIZE), slice(0, SIZE)))
    pixels = np.nonzero(np.isfinite(depth))
    found = find_surface(rays, [capsule], depth[pixels], np.zeros(len(pixels[0]), np.int64), pixels)
    assert len(pixels[0]) > 0
    for point, normal in zip(found.points.T.astype(np.float64), found.normals.T, strict=True):
        steps = np.eye(3) * 1e-5
        slope = [(distance_to(capsule, point + step) - distance_to(capsule, point - step)) / 2e-5 for step in steps]
        assert np.allclose(normal, slope, atol=2e-2)


def test_flattened_capsule_is_thinner_by_its_factor() -> None:
    view = CameraView(
        (0.0, -10.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-0.001, 0.001, -0.001, 0.001)
    )
    whole = Capsule((0, 0, -0.2), (0, 0, 0.2), 0.3, 0.3, "stuff")
    flat = Capsule((0, 0, -0.2), (0, 0, 0.2), 0.3, 0.3, "stuff", flat=(1, 2, 1))
    window = (slice(0, 1), slice(0, 1))
    rays = cast_rays(view, 1, 1)
    assert hit_capsule(rays, whole, window)[0, 0] == pytest.approx(9.7, abs=1e-4)
    assert hit_capsule(rays, flat, window)[0, 0] == pytest.approx(9.85, abs=1e-4)
