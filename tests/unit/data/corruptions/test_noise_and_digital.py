"""Noise, contrast, colour and compression against their formulas with the published constants."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
from PIL import Image

from reid.data.corruptions.corruption_types import CORRUPTIONS, SEVERITIES
from reid.data.corruptions.pixel_filters import Pixels

GREY = np.full((200, 200, 3), 0.5)


def corrupted(name: str, pixels: Pixels, severity: int, seed: int = 0) -> Pixels:
    return CORRUPTIONS[name](pixels, severity, np.random.default_rng(seed))


def some_pixels(height: int = 24, width: int = 12) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3)) / 255


@pytest.mark.parametrize(("severity", "std"), list(zip(SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True)))
def test_gaussian_noise_has_the_published_std_at_every_value(severity: int, std: float) -> None:
    for value in (0.2, 0.8):
        noise = corrupted("gaussian_noise", 0 * GREY + value, severity) - value
        assert abs(noise.mean()) < 0.01 * std + 0.005
        assert noise.std() == pytest.approx(std, rel=0.02)
        assert abs(np.corrcoef(noise[:, :, 0].ravel(), noise[:, :, 1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(("severity", "photons"), list(zip(SEVERITIES, (60, 25, 12, 5, 3), strict=True)))
def test_shot_noise_has_the_variance_of_a_count(severity: int, photons: int) -> None:
    for value in (0.1, 0.5):
        found = corrupted("shot_noise", 0 * GREY + value, severity)
        assert found.mean() == pytest.approx(value, rel=0.03)
        assert found.var() == pytest.approx(value / photons, rel=0.05)
        np.testing.assert_allclose(found * photons, np.rint(found * photons), atol=1e-9)


@pytest.mark.parametrize(("severity", "share"), list(zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True)))
def test_impulse_noise_is_black_and_white_in_equal_shares(severity: int, share: float) -> None:
    found = corrupted("impulse_noise", GREY, severity)
    assert np.mean(found == 0) == pytest.approx(share / 2, rel=0.08)
    assert np.mean(found == 1) == pytest.approx(share / 2, rel=0.08)
    assert np.mean(found == 0.5) == pytest.approx(1 - share, rel=0.02)


@pytest.mark.parametrize(("severity", "std"), list(zip(SEVERITIES, (0.15, 0.2, 0.35, 0.45, 0.6), strict=True)))
def test_speckle_noise_grows_with_the_value(severity: int, std: float) -> None:
    assert corrupted("speckle_noise", 0 * GREY, severity).max() == 0
    for value in (0.25, 0.5):
        assert corrupted("speckle_noise", 0 * GREY + value, severity).std() == pytest.approx(std * value, rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_keeps_each_mean_and_scales_the_rest(severity: int) -> None:
    pixels, factor = some_pixels(), (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    found = corrupted("contrast", pixels, severity)
    np.testing.assert_allclose(found.mean((0, 1)), pixels.mean((0, 1)))
    np.testing.assert_allclose(found.std((0, 1)), factor * pixels.std((0, 1)))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_adds_to_the_value_of_each_pixel(severity: int) -> None:
    pixels, summand = some_pixels(), (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    pixels[0, 0] = 0
    found = corrupted("brightness", pixels, severity)
    for before, after in zip(pixels.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb(hue, saturation, min(1, value + summand)), atol=1e-12)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_changes_the_saturation_of_each_pixel(severity: int) -> None:
    pixels, (factor, summand) = some_pixels(), ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = 0, 0.4, 1
    found = corrupted("saturate", pixels, severity)
    for before, after in zip(pixels.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        wanted = colorsys.hsv_to_rgb(hue, min(1, saturation * factor + summand), value)
        np.testing.assert_allclose(after, wanted, atol=1e-12)


@pytest.mark.parametrize(("severity", "quality"), list(zip(SEVERITIES, (25, 18, 15, 10, 7), strict=True)))
def test_jpeg_has_the_published_quality(severity: int, quality: int) -> None:
    pixels, file = some_pixels(), io.BytesIO()
    Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(file, "JPEG", quality=quality)
    assert np.array_equal(corrupted("jpeg_compression", pixels, severity), np.asarray(Image.open(file)) / 255)


@pytest.mark.parametrize(("severity", "share"), list(zip(SEVERITIES, (0.6, 0.5, 0.4, 0.3, 0.25), strict=True)))
def test_pixelate_leaves_a_share_of_the_rows_and_columns(severity: int, share: float) -> None:
    found = corrupted("pixelate", some_pixels(60, 40), severity)
    changes = [1 + np.count_nonzero(np.any(np.diff(found, axis=axis), axis=(1 - axis, 2))) for axis in (0, 1)]
    assert changes == [int(60 * share), int(40 * share)]
    assert found.mean() == pytest.approx(some_pixels(60, 40).mean(), abs=0.03)


def test_pixelate_takes_the_mean_of_whole_blocks() -> None:
    pixels = some_pixels(24, 12)
    blocks = pixels.reshape(12, 2, 6, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)  # severity 2 halves the size
    np.testing.assert_allclose(corrupted("pixelate", pixels, 2), blocks, atol=1.01 / 255)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_transform_moves_pixels_as_far_as_the_constants_say(severity: int) -> None:
    height, width = 100, 80
    slope = np.linspace(0, 1, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    shifts = (corrupted("elastic_transform", slope, severity)[5:-5, 25:-25, 0] - slope[5:-5, 25:-25, 0]) * (width - 1)
    sigma = np.array([0.01 * height, 0.01 * width])
    # A uniform number of +-0.5 % of the height, smoothed by a Gaussian, has this deviation (sampled kernels).
    offsets = np.arange(-9, 10)
    kernels = [np.exp(-(offsets**2) / (2 * s**2)) for s in sigma]
    shrink = np.prod([np.sqrt(np.sum((k / k.sum()) ** 2)) for k in kernels])
    wanted = (12.5, 16.25, 21.25, 25.0, 30.0)[severity - 1] * 0.005 * height / np.sqrt(3) * shrink
    assert shifts.std() == pytest.approx(wanted, rel=0.08)
    assert abs(shifts.mean()) < 0.2 * wanted
