"""Training the adapters and norms of one domain: the other domains stay the same to the bit.

Catches a domain that changes while another one is trained, such as by a gradient mask under weight decay.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from helpers.adapter_networks import NAMES, small_network, small_plain, varied
from reid.errors import ConfigError, WeightsError
from reid.norm import Given, convert_norm, domain_batchnorm, extract
from reid.norm.added_domain import domain_sizes, only_domain, with_domain
from reid.norm.specialised.adapters import (
    PLACEMENTS,
    adapted_layers,
    add_adapters,
)

ALL_PLACEMENTS = pytest.mark.parametrize("placement", PLACEMENTS)


def trained_for(network: nn.Module, name: str) -> nn.Module:
    part = only_domain(network, name).train()
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        optimizer.zero_grad()
        part(torch.randn(6, 3, 12, 8, generator=generator)).square().mean().backward()
        optimizer.step()
    return part


@ALL_PLACEMENTS
def test_training_one_domain_leaves_the_others_bit_for_bit(placement: str) -> None:
    network = small_network(placement)
    part = trained_for(network, "vehicles")
    whole = with_domain(network, part).eval()
    network.eval()
    x = torch.randn(4, 3, 12, 8)
    assert torch.equal(Given(whole)(x, 0), Given(network)(x, 0))
    assert torch.equal(Given(whole)(x, 2), Given(network)(x, 2))
    assert torch.equal(Given(whole)(x, 1), part.eval()(x))
    assert not torch.allclose(Given(whole)(x, 1), Given(network)(x, 1))
    changed = {
        k
        for k, v in whole.state_dict().items()
        if isinstance(v, Tensor) and not torch.equal(v, network.state_dict()[k])
    }
    assert {key for key in changed if ".adapters." in key} == {
        f"{at}.adapters.1.weight" for at in adapted_layers(network)
    }


def test_a_gradient_mask_would_not_leave_the_others() -> None:
    """The reason to train a copy of one domain: weight decay changes rows whose gradient is zero."""
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    own = [layer.weight for layer in network.modules() if getattr(layer, "affine", None) == "domain"]
    optimizer = torch.optim.AdamW(own, lr=0.01, weight_decay=0.1)
    Given(network)(torch.randn(6, 3, 12, 8), 1).square().mean().backward()
    for weight in own:
        assert not weight.grad[0].any()
    optimizer.step()
    assert not torch.equal(network.state_dict()["1.weight"][0], before["1.weight"][0])


def test_only_what_belongs_to_the_domain_is_trainable() -> None:
    part = only_domain(small_network(), "letters")
    trainable = {name for name, parameter in part.named_parameters() if parameter.requires_grad}
    assert trainable == {
        *(f"{at}.adapters.0.weight" for at in ("0", "3")),
        *(f"{at}.{key}" for at in ("0.norm", "1", "3.norm", "4") for key in ("weight", "bias")),
    }
    shared = add_adapters(convert_norm(resnet18(), domain_batchnorm(NAMES, affine="shared")), NAMES, "parallel")
    names = {name for name, p in only_domain(shared, "people").named_parameters() if p.requires_grad}
    assert names
    assert all(".adapters." in name for name in names)


def test_universal_representations_can_be_trained_for_one_domain() -> None:
    """Only norms, no adapters."""
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = varied(convert_norm(plain, domain_batchnorm(NAMES)))
    part = trained_for(network, "people")
    whole, x = with_domain(network, part).eval(), torch.randn(4, 3, 12, 8)
    assert torch.equal(Given(whole)(x, 0), part.eval()(x))
    assert torch.equal(Given(whole)(x, 1), Given(network.eval())(x, 1))


def test_a_domain_of_another_network_is_refused() -> None:
    network = small_network()
    part = only_domain(network, "people")
    with torch.no_grad():
        part.get_parameter("3.weight").add_(1)
    with pytest.raises(WeightsError, match=r"3\.weight.*people"):
        with_domain(network, part)
    with pytest.raises(ConfigError, match="one domain"):
        with_domain(network, network)


def test_norms_that_share_statistics_are_refused_for_training_one_domain() -> None:
    with pytest.raises(ConfigError, match=r"^bn1: "):
        only_domain(add_adapters(resnet18(), NAMES, "parallel"), "people")


@ALL_PLACEMENTS
def test_one_domain_can_be_extracted(placement: str) -> None:
    network = small_network(placement).eval()
    single = extract(only_domain(network, "letters"), "letters")
    x = torch.randn(4, 3, 12, 8)
    torch.testing.assert_close(single(x), Given(network)(x, 2))


def test_sizes_count_what_each_domain_has() -> None:
    sizes = domain_sizes(small_network("series"))
    # two 8x8 adapters; affine and statistics of the norms in them and after them: 4 norms of 8 channels
    assert set(sizes.values()) == {(2 * 64 + 4 * 16, 4 * 16)}
    assert tuple(sizes) == NAMES
    assert domain_sizes(small_network("parallel"))["people"] == (8 * 3 + 64 + 2 * 16, 2 * 16)
    shared = convert_norm(small_plain(), domain_batchnorm(NAMES, affine="shared"))
    assert domain_sizes(shared)["people"] == (0, 16)
