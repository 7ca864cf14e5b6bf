"""Styles of cameras are the moments of all pixels, and transferred crops have exactly those of the target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reid.errors import DataError
from reid.generation.camera_style import CameraStyle, measure_style, style_distance, transfer_moments
from reid.norm.specialised.style import adain, gram, whiten_and_colour


def crops_of_camera(count: int, seed: int, offset: float = 0.0) -> Tensor:
    """Crops (count, 3, 6, 4) float64 whose means differ from crop to crop."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, 3, 6, 4, generator=generator, dtype=torch.float64)
    mixing = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    clothes = 2 * torch.randn(count, 3, 1, 1, generator=generator, dtype=torch.float64)
    return torch.einsum("ij,bjhw->bihw", mixing, base) + clothes + offset


def pixels_of(crops: Tensor) -> Tensor:
    """All pixels of all crops, (3, N), one after the other."""
    return torch.stack([crop[:, row, column] for crop in crops for row in range(6) for column in range(4)], 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 999), st.integers(1, 4))
def test_the_moments_are_those_of_all_pixels(count: int, seed: int, chunk: int) -> None:
    crops = crops_of_camera(count, seed)
    style = measure_style(torch.split(crops, chunk))
    pixels = pixels_of(crops)
    assert style.crops == count
    np.testing.assert_allclose(style.mean, pixels.mean(1), atol=1e-12)
    np.testing.assert_allclose(style.covariance, torch.cov(pixels, correction=0), atol=1e-10)


def test_every_crop_counts_the_same_whatever_its_size() -> None:
    small, large = crops_of_camera(1, 0), crops_of_camera(1, 1).repeat(1, 1, 5, 5)
    style = measure_style([small, large])
    expected = (small.mean((0, 2, 3)) + large.mean((0, 2, 3))) / 2
    np.testing.assert_allclose(style.mean, expected, atol=1e-12)


def test_a_style_needs_two_crops() -> None:
    with pytest.raises(DataError):
        measure_style([torch.zeros(1, 3, 4, 4)])


def test_a_map_stands_for_a_style() -> None:
    crops = crops_of_camera(6, 3)
    style = measure_style([crops])
    found = style.as_map()
    np.testing.assert_allclose(found.mean((0, 2, 3)), style.mean, atol=1e-12)
    np.testing.assert_allclose(torch.cov(found[0, :, 0], correction=0), style.within, atol=1e-12)
    np.testing.assert_allclose(gram(found)[0], style.within + style.mean[:, None] * style.mean, atol=1e-11)
    other = crops_of_camera(2, 4)
    for changed in (adain(other, found.expand(2, -1, -1, -1)), whiten_and_colour(other, found)):
        np.testing.assert_allclose(changed.mean((2, 3)), style.mean.expand(2, -1), atol=1e-9)
        np.testing.assert_allclose(changed.var((2, 3), correction=0), style.within.diagonal().expand(2, -1), rtol=1e-4)
    coloured = whiten_and_colour(other, found)
    np.testing.assert_allclose(torch.cov(coloured[0].flatten(1), correction=0), style.within, atol=1e-9)


# --- transfer of moments --------------------------------------------------------------------------


def slow_transfer(crops: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """One channel and one pixel after the other, from the pixels of both cameras."""
    result = crops.clone()
    for channel in range(3):
        before, wanted = pixels_of(source)[channel].numpy(), pixels_of(target)[channel].numpy()
        for position in np.ndindex(len(crops), 6, 4):
            index = (position[0], channel, *position[1:])
            result[index] = (float(crops[index]) - before.mean()) / before.std() * wanted.std() + wanted.mean()
    return result


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 999))
def test_restyled_crops_have_exactly_the_moments_of_the_target(count: int, others: int, seed: int) -> None:
    source, target = crops_of_camera(count, seed), crops_of_camera(others, seed + 1, offset=7.0)
    moved = transfer_moments(source, measure_style([source]), measure_style([target]))
    np.testing.assert_allclose(moved, slow_transfer(source, source, target), atol=1e-8)
    found, wanted = measure_style([moved]), measure_style([target])
    np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance.diagonal(), wanted.covariance.diagonal(), rtol=1e-8)


def test_a_transfer_of_single_crops_is_another_thing() -> None:
    """The wrong way: each crop gets the moments of the target, so all coats get the same brightness."""
    source, target = crops_of_camera(6, 1), crops_of_camera(6, 2, offset=7.0)
    wanted = measure_style([target])
    moved = transfer_moments(source, measure_style([source]), wanted)
    single = adain(source, wanted.as_map().expand(6, -1, -1, -1))
    assert float(single.mean((2, 3)).std(0).max()) < 1e-9
    assert float(moved.mean((2, 3)).std(0).min()) > 0.1
    variance = measure_style([single]).covariance.diagonal()
    assert float((variance / wanted.covariance.diagonal()).max()) < 0.9  # what varies between crops is lost


def test_the_order_of_brightness_stays() -> None:
    source, target = crops_of_camera(5, 1), crops_of_camera(5, 2)
    moved = transfer_moments(source, measure_style([source]), measure_style([target]))
    before, after = source.mean((2, 3)), moved.mean((2, 3))
    assert torch.equal(before.argsort(0), after.argsort(0))


def test_the_way_there_and_back_is_the_identity() -> None:
    crops, target = crops_of_camera(4, 1), measure_style([crops_of_camera(4, 2)])
    style = measure_style([crops])
    back = transfer_moments(transfer_moments(crops, style, target), target, style)
    np.testing.assert_allclose(back, crops, atol=1e-9)


def test_a_channel_without_variance_gets_the_mean_of_the_target() -> None:
    crops = crops_of_camera(3, 1)
    crops[:, 1] = 5.0
    target = measure_style([crops_of_camera(3, 2)])
    moved = transfer_moments(crops, measure_style([crops]), target)
    assert bool(moved.isfinite().all())
    np.testing.assert_allclose(moved[:, 1], target.mean[1].expand(3, 6, 4), atol=1e-12)


# --- distance -------------------------------------------------------------------------------------


def test_the_distance_is_zero_exactly_for_the_moments_of_the_style() -> None:
    style = measure_style([crops_of_camera(4, 1)])
    same = adain(crops_of_camera(2, 2), style.as_map().expand(2, -1, -1, -1), eps=1e-12)
    assert float(style_distance(same, style).max()) < 1e-9
    shifted = style_distance(same + style.deviation[:, None, None], style)
    np.testing.assert_allclose(shifted, torch.ones(2), atol=1e-6)  # one deviation in every channel
    assert isinstance(style, CameraStyle)
