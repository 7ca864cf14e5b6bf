"""Instance norm and functions of style against loops over images and channels (T14).

Catches statistics over the batch instead of the image, unbiased variance on one side, a Gram matrix divided by the
channels too, an identity matrix added to the covariance before whitening, statistics in half precision.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from helpers.styled_maps import CHANNELS, loop_oracle, maps, moments_of
from reid.errors import DataError
from reid.norm.specialised.style import (
    adain,
    gram,
    instance_norm,
    whiten_and_colour,
)


@settings(deadline=None, max_examples=30)
@hypothesis_given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(2, 6))
def test_instance_norm_is_the_loop_and_torchs(images: int, channels: int, height: int, width: int) -> None:
    x = maps(images, channels, (height, width))
    scale, shift = torch.randn(images, channels), torch.randn(images, channels)
    torch.testing.assert_close(instance_norm(x, scale, shift), loop_oracle(x, scale, shift), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        instance_norm(x, scale[0], shift[0]),
        functional.instance_norm(x, weight=scale[0], bias=shift[0]),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("wrong", ["batch", "unbiased"])
def test_the_loop_refuses_wrong_instance_norms(wrong: str) -> None:
    x = maps()
    axes, correction = {"batch": ((0, 2, 3), 0), "unbiased": ((2, 3), 1)}[wrong]
    var, mean = torch.var_mean(x, axes, correction=correction, keepdim=True)
    ones = torch.ones(x.shape[:2])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            (x - mean) * torch.rsqrt(var + 1e-5), loop_oracle(x, ones, 0 * ones), rtol=1e-3, atol=1e-3
        )


def test_instance_norm_has_the_gradient_of_finite_differences() -> None:
    x = maps(2, 3, (2, 3)).double().requires_grad_(True)
    scale, shift = torch.randn(2, 2, 3, dtype=torch.float64).requires_grad_(True).unbind(0)
    assert torch.autograd.gradcheck(instance_norm, (x, scale, shift))


def test_half_precision_keeps_statistics_in_float32() -> None:
    """In float16 the squares of values above 255 overflow."""
    x = maps() * 200
    half = instance_norm(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), instance_norm(x.half().float()), rtol=2e-3, atol=2e-3)
    assert x.half().square().isinf().any()


def test_a_map_of_one_position_is_refused() -> None:
    with pytest.raises(DataError, match="2 positions"):
        instance_norm(torch.randn(3, CHANNELS, 1, 1))


@pytest.mark.parametrize("rows", [1, 4])
def test_adain_has_the_moments_of_the_style(rows: int) -> None:
    content, style = maps(), maps(rows, size=(7, 9), seed=3)
    mean, deviation = moments_of(adain(content, style))
    wanted_mean, wanted_deviation = moments_of(style)
    torch.testing.assert_close(mean, wanted_mean.expand_as(mean), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deviation, wanted_deviation.expand_as(deviation), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adain(content, content), content, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adain(content, style, 0.5), (content + adain(content, style)) / 2, rtol=1e-5, atol=1e-5)


def test_unbiased_deviations_miss_the_style() -> None:
    """The moments of the two map sizes then differ by about 1 / (2 H W)."""
    content, style = maps(), maps(size=(7, 9), seed=3)
    var, mean = torch.var_mean(style, (2, 3), correction=1)
    wrong = instance_norm(content, var.sqrt(), mean)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(moments_of(wrong)[1], moments_of(style)[1], rtol=1e-4, atol=1e-5)


def test_adain_refuses_maps_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="6 channels and 1 or 4 images"):
        adain(maps(), maps(3))
    with pytest.raises(DataError, match=r"got \(4, 5, 5, 3\)"):
        whiten_and_colour(maps(), maps(channels=5))


def test_gram_is_the_sum_over_positions() -> None:
    x = maps()
    expected = torch.zeros(4, CHANNELS, CHANNELS)
    for i in range(5):
        for j in range(3):
            expected += x[:, :, i, j, None] * x[:, None, :, i, j] / 15
    torch.testing.assert_close(gram(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gram(x) / CHANNELS, expected, rtol=1e-4, atol=1e-4)


def test_gram_is_covariance_plus_mean_in_any_order_of_positions() -> None:
    x = maps()
    rows = x.flatten(2)
    for i, image in enumerate(rows):
        mean = image.mean(1)
        torch.testing.assert_close(gram(x)[i], torch.cov(image, correction=0) + mean[:, None] * mean)
    shuffled = rows[:, :, torch.randperm(15)].view(x.shape)
    torch.testing.assert_close(gram(shuffled), gram(x))
    assert (torch.linalg.eigvalsh(gram(x).double()) > -1e-5).all()


def test_whitening_and_colouring_gives_mean_and_covariance_of_the_style() -> None:
    content, style = maps(size=(9, 7)).double() * 0.3, maps(size=(6, 8), seed=3).double()
    restyled = whiten_and_colour(content, style)
    for got, wanted in zip(restyled.flatten(2), style.flatten(2), strict=True):
        torch.testing.assert_close(torch.cov(got, correction=0), torch.cov(wanted, correction=0))
        torch.testing.assert_close(got.mean(1), wanted.mean(1))
    torch.testing.assert_close(whiten_and_colour(content, content), content)
    torch.testing.assert_close(whiten_and_colour(content, style, alpha=0.5), (content + restyled) / 2)


def test_an_identity_added_to_the_covariance_misses_the_style() -> None:
    """A ridge of 1 instead of epsilon, as in a widespread implementation."""
    content, style = maps(1, size=(9, 7)).double() * 0.3, maps(1, size=(6, 8), seed=3).double()
    centred = content.flatten(2)[0] - content.mean((2, 3))[0, :, None]

    def cov_of_output(ridge: float) -> Tensor:
        values, vectors = torch.linalg.eigh(torch.cov(centred, correction=0) + ridge * torch.eye(CHANNELS))
        whitened = vectors @ torch.diag(values.rsqrt()) @ vectors.T @ centred
        return torch.cov(torch.linalg.cholesky(torch.cov(style.flatten(2)[0], correction=0)) @ whitened, correction=0)

    wanted = torch.cov(style.flatten(2)[0], correction=0)
    torch.testing.assert_close(cov_of_output(1e-12), wanted)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(cov_of_output(1.0), wanted, rtol=0.1, atol=0.1)


def test_content_of_deficient_rank_stays_finite() -> None:
    """Fewer positions than channels, and a dead channel."""
    content = maps(channels=8, size=(2, 2))
    content[:, 0] = 0
    restyled = whiten_and_colour(content, maps(channels=8, size=(6, 8), seed=3))
    assert restyled.isfinite().all()
    assert restyled.abs().max() < 1e3
