"""Vehicles are a function of their numbers, have all types, look-alikes that differ, and dark glass in infrared."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from PIL import Image

from reid.data.street.crop_rendering import Visit, draw_visit, frame_figure
from reid.data.street.geometry import Solid
from reid.data.street.materials import LUMINANCE, SurfaceMaterial
from reid.data.street.random_draws import generator
from reid.data.street.render import Light, Rendered, render
from reid.data.street.street_cameras import SITES, Camera
from reid.data.street.vehicles import BLOCK, VEHICLE_SIZE, Vehicle, draw_vehicle, render_vehicle_crop, vehicle_figure

CAMERAS = {camera.name: camera for cameras in SITES.values() for camera in cameras}
KINDS = ("hatchback", "saloon", "estate", "suv", "van", "pickup", "truck", "bus")
LONG = ("truck", "bus")  # these have no roof load
DAY, NIGHT = Light(), Light(lamp=1.0)
SMALL = (48, 64)
MARGIN = 1.12
CLEAR = Visit(bearing=0.0, distance=20.0, heading=75.0, hour=12.0, cloud=0.3)


def number(index: int, site: str = "street-a", split: str = "test", seed: int = 0) -> Vehicle:
    return draw_vehicle(seed, site, split, index)


def crop(vehicle: Vehicle, camera: Camera, visit: Visit | None = None) -> bytes:
    """Render a crop with random numbers that depend only on the camera."""
    visit = visit or draw_visit(generator(0, "test", "passing", camera.name), camera, 2.2)
    return render_vehicle_crop(generator(0, "test", "crop", camera.name), vehicle, camera, visit)


def decode(content: bytes) -> np.ndarray:
    """Decode a JPEG to (H, W, 3) in 0..255."""
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.asarray(image).astype(int)


def drawn(vehicle: Vehicle, light: Light = DAY, yaw: float = 0.9) -> Rendered:
    """Render only the vehicle, 14 m in front of a camera, with a detector without errors."""
    figure = vehicle_figure(vehicle, (0.0, 14.0, 0.0), yaw)
    view = frame_figure(figure, CAMERAS["a1"], VEHICLE_SIZE[1] / VEHICLE_SIZE[0], (0.0, 0.0, MARGIN, 1.0))
    return render(view, [figure], light, SMALL, over=1)


@cache
def groups() -> list[list[Vehicle]]:
    """Group neighbours with the same paint; paints are drawn from a continuum, so equal paints are intended."""
    found = []
    for block in range(120):
        neighbours = [number(BLOCK * block + member) for member in range(BLOCK)]
        group = [v for v in neighbours if v.slots["paint"] == neighbours[0].slots["paint"]]
        if len(group) > 1:
            found.append(group)
    return found


def models() -> list[list[Vehicle]]:
    return [group for group in groups() if group[0].build == group[1].build]


def fleets() -> list[list[Vehicle]]:
    return [group for group in groups() if group[0].build != group[1].build]


@pytest.fixture(scope="module")
def crops() -> dict[str, bytes]:
    """Crops of one vehicle by two visible and two infrared cameras."""
    return {name: crop(number(0), CAMERAS[name]) for name in ("a1", "b2", "a5", "b6")}


def test_the_same_vehicle_gives_the_same_bytes_and_another_gives_others(crops: dict[str, bytes]) -> None:
    assert crop(number(0), CAMERAS["a1"]) == crops["a1"]
    assert crop(number(1), CAMERAS["a1"]) != crops["a1"]


def test_crops_are_jpeg_of_one_size(crops: dict[str, bytes]) -> None:
    assert VEHICLE_SIZE == (96, 128)
    assert {decode(content).shape for content in crops.values()} == {(96, 128, 3)}


def test_infrared_is_grey_and_visible_light_is_not(crops: dict[str, bytes]) -> None:
    for name, content in crops.items():
        pixels = decode(content)
        spread = pixels.max(axis=2) - pixels.min(axis=2)
        if CAMERAS[name].infrared:
            assert spread.max() == 0
        else:
            assert spread.mean() > 2
        assert pixels.std() > 8  # the image has some contrast


def test_paint_changes_the_body_and_nothing_else() -> None:
    white = SurfaceMaterial((0.8, 0.8, 0.8), 0.8, "paint")
    black = SurfaceMaterial((0.01, 0.01, 0.01), 0.01, "paint")
    vehicle = next(v for v in map(number, range(60)) if v.build.kind == "hatchback")
    images = [
        decode(crop(replace(vehicle, slots=vehicle.slots | {"paint": m, "roof": m}), CAMERAS["a1"], CLEAR))
        for m in (white, black)
    ]
    brighter = (images[0] - images[1]).mean(axis=2) > 30
    assert 0.1 < brighter.mean() < 0.7
    assert brighter[24:60, 24:104].mean() > 0.5
    assert not brighter[:4].any()
    assert not brighter[-3:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_silhouette_fills_the_frame_and_stays_inside(kind: str) -> None:
    vehicle = next(v for v in map(number, range(200)) if v.build.kind == kind)
    for yaw in (0.3, 1.6):
        cover = drawn(vehicle, yaw=yaw).cover > 0
        assert 0.1 < cover.mean() < 0.9
        rim = [*cover[0], *cover[-1], *cover[:, 0], *cover[:, -1]]
        assert not any(rim)
        rows, columns = np.nonzero(cover)
        reach = max(np.ptp(rows) / SMALL[0], np.ptp(columns) / SMALL[1])
        assert reach > 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_corners_enclose_every_solid(kind: str) -> None:
    """Pixels outside the corners are not drawn, so a solid that reaches beyond them would lose a part."""
    vehicle = next(v for v in map(number, range(200)) if v.build.kind == kind)
    rng, judged = generator(0, "test", "points"), 0
    for solid in vehicle_figure(vehicle, (0.0, 0.0, 0.0), 0.0).shapes:
        if not isinstance(solid, Solid):
            continue
        corners = np.array(solid.corners)
        low, high = corners.min(axis=0) - 0.3, corners.max(axis=0) + 0.3
        points = low + (high - low) * rng.random((4000, 3))
        within = points[(points @ np.array(solid.normals).T <= np.array(solid.offsets)).all(axis=1)]
        assert (within >= corners.min(axis=0) - 1e-6).all()
        assert (within <= corners.max(axis=0) + 1e-6).all()
        judged += len(within) > 0
    assert judged >= 5  # a body and four wheels


def test_every_kind_is_on_the_streets() -> None:
    kinds = [number(index, site).build.kind for site in SITES for index in range(60)]
    assert set(kinds) == set(KINDS)  # none missing, none unknown
    assert max(kinds.count(kind) for kind in KINDS) < 40


def test_measures_fit_the_type() -> None:
    for build in (number(index).build for index in range(200)):
        assert 2 * build.wheel < build.belt < build.height < build.length
        assert 0.21 < build.width / build.length < 0.55
        assert (build.length > 5.9) == (build.kind in LONG) or build.kind == "van"


def test_a_vehicle_does_not_depend_on_other_vehicles() -> None:
    ahead = [number(index) for index in (9, 2, 30)]
    everything = [number(index) for index in range(31)]
    assert ahead == [everything[9], everything[2], everything[30]]


@pytest.mark.parametrize(
    "other",
    [
        lambda index: number(index, seed=1),
        lambda index: number(index, site="street-b"),
        lambda index: number(index, split="train"),
        lambda index: number(index + BLOCK),
    ],
    ids=["seed", "site", "split", "block"],
)
def test_vehicles_of_other_seeds_sites_and_splits_differ(other: Callable[[int], Vehicle]) -> None:
    for index in range(2 * BLOCK):
        here, there = number(index), other(index)
        assert here.build != there.build
        assert here.slots["paint"] != there.slots["paint"]


def test_about_every_third_block_has_look_alikes() -> None:
    assert 12 <= len(fleets()) <= 45
    assert 8 <= len(models()) <= 35
    assert {len(group) for group in groups()} == {2, 3, 4}


def test_a_fleet_shares_kind_paint_and_print_but_not_measures() -> None:
    for group in fleets():
        assert len({v.build.kind for v in group}) == 1
        prints = {tuple(decal.bits for decal in v.trim.decals) for v in group}
        assert len(prints) == 1
        assert prints != {()}
        for first, second in combinations(group, 2):
            assert all(first.slots[slot] == second.slots[slot] for slot in ("paint", "second", "roof", "ink"))
            assert first.build != second.build
            assert first.trim != second.trim


def test_one_model_shares_measures_and_paint_but_not_trim() -> None:
    for group in models():
        assert len({v.build for v in group}) == 1
        for first, second in combinations(group, 2):
            assert all(first.slots[slot] == second.slots[slot] for slot in ("paint", "second", "roof", "ink"))
            assert first.trim != second.trim
            assert first.slots["glass"] != second.slots["glass"]


def test_look_alikes_have_different_roof_loads() -> None:
    judged = 0
    for group in groups():
        loads = [v.trim.roof_load for v in group]
        if group[0].build.kind in LONG:
            assert not any(loads)
        else:
            judged += 1
            assert len(set(loads)) == len(loads)
    assert judged > 10


@pytest.mark.parametrize("kin", [fleets, models])
def test_look_alikes_differ_visibly_by_day_and_in_infrared(kin: Callable[[], list[list[Vehicle]]]) -> None:
    group = max(kin(), key=len)
    assert len(group) == 4
    for light in (DAY, NIGHT):
        for first, second in pairwise([drawn(v, light, yaw=1.4).light for v in group]):
            assert (np.abs(first - second).max(axis=0) > 0.02).mean() > 0.01


def _pixels(vehicle: Vehicle, slot: str) -> np.ndarray:
    """Find the pixels (H, W) that show a material in infrared: those that change with its reflectance."""
    other = replace(vehicle.slots[slot], infrared=vehicle.slots[slot].infrared + 0.5)
    changed = replace(vehicle, slots=vehicle.slots | {slot: other})
    return np.asarray((drawn(vehicle, NIGHT).light != drawn(changed, NIGHT).light)[0])


def test_glass_is_darker_than_light_paint_in_infrared() -> None:
    def brightness(colour: tuple[float, float, float]) -> float:
        return sum(w * c for w, c in zip(LUMINANCE, colour, strict=True))

    light = [v for v in map(number, range(200)) if brightness(v.slots["paint"].colour) > 0.5]
    assert len(light) > 20
    for vehicle in light:
        assert 0 < vehicle.slots["glass"].infrared < 0.5 * vehicle.slots["paint"].infrared
    judged = {v.build.kind: v for v in light if v.build.kind in ("hatchback", "saloon", "van")}
    assert len(judged) == 3
    for vehicle in judged.values():
        glass, paint = _pixels(vehicle, "glass"), _pixels(vehicle, "paint")
        assert glass.sum() > 10
        assert paint.sum() > 150
        night = drawn(vehicle, NIGHT).light[0]
        assert night[glass].mean() < 0.5 * night[paint].mean()
