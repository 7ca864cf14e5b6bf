"""Weights over domains: what they measure, how they mix outputs, and how they agree with domain indices.

The wrong variant that is shown to fail: weights that mix statistics in place of outputs.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from helpers.domain_layers import CHANNELS, LABELS, close, images, make_layer, normalized, run
from reid.errors import ConditionError
from reid.norm import DomainBatchNorm, DomainPolicy, Given, convert_norm
from reid.norm.statistics import Statistics
from reid.norm.statistics_source import Instance

# Assignments


@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=20, deadline=None)
@hypothesis_given(
    domain=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    affine=st.sampled_from(["shared", "domain"]),
)
def test_one_hot_weights_are_indices_for_all_sizes(
    training: bool, domain: list[int], size: tuple[int, int], affine: str
) -> None:
    """Outputs and running statistics are equal, also for absent domains and single values."""
    torch.manual_seed(len(domain))
    hard = DomainBatchNorm(CHANNELS, ("a", "b", "c"), affine=affine).double().train(training)
    with torch.no_grad():
        for value in (hard.running_mean, hard.weight, hard.bias):
            value.normal_()
    soft, x = copy.deepcopy(hard), torch.randn(len(domain), CHANNELS, *size, dtype=torch.float64) * 2 + 1
    rows = torch.tensor(domain)
    y = run(soft, x, functional.one_hot(rows, 3).double())
    assert close(run(hard, x, rows), y, 1e-9)
    for key, value in hard.named_buffers():
        assert close(value.double(), soft.get_buffer(key).double(), 1e-9), key


@settings(max_examples=20, deadline=None)
@hypothesis_given(count=st.integers(2, 6), height=st.integers(1, 5), width=st.integers(2, 5))
def test_a_domain_for_each_image_is_instance_norm(count: int, height: int, width: int) -> None:
    """This holds for domain indices, for weights, and for the source of instance statistics."""
    torch.manual_seed(count)
    x = torch.randn(count, CHANNELS, height, width, dtype=torch.float64) * 3 + 2
    expected = functional.instance_norm(x)
    layer = DomainBatchNorm(CHANNELS, [str(i) for i in range(count)]).double().train()
    assert close(run(copy.deepcopy(layer), x, torch.arange(count)), expected, 1e-9)
    assert close(run(copy.deepcopy(layer), x, torch.eye(count, dtype=torch.float64)), expected, 1e-9)
    layer.source = Instance()
    assert close(run(layer.eval(), x, 0), expected, 1e-9)
    together = run(DomainBatchNorm(CHANNELS, ("all",)).double().train(), x, None)
    assert not close(together, expected, 1e-2)  # the wrong assignment: one domain for all images


@pytest.mark.parametrize("training", [False, True])
def test_one_hot_weights_are_indices(training: bool) -> None:
    hard, soft, x = make_layer(), make_layer(), images()
    one_hot = functional.one_hot(LABELS, 2).float()
    assert close(run(hard.train(training), x, LABELS), run(soft.train(training), x, one_hot))
    for key, value in hard.state_dict().items():
        assert key.endswith("_extra_state") or close(value.float(), soft.state_dict()[key].float()), key


def test_one_latent_domain_is_batchnorm() -> None:
    layer, plain = make_layer(1).train(), nn.BatchNorm2d(CHANNELS)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if isinstance(v, Tensor)})
    x = images()
    assert close(run(layer, x, torch.ones(len(x), 1)), plain(x))
    assert close(layer.running_var, plain.running_var)


def test_weights_mix_outputs_of_weighted_statistics() -> None:
    layer, x = make_layer(3).train(), images()
    weights = torch.softmax(torch.randn(len(x), 3, generator=torch.Generator().manual_seed(2)), 1)
    expected = torch.zeros_like(x)
    rows = []
    for k in range(3):
        share = (weights[:, k] / weights[:, k].sum()).view(-1, 1, 1, 1) / (x.shape[2] * x.shape[3])
        mean = (share * x).sum((0, 2, 3))
        var = (share * (x - mean.view(1, -1, 1, 1)).square()).sum((0, 2, 3))
        rows.append((mean, var))
        stats = Statistics(mean[None], var[None], torch.ones(1))
        expected += weights[:, k].view(-1, 1, 1, 1) * normalized(x, stats, layer)
    found = run(layer, x, weights)
    assert close(found, expected)
    means, variances = (torch.stack(values) for values in zip(*rows, strict=True))
    mixed_statistics = normalized(x, Statistics(weights @ means, weights @ variances, torch.ones(len(x))), layer)
    assert not close(mixed_statistics, expected, 1e-2)  # the wrong mixture


def test_the_output_is_linear_in_the_weights_and_independent_of_the_order_of_domains() -> None:
    layer, x = make_layer(2), images()
    ends = [run(layer, x, torch.tensor([[1.0, 0.0]]).expand(len(x), 2)), run(layer, x, 1)]
    assert close(run(layer, x, torch.full((len(x), 2), 0.5)), (ends[0] + ends[1]) / 2)
    swapped = layer.take_rows(("d1", "d0"), [1, 0])
    weights = torch.rand(len(x), 2)
    assert close(run(layer, x, weights), run(swapped, x, weights.flip(1)))


def test_a_latent_domain_without_images_stays_finite() -> None:
    """A domain whose weight is 0 or nearly 0 keeps its running statistics."""
    layer, x = make_layer(3).train(), images()
    before = layer.running_mean.clone()
    weights = torch.tensor([[0.5, 0.5, 0.0]]).expand(len(x), 3).clone().requires_grad_()
    y = run(layer, x, weights)
    y.sum().backward()
    assert y.isfinite().all()
    assert weights.grad.isfinite().all()
    assert torch.equal(layer.running_mean[2], before[2])
    assert not torch.equal(layer.running_mean[0], before[0])


def test_weights_of_another_number_of_domains_are_refused() -> None:
    with pytest.raises(ConditionError, match=r"\(B, 2\).*\(7, 3\)"):
        run(make_layer(2), images(), torch.ones(7, 3) / 3)


@pytest.mark.parametrize("system", ["ibn", "isw", "bin"])
def test_weights_are_refused_where_no_affine_is_defined_for_what_is_mixed_in(system: str) -> None:
    """Statistics of the image itself belong to no domain; with one domain for each image they take its affine."""
    x, weights = torch.rand(2, 3, 32, 16), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    own = Given(convert_norm(copy.deepcopy(net), DomainPolicy("camera", ("a", "b"), "domain", system))).eval()
    shared = Given(convert_norm(copy.deepcopy(net), DomainPolicy("camera", ("a", "b"), "shared", system))).eval()
    assert shared(x, weights).isfinite().all()
    assert own(x, torch.tensor([0, 1])).isfinite().all()
    with pytest.raises(ConditionError, match="shared"):
        own(x, weights)
