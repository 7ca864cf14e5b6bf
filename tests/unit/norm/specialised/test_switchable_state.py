"""Slimmable networks: their state, threads, and mistakes in their use."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vit_b_16

from helpers.slimmable_networks import WIDTHS, differing, plain_network
from reid.errors import ConditionError, ConfigError, DataError
from reid.norm import Given, add_domain, camera_batchnorm, convert_norm, domains_of
from reid.norm.specialised.switchable import calibrate_widths, extract_width, slim, widths_of


def test_state_keeps_the_plain_names() -> None:
    plain = plain_network()
    network = slim(plain, WIDTHS)
    fresh = slim(
        plain_network().apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None), WIDTHS
    )
    x = torch.randn(2, 3, 16, 8)
    assert not torch.allclose(Given(fresh)(x, 1), Given(network)(x, 1))
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(Given(fresh)(x, 1), Given(network)(x, 1))
    assert {key for key in network.state_dict() if "_extra_state" not in key} == set(plain.state_dict())
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(Given(fresh)(x, 0), plain(x))
    assert domains_of(network) == ("1.0", "0.5", "0.25")


def test_flags_and_hooks_carry_over() -> None:
    plain = plain_network()
    plain[0].weight.requires_grad_(False)
    plain[1].bias.requires_grad_(False)
    seen = []
    plain[1].register_forward_hook(lambda *_: seen.append(1))
    network = slim(plain, WIDTHS)
    Given(network)(torch.randn(2, 3, 16, 8), 1)
    assert seen
    assert not network.training
    assert not network[0].weight.requires_grad
    assert not network[1].bias.requires_grad
    alone = extract_width(network, 0.5, torch.randn(2, 3, 16, 8))
    assert not alone[1].bias.requires_grad
    assert alone[1].weight.requires_grad
    assert type(plain[0]) is nn.Conv2d


def test_threads_at_different_widths_do_not_interfere() -> None:
    """T19."""
    network, x = Given(differing(slim(plain_network(), WIDTHS))), torch.randn(4, 3, 16, 8)
    with torch.no_grad():
        serial = [network(x, row) for row in range(3)]

        def serve(call: int) -> bool:
            with torch.no_grad():
                return torch.equal(network(x, call % 3), serial[call % 3])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(serve, range(60)))


@pytest.mark.parametrize("domain", [None, 3, -1, torch.tensor([0, 1])])
def test_a_batch_needs_one_known_width(domain) -> None:
    with pytest.raises(ConditionError, match=r"widths 1, 0\.5, 0\.25"):
        Given(slim(plain_network(), WIDTHS))(torch.randn(2, 3, 16, 8), domain)


def test_equal_indices_are_one_width() -> None:
    network, x = slim(plain_network(), WIDTHS), torch.randn(2, 3, 16, 8)
    assert torch.equal(Given(network)(x, torch.tensor([1, 1])), Given(network)(x, 1))
    assert slim(plain_network(), [0.5])(x).shape == (2, 5)


def test_a_single_value_is_normalized_with_running_statistics() -> None:
    network = slim(nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)), WIDTHS)
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(Given(network.train())(x, 1), Given(copy.deepcopy(network).eval())(x, 1))
    assert network[1].num_batches_tracked.tolist() == [0, 0, 0]


class WithSpare(nn.Module):
    """A network with a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_mistakes_are_named() -> None:
    x = torch.randn(2, 3, 16, 8)
    for widths in ([], [0.5, 0.5], [0.0], [1.5]):
        with pytest.raises(ConfigError, match="widths: "):
            slim(plain_network(), widths)
    with pytest.raises(ConfigError, match="Linear"):
        slim(nn.Linear(3, 3), WIDTHS)
    with pytest.raises(ConfigError, match=r"^0: .*Conv2d"):
        slim(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), WIDTHS)
    with pytest.raises(ConfigError, match="cannot slim a"):
        slim(vit_b_16(), WIDTHS)
    with pytest.raises(ConfigError, match=r"^1: .*DomainBatchNorm"):
        slim(convert_norm(plain_network(), camera_batchnorm(["a", "b"])), WIDTHS)
    with pytest.raises(ConfigError, match=r"0\.3.* 1, 0\.5, 0\.25"):
        extract_width(slim(plain_network(), WIDTHS), 0.3, x)
    with pytest.raises(ConfigError, match="widths"):
        add_domain(slim(plain_network(), WIDTHS), "0.75")
    with pytest.raises(ConfigError, match="unknown affine"):
        slim(plain_network(), WIDTHS, "own")
    with pytest.raises(DataError, match="got 1"):
        calibrate_widths(slim(plain_network(), WIDTHS), [x[:1]])
    with pytest.raises(ConfigError, match=r"^spare: "):
        extract_width(slim(WithSpare(), WIDTHS), 0.5, x)
    assert widths_of(plain_network()) == ()
