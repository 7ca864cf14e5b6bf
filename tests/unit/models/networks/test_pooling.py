"""Pooling against loops over positions."""

from __future__ import annotations

import pytest
import torch

from reid.errors import ConfigError
from reid.models.networks.pooling import POOLINGS, GeneralizedMean, build_pooling


def test_average_is_the_mean_over_positions() -> None:
    x = torch.randn(2, 3, 4, 5)
    expected = torch.tensor([[x[b, c].flatten().tolist() for c in range(3)] for b in range(2)]).sum(2) / 20
    torch.testing.assert_close(build_pooling("average")(x), expected)


def test_gem_is_the_power_mean() -> None:
    x = torch.rand(2, 3, 4, 5) + 0.1
    got = build_pooling("gem")(x)
    for b in range(2):
        for c in range(3):
            values = x[b, c].flatten().tolist()
            assert got[b, c].item() == pytest.approx((sum(v**3 for v in values) / 20) ** (1 / 3), rel=1e-5)


def test_gem_lies_between_the_mean_and_the_maximum() -> None:
    x = torch.rand(2, 3, 4, 5) + 0.1
    torch.testing.assert_close(GeneralizedMean(power=1.0)(x), x.mean((2, 3)))
    torch.testing.assert_close(GeneralizedMean(power=64.0)(x), x.amax((2, 3)), rtol=0.06, atol=0)


def test_gem_learns_its_power_and_survives_zeros() -> None:
    pooling = GeneralizedMean()
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    y = torch.cat([pooling(x), pooling(torch.rand(1, 2, 3, 3))])
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert pooling.power.grad is not None
    assert pooling.power.grad.abs().item() > 0


@pytest.mark.parametrize("name", POOLINGS)
def test_half_width_maps_are_summed_in_float32(name: str) -> None:
    x = (torch.rand(2, 3, 16, 8) + 1).bfloat16()
    got = build_pooling(name)(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, build_pooling(name)(x.float()))


def test_an_unknown_pooling_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match='did you mean "average"'):
        build_pooling("averge")
