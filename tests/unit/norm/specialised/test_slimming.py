"""Network slimming: a chain without its dead channels against the chain with them (T16).

The wrong removals these tests catch: the constant of a dead channel forgotten, kept without its ReLU, or moved past
zero padding, where it ends at the border; the other side's channels cut; a penalty of squares; a threshold for each
layer instead of one for all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reid.errors import ConfigError
from reid.norm import camera_batchnorm, convert_norm
from reid.norm.specialised.slimming import remove_channels, scale_penalty, scale_threshold


def chain(padding: int | str = 0, bias: bool = True, mode: str = "zeros", seed: int = 0) -> nn.Sequential:
    """Three convolutions; about half of the channels between them have scale 0 and a shift of either sign."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=padding, bias=bias, padding_mode=mode), nn.BatchNorm2d(10), nn.ReLU(),
        nn.Conv2d(10, 4, 1, bias=bias),
    )  # fmt: skip
    with torch.no_grad():
        for norm in (network[1], network[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_().mul_(torch.arange(norm.num_features) % 2)
            norm.bias.normal_()
    return network.eval()


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 9, 7, generator=torch.Generator().manual_seed(seed))


def check_removal(remove: Callable[[nn.Sequential], nn.Sequential], network: nn.Sequential) -> None:
    """Channels are gone, outputs are as before."""
    slim = remove(network)
    assert slim[0].out_channels < 8
    assert slim[0].weight.shape[0] == slim[1].num_features == slim[3].in_channels == slim[3].weight.shape[1]
    torch.testing.assert_close(slim(images()), network(images()), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    padding=st.sampled_from([0, 1, "same", "valid"]),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
    seed=st.integers(0, 999),
)
def test_removal_is_exact_and_complete(padding: int | str, bias: bool, mode: str, seed: int) -> None:
    """T16: only before zero padding may a dead channel stay, and then only one that is a positive constant."""
    network = chain(padding, bias, mode, seed)
    before = copy.deepcopy(network.state_dict())
    slim = remove_channels(network)
    torch.testing.assert_close(slim(images(seed)), network(images(seed)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slim.train()(images()), copy.deepcopy(network).train()(images()), rtol=1e-3, atol=1e-3)
    padded = padding in (1, "same") and mode == "zeros"
    stays = (network[1].weight != 0) | ((network[1].bias > 0) & padded)
    assert slim[0].out_channels == int(stays.sum())
    assert slim[4].num_features == 5  # the last convolution has no padding
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def wrong_removal(network: nn.Sequential, wrong: str) -> nn.Sequential:
    """The removal between the first two convolutions, with one mistake."""
    new = copy.deepcopy(network)
    first, norm, second = new[0], new[1], new[3]
    kept, shift = norm.weight != 0, norm.bias.detach()
    constant = {"forgotten": 0 * shift, "no relu": shift}.get(wrong, shift.relu())
    if wrong == "other channels":
        kept = kept.roll(1)
    with torch.no_grad():
        second.bias += second.weight[:, ~kept].sum((2, 3)) @ constant[~kept]
    first.weight = nn.Parameter(first.weight[kept])
    for key in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(norm, key)[kept].detach()
        setattr(norm, key, nn.Parameter(value) if key in ("weight", "bias") else value)
    second.weight = nn.Parameter(second.weight[:, kept])
    first.out_channels = norm.num_features = second.in_channels = int(kept.sum())
    return new


@pytest.mark.parametrize("wrong", ["", "forgotten", "no relu", "other channels", "past padding"])
def test_wrong_removals_are_refused(wrong: str) -> None:
    network = chain(padding=1 if wrong == "past padding" else 0)
    check_removal(remove_channels, network)
    if not wrong:
        check_removal(lambda given: wrong_removal(given, ""), network)  # otherwise the refusals would prove nothing
        return
    with pytest.raises(AssertionError):
        check_removal(lambda given: wrong_removal(given, wrong), network)


def test_a_threshold_takes_the_weakest_channels_of_all_layers() -> None:
    network = chain()
    with torch.no_grad():
        network[1].weight.copy_(torch.arange(1.0, 9.0))
        network[4].weight.copy_(-torch.arange(1.0, 11.0) * 10)
    limit = scale_threshold(network, 0.5)
    everything = sorted([*range(1, 9), *range(10, 101, 10)])
    assert limit == everything[9]
    slim = remove_channels(network, scale_threshold(network, 0.25))
    assert (slim[0].out_channels, slim[3].out_channels) == (3, 10)  # a quarter of each layer would be (6, 8)
    assert torch.equal(slim[1].weight, torch.arange(6.0, 9.0))
    assert remove_channels(network, 1e9)[0].out_channels == 1  # the strongest
    assert slim(images()).shape == network(images()).shape


def test_the_penalty_pulls_every_scale_by_the_same_force() -> None:
    """The gradient of |gamma| is its sign, also in every domain of a converted network; that of squares is not."""
    network = chain()
    with torch.no_grad():
        network[1].weight.copy_(torch.linspace(-2, 2, 8))
    converted = convert_norm(network, camera_batchnorm(["a", "b"], "domain"))
    for model, expected in ((network, torch.linspace(-2, 2, 8)), (converted, torch.linspace(-2, 2, 8).expand(2, 8))):
        penalty = scale_penalty(model)
        assert penalty.item() == pytest.approx(
            sum(p.abs().sum().item() for p in (model[1].weight, model[4].weight)), rel=1e-6
        )
        penalty.backward()
        assert torch.equal(model[1].weight.grad, expected.sign())
        assert model[1].bias.grad is None
        assert not torch.equal(2 * expected, expected.sign())  # what a penalty of squares would give


def test_other_layers_stay_and_flags_carry_over() -> None:
    depthwise = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6))
    nn.init.zeros_(depthwise[1].weight)
    assert remove_channels(depthwise)[0].out_channels == 6
    network = chain(bias=False, seed=2)
    network[0].weight.requires_grad_(False)
    slim = remove_channels(network)
    assert not slim[0].weight.requires_grad
    assert slim[1].weight.requires_grad
    assert slim[3].bias is not None  # what the dead channels gave
    slim(images()).sum().backward()


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="no BatchNorm"):
        scale_penalty(nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match="got 1"):
        scale_threshold(chain(), 1.0)
