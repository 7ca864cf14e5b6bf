"""Noise of weights, and statistics under it: gains vanish exactly, moments are restored, no noise changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.small_checkpoints import randomize_norms
from reid.edge.weight_noise import NOISES, add_weight_noise, measure_under_noise
from reid.errors import ConfigError
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import Given, camera_batchnorm, convert_norm

IMAGES = torch.randn(12, 3, 64, 32, generator=torch.Generator().manual_seed(1))
DOMAIN = torch.arange(12) % 2
ONE = torch.zeros(12, dtype=torch.int64)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network whose statistics are those of ``IMAGES``."""
    torch.manual_seed(0)
    return measure_under_noise(randomize_norms(Embedder(NetworkSpec("resnet18_x0_25"))), [(IMAGES, ONE)]).eval()


def embedded(one: nn.Module, domain: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        return Given(one.eval())(IMAGES, domain)


def cosine(first: Tensor, second: Tensor) -> float:
    return float(functional.cosine_similarity(first, second).mean())


def test_a_gain_of_each_channel_is_absorbed_exactly(network: nn.Module) -> None:
    noisy = add_weight_noise(network, 0.5, "gain")
    assert cosine(embedded(noisy), embedded(network)) < 0.9
    restored = measure_under_noise(noisy, [(IMAGES, ONE)])
    torch.testing.assert_close(embedded(restored), embedded(network), rtol=0, atol=2e-4)  # eps of a variance remains


def test_a_gain_is_absorbed_for_each_camera(network: nn.Module) -> None:
    cameras = convert_norm(network, camera_batchnorm(("a", "b")))
    cameras = measure_under_noise(cameras, [(IMAGES, DOMAIN)])
    restored = measure_under_noise(add_weight_noise(cameras, 0.5, "gain"), [(IMAGES, DOMAIN)])
    torch.testing.assert_close(embedded(restored, DOMAIN), embedded(cameras, DOMAIN), rtol=0, atol=2e-4)


@pytest.mark.parametrize("noise", ["additive", "multiplicative"])
def test_measuring_again_brings_noisy_weights_nearer(network: nn.Module, noise: str) -> None:
    noisy = add_weight_noise(network, 0.08 if noise == "additive" else 0.4, noise)
    before = cosine(embedded(noisy), embedded(network))
    after = cosine(embedded(measure_under_noise(noisy, [(IMAGES, ONE)])), embedded(network))
    assert before < after < 1 - 1e-4


@pytest.mark.parametrize("noise", NOISES)
def test_no_noise_changes_nothing(network: nn.Module, noise: str) -> None:
    same = add_weight_noise(network, 0.0, noise)
    torch.testing.assert_close(embedded(measure_under_noise(same, [(IMAGES, ONE)])), embedded(network))
    assert torch.equal(embedded(same), embedded(network))


def test_a_device_keeps_its_noise_and_the_network_stays(network: nn.Module) -> None:
    before = embedded(network)
    first, again, other = (add_weight_noise(network, 0.1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(embedded(first), embedded(again))
    assert not torch.equal(embedded(first), embedded(other))
    assert torch.equal(embedded(network), before)


@pytest.mark.parametrize(("strength", "noise"), [(-0.1, "gain"), (float("nan"), "gain"), (0.1, "thermal")])
def test_noise_that_cannot_be_is_refused(network: nn.Module, strength: float, noise: str) -> None:
    with pytest.raises(ConfigError, match="noise"):
        add_weight_noise(network, strength, noise)
