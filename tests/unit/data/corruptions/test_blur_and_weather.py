"""Blur and weather: the image of a point, the spectrum, mean and direction, against the published formulas."""

from __future__ import annotations

import numpy as np
import pytest

from reid.data.corruptions.blur_corruptions import GLASS, swap_near
from reid.data.corruptions.corruption_types import CORRUPTIONS, SEVERITIES
from reid.data.corruptions.pixel_filters import Pixels, cloud_map, disk_kernel, smear, zoom

POINT = np.zeros((101, 101, 3))
POINT[50, 50] = 1


def corrupted(name: str, pixels: Pixels, severity: int, seed: int = 0) -> Pixels:
    return CORRUPTIONS[name](pixels, severity, np.random.default_rng(seed))


def spread(pixels: Pixels) -> float:
    """The mean squared distance of the light from its centre."""
    light = pixels[:, :, 0] / pixels[:, :, 0].sum()
    rows, columns = np.indices(light.shape)
    return float(sum((light * (axis - (light * axis).sum()) ** 2).sum() for axis in (rows, columns)))


@pytest.mark.parametrize(("severity", "sigma"), list(zip(SEVERITIES, (1, 2, 3, 4, 6), strict=True)))
def test_gaussian_blur_spreads_a_point_by_its_sigma(severity: int, sigma: float) -> None:
    found = corrupted("gaussian_blur", POINT, severity)
    assert found.sum() == pytest.approx(3)
    assert spread(found) == pytest.approx(2 * sigma**2, rel=0.02)
    steps = np.arange(101) - 50
    wanted = np.exp(-(steps**2) / (2 * sigma**2)) / (np.sqrt(2 * np.pi) * sigma)
    np.testing.assert_allclose(found[50, :, 0], wanted * wanted[50], atol=2e-4)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_makes_a_disk_of_a_point(severity: int) -> None:
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    found = corrupted("defocus_blur", POINT, severity)[:, :, 0]
    rows, columns = np.indices(found.shape) - 50
    distance = np.hypot(rows, columns)
    assert found.sum() == pytest.approx(1)
    area = np.count_nonzero(distance <= radius)
    np.testing.assert_allclose(found[distance < radius - 2.9], 1 / area, rtol=1e-6)
    assert np.abs(found[distance > radius + 3]).max() < 1e-12
    np.testing.assert_allclose(disk_kernel(radius, alias).sum(), 1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_draws_a_line_with_the_published_weights(severity: int) -> None:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    steps = np.arange(2 * radius + 1)
    wanted = np.exp(-(steps**2) / (2 * sigma**2))
    wanted /= wanted.sum()
    for angle, step in ((0, (0, -1)), (90, (-1, 0)), (-90, (1, 0))):
        found = smear(POINT, radius, sigma, angle)[:, :, 0]
        line = [found[50 + step[0] * i, 50 + step[1] * i] for i in steps]
        np.testing.assert_allclose(line, wanted)
        assert found.sum() == pytest.approx(1)
    assert corrupted("motion_blur", POINT, severity).sum() == pytest.approx(3)
    assert corrupted("motion_blur", POINT, severity, 1).tobytes() != corrupted("motion_blur", POINT, severity).tobytes()


def test_zoom_is_the_interpolation_of_the_middle() -> None:
    slope = np.add.outer(np.arange(11.0), 10 * np.arange(21.0))[:, :, None]
    found = zoom(slope, 2)[:, :, 0]
    rows, columns = 5 + (np.arange(11) - 5) / 2, 10 + (np.arange(21) - 10) / 2
    np.testing.assert_allclose(found, np.add.outer(rows, 10 * columns))


@pytest.mark.parametrize(("severity", "count"), list(zip(SEVERITIES, (12, 16, 11, 13, 11), strict=True)))
def test_zoom_blur_averages_the_image_and_its_enlargements(severity: int, count: int) -> None:
    end = (1.11, 1.16, 1.21, 1.26, 1.31)[severity - 1]
    step = (0.01, 0.01, 0.02, 0.02, 0.03)[severity - 1]
    factors = np.arange(1, end, step).tolist()  # the published factors; a rounding decides about the last one
    assert len(factors) == count
    pixels = np.random.default_rng(0).random((31, 17, 3))
    wanted = (pixels + sum(zoom(pixels, factor) for factor in factors)) / (count + 1)
    np.testing.assert_allclose(corrupted("zoom_blur", pixels, severity), wanted)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_swaps_every_pixel_within_its_reach(severity: int) -> None:
    _, reach, rounds = GLASS[severity - 1]
    height, width = 40, 30
    order = swap_near(height, width, reach, rounds, np.random.default_rng(0))
    assert sorted(order) == list(range(height * width))
    rows, columns = np.divmod(np.arange(height * width), width)
    moved = np.hypot(rows[order] - rows, columns[order] - columns)
    assert 0 < np.mean(moved > 0) <= 1
    random, plain = np.random.default_rng(0), list(range(height * width))
    for _ in range(rounds):  # the published loops, with the same draws
        moves = random.integers(-reach, reach, (2, height - 2 * reach, width - 2 * reach))
        for i, row in enumerate(range(height - reach, reach, -1)):
            for j, column in enumerate(range(width - reach, reach, -1)):
                one = row * width + column
                other = min(max(row + moves[0, i, j], 0), height - 1) * width
                other += min(max(column + moves[1, i, j], 0), width - 1)
                plain[one], plain[other] = plain[other], plain[one]
    assert order.tolist() == plain


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "glass_blur", "zoom_blur"])
def test_blur_lowers_high_frequencies_and_keeps_the_mean(name: str) -> None:
    pixels = np.random.default_rng(0).random((96, 64, 3))

    def high(values: Pixels) -> float:
        return float((np.abs(np.fft.fft2(values[:, :, 0]))[24:72, 16:48] ** 2).sum())

    energies = [high(pixels), *(high(corrupted(name, pixels, severity)) for severity in SEVERITIES)]
    assert energies[1] < 0.3 * energies[0]
    assert energies[5] < energies[1]
    for severity in SEVERITIES:
        assert corrupted(name, pixels, severity).mean() == pytest.approx(pixels.mean(), abs=0.01)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_adds_a_map_and_rescales(severity: int) -> None:
    strength, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    pixels = np.random.default_rng(0).random((50, 30, 3))
    fog = cloud_map(50, 30, decay, np.random.default_rng(7))
    wanted = (pixels + strength * fog) * pixels.max() / (pixels.max() + strength)
    np.testing.assert_allclose(corrupted("fog", pixels, severity, 7), wanted)


def test_a_cloud_map_is_rougher_where_displacements_fall_slowly() -> None:
    maps = {decay: cloud_map(128, 128, decay, np.random.default_rng(0))[:, :, 0] for decay in (1.4, 2.0, 3.0)}
    roughness = [np.abs(np.diff(maps[decay], axis=0)).mean() / maps[decay].std() for decay in (1.4, 2.0, 3.0)]
    assert roughness == sorted(roughness, reverse=True)
    for table in maps.values():
        assert (table.min(), table.max()) == (0, 1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_whitens_and_is_the_same_upside_down(severity: int) -> None:
    pixels = np.full((64, 32, 3), 0.3)
    share = (0.8, 0.7, 0.7, 0.65, 0.55)[severity - 1]
    whitened = share * 0.3 + (1 - share) * (0.3 * 1.5 + 0.5)
    flakes = corrupted("snow", pixels, severity) - whitened
    assert flakes.min() >= -1e-12
    np.testing.assert_allclose(flakes, np.rot90(flakes, 2), atol=1e-12)
    assert flakes.mean() > 0.02


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_mixes_the_published_shares(severity: int) -> None:
    share, of_ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    black, white = (corrupted("frost", np.full((64, 32, 3), value), severity) for value in (0.0, 1.0))
    np.testing.assert_allclose(white - black, share)
    assert 0.25 * of_ice < black.mean() < 0.75 * of_ice
    assert np.all(black[:, :, 0] <= black[:, :, 2])  # ice is bluish


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_only_adds_light(severity: int) -> None:
    pixels = np.full((96, 64, 3), 0.2)
    added = corrupted("spatter", pixels, severity) - pixels
    assert added.min() > -1e-12
    assert added.max() == pytest.approx((0.6, 0.6, 0.5)[severity - 1] * 238 / 255)
    assert 0.02 < np.mean(added[:, :, 0] > 0.01) < 0.6


@pytest.mark.parametrize("severity", [4, 5])
def test_mud_covers_with_its_colour(severity: int) -> None:
    found = corrupted("spatter", np.ones((96, 64, 3)), severity)
    covered = found[:, :, 0] < 0.999
    assert 0.02 < covered.mean() < 0.6
    share = (1 - found[covered][:, :1]) / (1 - 63 / 255)
    np.testing.assert_allclose(1 - found[covered], share * (1 - np.array([63, 42, 20]) / 255))
    assert share.min() >= 0.8


@pytest.mark.parametrize("severity", SEVERITIES)
def test_rain_darkens_blurs_and_draws_drops(severity: int) -> None:
    darker = 0.05 + 0.05 * severity
    found = corrupted("rain", np.full((128, 64, 3), 0.4), severity)
    assert found.min() == pytest.approx(0.4 - darker)
    assert found.max() <= 200 / 255 - darker + 1e-12
    drops = np.count_nonzero(found[:, :, 0] > 0.4 - darker + 1e-9)
    assert 0 < drops < 0.75 * found[:, :, 0].size
