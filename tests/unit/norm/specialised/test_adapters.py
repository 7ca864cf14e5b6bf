"""Residual adapters against their slow oracle, a loop over domains with a convolution, an adapter and a norm each.

Catches the domain of the first image used for the whole batch, a series adapter without the identity or without its
norm, a parallel adapter that samples the map one position off its stride, adapters that do not start with zeros, and a
domain that changes when another is added.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from helpers.adapter_networks import NAMES, small_network, small_plain, varied
from reid.errors import ConditionError, ConfigError
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import Condition, Given, convert_norm, domain_batchnorm, given
from reid.norm.added_domain import only_domain
from reid.norm.specialised.adapters import (
    PLACEMENTS,
    AdaptedConv2d,
    LowRankAdapter,
    adapted_layers,
    adapter_domains,
    add_adapter_domain,
    add_adapters,
)

ALL_PLACEMENTS = pytest.mark.parametrize("placement", PLACEMENTS)
MODES = pytest.mark.parametrize("training", [True, False])


def make_layer(placement: str, **options) -> AdaptedConv2d:
    torch.manual_seed(0)
    return varied(AdaptedConv2d(nn.Conv2d(4, 6, 3, **{"padding": 1, **options}), NAMES, placement))


def loop_oracle(layer: AdaptedConv2d, x: Tensor, indices: Tensor) -> Tensor:
    """Each domain's images through torch's own layers."""
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation
    )
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    out = None
    for g in range(len(NAMES)):
        mine = x[indices == g]
        if not len(mine):
            continue
        y = plain(mine)
        adapter = nn.Conv2d(layer.adapter(g).weight.shape[1], layer.out_channels, 1, bias=False)
        if layer.placement == "series":
            norm = nn.BatchNorm2d(layer.out_channels)
            norm.load_state_dict({key: getattr(layer.norm, key)[g] for key in norm.state_dict()})
            mine = norm.train(layer.training)(y)
        else:
            adapter.stride = layer.stride
        adapter.weight = nn.Parameter(layer.adapter(g).weight.detach()[:, :, None, None])
        y = y + adapter(mine)
        out = y.new_empty(len(x), *y.shape[1:]) if out is None else out
        out[indices == g] = y
    return out


def in_any_order(layer: nn.Module, x: Tensor, indices: Tensor) -> Tensor:
    with given(Condition(indices)):
        return layer(x)


def in_sorted_runs(layer: nn.Module, x: Tensor, indices: Tensor) -> Tensor:
    return Given(layer)(x, indices)


PATHS = pytest.mark.parametrize("path", [in_any_order, in_sorted_runs])


@PATHS
@MODES
@settings(max_examples=15, deadline=None)
@hypothesis_given(data=st.data())
def test_a_mixed_batch_is_the_loop_over_domains(path: Callable, training: bool, data) -> None:
    indices = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
    height, width = data.draw(st.integers(4, 9)), data.draw(st.integers(4, 9))
    stride, dilation, placement = (
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 2)),
        data.draw(st.sampled_from(PLACEMENTS)),
    )
    layer = make_layer(placement, stride=stride, dilation=dilation, padding=dilation).train(training)
    x = torch.randn(len(indices), 4, height, width, generator=torch.Generator().manual_seed(len(indices)))
    try:
        expected = loop_oracle(copy.deepcopy(layer), x, indices)
    except ValueError:  # torch's norm refuses a single value a channel
        reject()
    torch.testing.assert_close(path(layer, x, indices), expected, rtol=1e-4, atol=1e-4)


@PATHS
@ALL_PLACEMENTS
def test_gradients_are_those_of_the_loop(path: Callable, placement: str) -> None:
    layer, indices = make_layer(placement, stride=2), torch.tensor([2, 0, 1, 2, 0])
    layer.eval()
    x = torch.randn(5, 4, 6, 5, requires_grad=True)
    twin = x.detach().clone().requires_grad_(True)
    direction = torch.randn(5, 6, 3, 3)
    (path(layer, x, indices) * direction).sum().backward()
    (loop_oracle(layer, twin, indices) * direction).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-5)
    for row, domain in enumerate(indices.unique().tolist()):
        single = make_layer(placement, stride=2).eval()
        mine = indices == domain
        (Given(single)(x.detach()[mine], row) * direction[mine]).sum().backward()
        got, expected = layer.adapter(row).weight.grad, single.adapter(row).weight.grad
        assert expected.any()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@PATHS
@ALL_PLACEMENTS
def test_autocast_gives_half_precision_on_every_path(path: Callable, placement: str) -> None:
    layer, indices = make_layer(placement).eval(), torch.tensor([2, 0, 1, 2])
    x = torch.randn(4, 4, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = path(layer, x, indices)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), loop_oracle(layer, x, indices), rtol=5e-2, atol=5e-2)


def domain_of_the_first_image(layer: AdaptedConv2d, x: Tensor, indices: Tensor) -> Tensor:
    return Given(layer)(x, int(indices[0]))


def without_identity(layer: AdaptedConv2d, x: Tensor, indices: Tensor) -> Tensor:
    return Given(layer)(x, indices) - nn.Conv2d.forward(layer, x)


def without_norm(layer: AdaptedConv2d, x: Tensor, indices: Tensor) -> Tensor:
    y = nn.Conv2d.forward(layer, x)
    return y + torch.stack([layer.adapter(g)(y[None, i])[0] for i, g in enumerate(indices.tolist())])


def one_position_off(layer: AdaptedConv2d, x: Tensor, indices: Tensor) -> Tensor:
    shifted = x[:, :, 1::2, 1::2]
    pieces = [layer.adapter(g)(shifted[None, i])[0] for i, g in enumerate(indices.tolist())]
    return nn.Conv2d.forward(layer, x) + torch.stack(pieces)


@pytest.mark.parametrize(
    ("wrong", "placement"),
    [
        (domain_of_the_first_image, "series"),
        (domain_of_the_first_image, "parallel"),
        (without_identity, "series"),
        (without_norm, "series"),
        (one_position_off, "parallel"),
    ],
)
def test_the_oracle_refuses_wrong_adapters(wrong: Callable, placement: str) -> None:
    layer = make_layer(placement, stride=2).eval()
    x, indices = torch.randn(4, 4, 6, 6), torch.tensor([1, 0, 2, 1])
    expected = loop_oracle(layer, x, indices)
    torch.testing.assert_close(in_sorted_runs(layer, x, indices), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong(layer, x, indices), expected, rtol=1e-2, atol=1e-2)


@ALL_PLACEMENTS
@MODES
def test_until_trained_the_network_is_unchanged_bit_for_bit(placement: str, training: bool) -> None:
    torch.manual_seed(0)
    network = Embedder(NetworkSpec("resnet18", "gem", "bnneck")).train(training)
    adapted = add_adapters(network, NAMES, placement)
    assert len(adapted_layers(adapted)) == 17  # the stem and two in each of eight blocks; not the 1x1 shortcuts
    x = torch.randn(4, 3, 64, 32)
    expected = copy.deepcopy(network)(x)
    assert torch.equal(Given(copy.deepcopy(adapted))(x, 2), expected)
    torch.testing.assert_close(in_any_order(adapted, x, torch.tensor([2, 0, 1, 0])), expected)
    assert not any(isinstance(layer, AdaptedConv2d) for layer in network.modules())


@PATHS
@ALL_PLACEMENTS
def test_other_domains_do_not_change_with_one(path: Callable, placement: str) -> None:
    """T4."""
    network = small_network(placement).eval()
    x, indices = torch.randn(5, 3, 12, 8), torch.tensor([0, 2, 1, 0, 1])
    before = path(network, x, indices)
    with torch.no_grad():
        for layer in adapted_layers(network).values():
            layer.adapter(1).weight.add_(1)
    after = path(network, x, indices)
    assert torch.equal(before[indices != 1], after[indices != 1])
    assert not torch.allclose(before[indices == 1], after[indices == 1])


@ALL_PLACEMENTS
def test_a_new_domain_leaves_the_others_bit_for_bit(placement: str) -> None:
    network = small_network(placement).eval()
    grown = add_adapter_domain(network, "animals")
    twin = add_adapter_domain(network, "animals", like="vehicles")
    assert adapter_domains(grown) == (*NAMES, "animals")
    x = torch.randn(4, 3, 12, 8)
    for row in range(len(NAMES)):
        assert torch.equal(Given(grown)(x, row), Given(network)(x, row))
    assert torch.equal(Given(twin)(x, 3), Given(network)(x, 1))
    assert not any(layer.adapter(3).weight.any() for layer in adapted_layers(grown).values())
    with torch.no_grad():
        for layer in adapted_layers(twin).values():
            layer.adapter(3).weight.zero_()
    assert torch.equal(Given(twin)(x, 1), Given(network)(x, 1))  # a copy, not the same adapter


def test_state_loads_by_name_and_in_its_own_form() -> None:
    network = small_network()
    layer = adapted_layers(network)["3"]
    parts = [torch.randn(shape) for shape in ((3, 8), (2, 3), (8,), (8, 2))]
    layer.adapters[1] = LowRankAdapter(*parts)
    other = ("letters", "people", "vehicles")
    torch.manual_seed(5)
    plain = nn.Sequential(*(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))
    tail = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fresh = add_adapters(convert_norm(nn.Sequential(*plain, *tail), domain_batchnorm(other)), other)
    fresh.load_state_dict(copy.deepcopy(network.state_dict()))
    x = torch.randn(4, 3, 12, 8)
    for row, name in enumerate(NAMES):
        assert torch.equal(Given(fresh.eval())(x, other.index(name)), Given(network.eval())(x, row))
    fresh.load_state_dict(small_network().state_dict())  # and back to full adapters
    assert torch.equal(Given(fresh)(x, 0), Given(small_network().eval())(x, 2))
    unknown_domain = add_adapters(small_plain(), ("a", "b"), "parallel")
    with pytest.raises(RuntimeError, match=r"expected domains \['a', 'b'\], the state has"):
        unknown_domain.load_state_dict(add_adapters(small_plain(), ("a", "c"), "parallel").state_dict())


def test_which_convolutions_have_adapters() -> None:
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
    network = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), grouped),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding="valid"),
    )
    assert set(adapted_layers(add_adapters(network, NAMES, "series"))) == {"0", "3", "4", "5"}
    parallel = add_adapters(network, NAMES, "parallel")
    assert set(adapted_layers(parallel)) == {"3", "4"}
    x = torch.randn(2, 1, 12, 10)
    assert torch.equal(Given(parallel)(x, 1), network(x))
    assert set(adapted_layers(add_adapters(mobilenet_v2(), NAMES))) == {"features.0.0"}
    shared = nn.Conv2d(8, 8, 3, padding=1)
    twice = add_adapters(nn.Sequential(shared, nn.ReLU(), shared), NAMES)
    assert twice[0] is twice[2]


def test_mistakes_are_named() -> None:
    network = small_network()
    with pytest.raises(ConditionError, match="people, vehicles, letters"):
        add_adapters(small_plain(), NAMES, "parallel")(torch.randn(2, 3, 8, 8))
    with pytest.raises(ConditionError, match="out of range"):
        Given(add_adapters(small_plain(), NAMES, "parallel"))(torch.randn(2, 3, 8, 8), 3)
    with pytest.raises(ConditionError, match="int64"):
        in_any_order(add_adapters(small_plain(), NAMES, "parallel"), torch.randn(2, 3, 8, 8), torch.full((2, 3), 1 / 3))
    with pytest.raises(ConfigError, match='did you mean "series"'):
        add_adapters(small_plain(), NAMES, "serie")
    with pytest.raises(ConfigError, match="distinct domain names, got 'people'"):
        add_adapters(small_plain(), "people")
    with pytest.raises(ConfigError, match=r"people.*vehicles.*letters"):
        add_adapters(convert_norm(small_plain(), domain_batchnorm(NAMES)), ("people", "letters", "vehicles"))
    with pytest.raises(ConfigError, match="no full convolution"):
        add_adapters(nn.Linear(3, 3), NAMES)
    with pytest.raises(ConfigError, match="exists already"):
        add_adapter_domain(network, "people")
    with pytest.raises(ConditionError, match='did you mean "people"'):
        only_domain(network, "peopel")
    assert add_adapters(small_plain(), ["only"], "parallel")(torch.randn(2, 3, 8, 8)).shape == (2, 8, 8, 8)


def test_threads_with_different_domains_do_not_interfere() -> None:
    """T19."""
    network = Given(small_network().eval())
    x = torch.randn(4, 3, 12, 8)
    with torch.no_grad():
        serial = [network(x, row) for row in range(3)]

        def serve(call: int) -> bool:
            with torch.no_grad():
                return torch.equal(network(x, call % 3), serial[call % 3])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(serve, range(60)))


@ALL_PLACEMENTS
def test_a_domain_for_each_image_compiles_to_one_graph(placement: str) -> None:
    network = Given(small_network(placement).eval())
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    x = torch.randn(4, 3, 12, 8)
    with torch.no_grad():
        for indices in ([0, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1]):
            torch.testing.assert_close(
                compiled(x, torch.tensor(indices)), network(x, torch.tensor(indices)), rtol=1e-4, atol=1e-5
            )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
