"""Residual adapters against their slow oracle, a loop over domains with a convolution, an adapter and a norm each.

The wrong adapters these tests catch: the first row's label used for the whole batch, a series adapter without the
identity, or without its norm, a parallel adapter that samples the map one place off its stride, adapters that do not
start at zero, a domain that moves when another is added, or is trained (a gradient mask under weight decay).
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
from torchvision.models import mobilenet_v2, resnet18

from reid.errors import ConditionError, ConfigError, WeightsError
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import Condition, Given, convert_norm, domain_batchnorm, extract, given
from reid.norm.added_domain import domain_sizes, only_domain, with_domain
from reid.norm.specialised.adapters import (
    KINDS,
    AdaptedConv2d,
    LowRankAdapter,
    adapted_layers,
    adapter_domains,
    add_adapter_domain,
    add_adapters,
)

NAMES = ("people", "vehicles", "letters")
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
MODES = pytest.mark.parametrize("training", [True, False])


def varied(network: nn.Module, seed: int = 1) -> nn.Module:
    """Give every adapter weights, and every norm of domains statistics and affine, of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "adapters." in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 / tensor.shape[-1] ** 0.5)
            elif tensor_has_rows(name, tensor):
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return network


def tensor_has_rows(name: str, tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.is_floating_point() and len(tensor) == len(NAMES)


def make_layer(kind: str, **options) -> AdaptedConv2d:
    torch.manual_seed(0)
    return varied(AdaptedConv2d(nn.Conv2d(4, 6, 3, **{"padding": 1, **options}), NAMES, kind))


def small_network(kind: str = "series") -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return varied(add_adapters(convert_norm(plain, domain_batchnorm(NAMES)), NAMES, kind))


def loop_oracle(layer: AdaptedConv2d, x: Tensor, labels: Tensor) -> Tensor:
    """Each domain's images through torch's own layers."""
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation
    )
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    out = None
    for g in range(len(NAMES)):
        mine = x[labels == g]
        if not len(mine):
            continue
        y = plain(mine)
        adapter = nn.Conv2d(layer.adapter(g).weight.shape[1], layer.out_channels, 1, bias=False)
        if layer.kind == "series":
            norm = nn.BatchNorm2d(layer.out_channels)
            norm.load_state_dict({key: getattr(layer.norm, key)[g] for key in norm.state_dict()})
            mine = norm.train(layer.training)(y)
        else:
            adapter.stride = layer.stride
        adapter.weight = nn.Parameter(layer.adapter(g).weight.detach()[:, :, None, None])
        y = y + adapter(mine)
        out = y.new_empty(len(x), *y.shape[1:]) if out is None else out
        out[labels == g] = y
    return out


def vectorised(layer: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    with given(Condition(labels)):
        return layer(x)


def sorted_runs(layer: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return Given(layer)(x, labels)


PATHS = pytest.mark.parametrize("path", [vectorised, sorted_runs])


@PATHS
@MODES
@settings(max_examples=15, deadline=None)
@hypothesis_given(data=st.data())
def test_a_mixed_batch_is_the_loop_over_domains(path: Callable, training: bool, data) -> None:
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
    height, width = data.draw(st.integers(4, 9)), data.draw(st.integers(4, 9))
    stride, dilation, kind = (
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 2)),
        data.draw(st.sampled_from(KINDS)),
    )
    layer = make_layer(kind, stride=stride, dilation=dilation, padding=dilation).train(training)
    x = torch.randn(len(labels), 4, height, width, generator=torch.Generator().manual_seed(len(labels)))
    try:
        expected = loop_oracle(copy.deepcopy(layer), x, labels)
    except ValueError:  # torch's norm refuses a single value a channel
        reject()
    torch.testing.assert_close(path(layer, x, labels), expected, rtol=1e-4, atol=1e-4)


@PATHS
@ALL_KINDS
def test_gradients_are_those_of_the_loop(path: Callable, kind: str) -> None:
    layer, labels = make_layer(kind, stride=2), torch.tensor([2, 0, 1, 2, 0])
    layer.eval()
    x = torch.randn(5, 4, 6, 5, requires_grad=True)
    twin = x.detach().clone().requires_grad_(True)
    direction = torch.randn(5, 6, 3, 3)
    (path(layer, x, labels) * direction).sum().backward()
    (loop_oracle(layer, twin, labels) * direction).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-5)
    for row, domain in enumerate(labels.unique().tolist()):
        alone = make_layer(kind, stride=2).eval()
        mine = labels == domain
        (Given(alone)(x.detach()[mine], row) * direction[mine]).sum().backward()
        got, expected = layer.adapter(row).weight.grad, alone.adapter(row).weight.grad
        assert expected.any()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@PATHS
@ALL_KINDS
def test_autocast_gives_half_precision_on_every_path(path: Callable, kind: str) -> None:
    layer, labels = make_layer(kind).eval(), torch.tensor([2, 0, 1, 2])
    x = torch.randn(4, 4, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = path(layer, x, labels)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), loop_oracle(layer, x, labels), rtol=5e-2, atol=5e-2)


def first_label(layer: AdaptedConv2d, x: Tensor, labels: Tensor) -> Tensor:
    return Given(layer)(x, int(labels[0]))


def without_identity(layer: AdaptedConv2d, x: Tensor, labels: Tensor) -> Tensor:
    return Given(layer)(x, labels) - nn.Conv2d.forward(layer, x)


def without_norm(layer: AdaptedConv2d, x: Tensor, labels: Tensor) -> Tensor:
    y = nn.Conv2d.forward(layer, x)
    return y + torch.stack([layer.adapter(g)(y[None, i])[0] for i, g in enumerate(labels.tolist())])


def one_place_off(layer: AdaptedConv2d, x: Tensor, labels: Tensor) -> Tensor:
    shifted = x[:, :, 1::2, 1::2]
    pieces = [layer.adapter(g)(shifted[None, i])[0] for i, g in enumerate(labels.tolist())]
    return nn.Conv2d.forward(layer, x) + torch.stack(pieces)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (first_label, "series"),
        (first_label, "parallel"),
        (without_identity, "series"),
        (without_norm, "series"),
        (one_place_off, "parallel"),
    ],
)
def test_the_oracle_refuses_wrong_adapters(wrong: Callable, kind: str) -> None:
    layer = make_layer(kind, stride=2).eval()
    x, labels = torch.randn(4, 4, 6, 6), torch.tensor([1, 0, 2, 1])
    expected = loop_oracle(layer, x, labels)
    torch.testing.assert_close(sorted_runs(layer, x, labels), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong(layer, x, labels), expected, rtol=1e-2, atol=1e-2)


@ALL_KINDS
@MODES
def test_until_trained_the_network_is_unchanged_bit_for_bit(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    network = Embedder(NetworkSpec("resnet18", "gem", "bnneck")).train(training)
    adapted = add_adapters(network, NAMES, kind)
    assert len(adapted_layers(adapted)) == 17  # the stem and two in each of eight blocks; not the 1x1 shortcuts
    x = torch.randn(4, 3, 64, 32)
    expected = copy.deepcopy(network)(x)
    assert torch.equal(Given(copy.deepcopy(adapted))(x, 2), expected)
    torch.testing.assert_close(vectorised(adapted, x, torch.tensor([2, 0, 1, 0])), expected)
    assert not any(isinstance(layer, AdaptedConv2d) for layer in network.modules())


@PATHS
@ALL_KINDS
def test_other_domains_do_not_see_a_change_in_one(path: Callable, kind: str) -> None:
    """T4."""
    network = small_network(kind).eval()
    x, labels = torch.randn(5, 3, 12, 8), torch.tensor([0, 2, 1, 0, 1])
    before = path(network, x, labels)
    with torch.no_grad():
        for layer in adapted_layers(network).values():
            layer.adapter(1).weight.add_(1)
    after = path(network, x, labels)
    assert torch.equal(before[labels != 1], after[labels != 1])
    assert not torch.allclose(before[labels == 1], after[labels == 1])


@ALL_KINDS
def test_a_new_domain_leaves_the_others_bit_for_bit(kind: str) -> None:
    network = small_network(kind).eval()
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


def trained_apart(network: nn.Module, name: str) -> nn.Module:
    part = only_domain(network, name).train()
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        optimizer.zero_grad()
        part(torch.randn(6, 3, 12, 8, generator=generator)).square().mean().backward()
        optimizer.step()
    return part


@ALL_KINDS
def test_a_domain_trained_apart_leaves_the_others_bit_for_bit(kind: str) -> None:
    network = small_network(kind)
    part = trained_apart(network, "vehicles")
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
    """Why a domain is cut out to be trained: weight decay moves rows whose gradient is zero."""
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


def test_universal_representations_are_trained_apart_too() -> None:
    """Norms alone, no adapters."""
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = varied(convert_norm(plain, domain_batchnorm(NAMES)))
    part = trained_apart(network, "people")
    whole, x = with_domain(network, part).eval(), torch.randn(4, 3, 12, 8)
    assert torch.equal(Given(whole)(x, 0), part.eval()(x))
    assert torch.equal(Given(whole)(x, 1), Given(network.eval())(x, 1))


def test_a_part_of_another_network_is_refused() -> None:
    network = small_network()
    part = only_domain(network, "people")
    with torch.no_grad():
        part.get_parameter("3.weight").add_(1)
    with pytest.raises(WeightsError, match=r"3\.weight: the part of people"):
        with_domain(network, part)
    with pytest.raises(ConfigError, match="one domain"):
        with_domain(network, network)


def test_norms_that_share_statistics_are_refused_for_training_apart() -> None:
    with pytest.raises(ConfigError, match=r"^bn1: its statistics are shared.*convert the norms first"):
        only_domain(add_adapters(resnet18(), NAMES, "parallel"), "people")


@ALL_KINDS
def test_a_domain_alone_can_be_extracted(kind: str) -> None:
    network = small_network(kind).eval()
    alone = extract(only_domain(network, "letters"), "letters")
    x = torch.randn(4, 3, 12, 8)
    torch.testing.assert_close(alone(x), Given(network)(x, 2))


def test_sizes_count_what_each_domain_has() -> None:
    sizes = domain_sizes(small_network("series"))
    # two 8x8 adapters; affine and statistics of the norms in them and after them: 4 norms of 8 channels
    assert set(sizes.values()) == {(2 * 64 + 4 * 16, 4 * 16)}
    assert tuple(sizes) == NAMES
    assert domain_sizes(small_network("parallel"))["people"] == (8 * 3 + 64 + 2 * 16, 2 * 16)
    shared = convert_norm(small_plain(), domain_batchnorm(NAMES, affine="shared"))
    assert domain_sizes(shared)["people"] == (0, 16)


def small_plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))


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
    with pytest.raises(ConditionError, match=r"people, vehicles, letters.*Given"):
        add_adapters(small_plain(), NAMES, "parallel")(torch.randn(2, 3, 8, 8))
    with pytest.raises(ConditionError, match="out of range"):
        Given(add_adapters(small_plain(), NAMES, "parallel"))(torch.randn(2, 3, 8, 8), 3)
    with pytest.raises(ConditionError, match="int64 labels"):
        vectorised(add_adapters(small_plain(), NAMES, "parallel"), torch.randn(2, 3, 8, 8), torch.full((2, 3), 1 / 3))
    with pytest.raises(ConfigError, match='did you mean "series"'):
        add_adapters(small_plain(), NAMES, "serie")
    with pytest.raises(ConfigError, match="distinct domain names, got 'people'"):
        add_adapters(small_plain(), "people")
    with pytest.raises(ConfigError, match="domains of the network's norms"):
        add_adapters(convert_norm(small_plain(), domain_batchnorm(NAMES)), ("people", "letters", "vehicles"))
    with pytest.raises(ConfigError, match="no full convolution"):
        add_adapters(nn.Linear(3, 3), NAMES)
    with pytest.raises(ConfigError, match="exists already"):
        add_adapter_domain(network, "people")
    with pytest.raises(ConditionError, match='did you mean "people"'):
        only_domain(network, "peopel")
    assert add_adapters(small_plain(), ["only"], "parallel")(torch.randn(2, 3, 8, 8)).shape == (2, 8, 8, 8)


def test_threads_with_different_domains_do_not_meet() -> None:
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


@ALL_KINDS
def test_labels_compile_to_one_graph(kind: str) -> None:
    network = Given(small_network(kind).eval())
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    x = torch.randn(4, 3, 12, 8)
    with torch.no_grad():
        for labels in ([0, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1]):
            torch.testing.assert_close(
                compiled(x, torch.tensor(labels)), network(x, torch.tensor(labels)), rtol=1e-4, atol=1e-5
            )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
