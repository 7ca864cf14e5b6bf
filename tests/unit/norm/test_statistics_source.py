"""Every source of statistics against its definition, written out for one layer.

The wrong variants that are shown to fail: DIAL that mixes variances, a prior that counts pixels or leaves out the
variance between means where it is asked for, an instance half that depends on the batch.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from helpers.domain_layers import CHANNELS, LABELS, close, images, make_layer, normalized, run, running_statistics
from reid.errors import ConfigError
from reid.norm import (
    DomainBatchNorm,
    convert_norm,
)
from reid.norm.domain_policy import DomainPolicy
from reid.norm.statistics import Statistics, moments, pool
from reid.norm.statistics_source import Align, BatchStatistics, Blend, Instance, Optimized, Prior

# Sources


def test_instance_statistics_are_instance_norm() -> None:
    layer, x = make_layer(source=Instance()), images()
    assert close(run(layer, x, LABELS), functional.instance_norm(x, weight=layer.weight, bias=layer.bias))


def test_prediction_time_statistics_are_those_of_the_batch() -> None:
    layer, x = make_layer(source=BatchStatistics()), images()
    before = {key: value.clone() for key, value in layer.state_dict().items() if isinstance(value, Tensor)}
    expected = functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
    assert close(run(layer, x, 0), expected)
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in before.items())
    assert not close(run(layer, x[:3], 0), expected[:3], 1e-2)  # an image depends on the others of its batch
    frozen = make_layer()
    assert torch.equal(run(frozen, x[:3], 0), run(frozen, x, 0)[:3])  # and does not with running statistics


@pytest.mark.parametrize("variance", ["naive", "mixture"])
def test_a_prior_counts_as_so_many_images(variance: str) -> None:
    layer, x = make_layer(source=Prior(5, variance)), images()
    batch = pool(*moments(x), LABELS, 2)
    share = (batch.mass / (batch.mass + 5))[:, None]
    old = running_statistics(layer, torch.tensor([0, 1]))
    mean = (1 - share) * old.mean + share * batch.mean
    var = (1 - share) * old.var + share * batch.var
    between = share * (1 - share) * (old.mean - batch.mean).square()
    right, wrong = (var, var + between) if variance == "naive" else (var + between, var)
    found = run(layer, x, LABELS)
    assert close(found, normalized(x, Statistics(mean[LABELS], right[LABELS], torch.ones(7)), layer))
    assert not close(found, normalized(x, Statistics(mean[LABELS], wrong[LABELS], torch.ones(7)), layer), 1e-3)


def test_a_prior_goes_from_the_batch_to_the_kept_statistics() -> None:
    x = images()
    ends = run(make_layer(source=BatchStatistics()), x, LABELS), run(make_layer(), x, LABELS)
    assert close(run(make_layer(source=Prior(0)), x, LABELS), ends[0])
    assert close(run(make_layer(source=Prior(1e12)), x, LABELS), ends[1])
    distances = [
        (run(make_layer(source=Prior(n)), x, LABELS) - ends[1]).abs().mean().item() for n in (0, 1, 4, 16, 256)
    ]
    assert distances == sorted(distances, reverse=True)
    with pytest.raises(ConfigError, match="-1"):
        Prior(-1)


@settings(max_examples=25, deadline=None)
@hypothesis_given(
    domain=st.lists(st.integers(0, 1), min_size=2, max_size=9),
    numbers=st.lists(st.floats(0, 1e6), min_size=2, max_size=5, unique=True),
    seed=st.integers(0, 99),
)
def test_a_prior_has_its_closed_form_and_is_monotone(domain: list[int], numbers: list[float], seed: int) -> None:
    """The formula holds for any N and any number of images; a larger N is nearer to the running statistics."""
    x, rows = images(len(domain), seed), torch.tensor(domain)
    old, batch = running_statistics(make_layer(), rows), pool(*moments(x), rows, 2)
    near = []
    for number in sorted(numbers):
        share = (batch.mass / (batch.mass + number))[rows][:, None]
        mean = (1 - share) * old.mean + share * batch.mean[rows]
        var = (1 - share) * old.var + share * batch.var[rows]
        layer = make_layer(source=Prior(number))
        found = run(layer, x, rows)
        assert close(found, normalized(x, Statistics(mean, var, torch.ones(len(x))), layer), 1e-4)
        near.append((mean - old.mean).abs().max().item())
    assert near == sorted(near, reverse=True)


def test_alpha_one_separates_domains_and_alpha_a_half_joins_them() -> None:
    x = images()
    assert close(run(make_layer(source=Align(1.0)).train(), x, LABELS), run(make_layer().train(), x, LABELS))
    half = make_layer(source=Align(0.5)).train()
    batch = half.source.combine_domains(pool(*moments(x), LABELS, 2))
    assert close(batch.mean[0], batch.mean[1])
    assert close(batch.var[0], batch.var[1])


def test_alignment_takes_the_variance_around_the_mixed_mean() -> None:
    alpha, x = 0.7, images()
    x[LABELS == 1] += 3.0
    mixed = make_layer(source=Align(alpha)).train().source.combine_domains(pool(*moments(x), LABELS, 2))
    for own, other in ((0, 1), (1, 0)):
        a, b = x[own == LABELS], x[other == LABELS]
        mean = alpha * a.mean((0, 2, 3)) + (1 - alpha) * b.mean((0, 2, 3))
        square = [(part - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3)) for part in (a, b)]
        assert close(mixed.mean[own], mean)
        assert close(mixed.var[own], alpha * square[0] + (1 - alpha) * square[1])
        mixed_variances = alpha * a.var((0, 2, 3), correction=0) + (1 - alpha) * b.var((0, 2, 3), correction=0)
        gap = alpha * (1 - alpha) * (a.mean((0, 2, 3)) - b.mean((0, 2, 3))).square()
        assert close(mixed.var[own] - mixed_variances, gap, 1e-4)  # what mixing variances would lose
        assert gap.min() > 0.1


@settings(max_examples=25, deadline=None)
@hypothesis_given(
    domain=st.lists(st.integers(0, 1), min_size=2, max_size=9).filter(lambda found: len(set(found)) == 2),
    alpha=st.floats(0.5, 1.0),
    shift=st.floats(-5, 5),
)
def test_aligned_batches_have_weighted_moments_zero_and_one(domain: list[int], alpha: float, shift: float) -> None:
    """An image of the domain counts alpha / n, one of the other (1 - alpha) / m; for each domain by its own
    normalization, whatever the numbers.  Mixed variances would give a second moment above 1."""
    rows = torch.tensor(domain)
    x = images(len(domain)).double() + shift * rows[:, None, None, None]
    layer = DomainBatchNorm(CHANNELS, ("a", "b"), affine=None, eps=0.0).double().train()
    layer.source = Align(alpha).double()
    combined = layer.source.combine_domains(pool(*moments(x), rows, 2))
    run(layer, x, rows)
    for index in (0, 1):
        own = rows == index
        parts = torch.where(own, alpha / own.sum(), (1 - alpha) / (~own).sum()).double()
        z = (x - combined.mean[index][:, None, None]) / combined.var[index].sqrt()[:, None, None]
        assert close(torch.einsum("i,icp->c", parts, z.flatten(2)) / 20, torch.zeros(CHANNELS).double(), 1e-6)
        second = torch.einsum("i,icp->c", parts, z.flatten(2).square()) / 20
        assert close(second, torch.ones(CHANNELS).double(), 1e-6)


def test_alpha_learns_and_stays_between_a_half_and_one() -> None:
    layer = make_layer(source=Align(0.8)).train()
    run(layer, images(), LABELS).square().sum().backward()
    assert layer.source.alpha.grad.abs() > 0
    with torch.no_grad():
        layer.source.alpha.fill_(0.2)
    run(layer, images(), LABELS)
    assert layer.source.alpha.item() == 0.5


def test_a_batch_of_one_domain_is_not_mixed() -> None:
    x = images()
    assert close(run(make_layer(source=Align(0.6)).train(), x, 0), run(make_layer().train(), x, 0))


def test_optimized_statistics_lie_between_the_images_and_the_domains() -> None:
    x = images()
    layer = make_layer(source=Optimized(2))
    with torch.no_grad():
        layer.source.logits.fill_(50.0)
    assert close(run(layer, x, LABELS), run(make_layer(), x, LABELS))
    with torch.no_grad():
        layer.source.logits.fill_(-50.0)
    assert close(run(layer, x, LABELS), run(make_layer(source=Instance()), x, LABELS))
    with torch.no_grad():
        layer.source.logits.copy_(torch.tensor([[0.3, -0.2], [0.8, 0.1]]))
    share = torch.sigmoid(layer.source.logits)[LABELS]
    mean, var = moments(x)
    domain = running_statistics(layer, LABELS)
    mixed = Statistics(
        share[:, :1] * domain.mean + (1 - share[:, :1]) * mean,
        share[:, 1:] * domain.var + (1 - share[:, 1:]) * var,
        var,
    )
    assert close(run(layer, x, LABELS), normalized(x, mixed, layer))


def test_a_gate_blends_batch_and_instance_normalization() -> None:
    x = images()
    ones = torch.ones(CHANNELS)
    assert close(run(make_layer(source=Blend(ones, learned=True)), x, LABELS), run(make_layer(), x, LABELS))
    instance = run(make_layer(source=Instance()), x, LABELS)
    assert close(run(make_layer(source=Blend(0 * ones, learned=True)), x, LABELS), instance)
    half = run(make_layer(source=Blend(0.5 * ones, learned=True)), x, LABELS)
    assert close(half, (run(make_layer(), x, LABELS) + instance) / 2)
    layer = make_layer(source=Blend(ones.clone(), learned=True)).train()
    with torch.no_grad():
        layer.source.gate.fill_(1.5)
    run(layer, x, LABELS).square().sum().backward()
    assert layer.source.gate.detach().max() == 1.0
    assert layer.source.gate.grad.abs().sum() > 0
    vectors = make_layer(source=Blend(0 * ones, learned=True))
    assert torch.isfinite(run(vectors, x[:, :, 0, 0], LABELS)).all()  # a vector has no instance statistics


def test_the_instance_half_of_ibn_does_not_depend_on_the_batch() -> None:
    layer = convert_norm(nn.Sequential(nn.BatchNorm2d(CHANNELS)), DomainPolicy("none", (), system="ibn"))[0].train()
    x = images()
    whole, part = run(layer, x, None), run(layer, x[:3], None)
    half = CHANNELS // 2
    assert close(whole[:3, :half], part[:, :half])
    assert not close(whole[:3, half:], part[:, half:], 1e-2)
    expected = functional.batch_norm(x[:, half:], None, None, training=True)
    assert close(whole[:, half:], expected)
    assert close(whole[:, :half], functional.instance_norm(x[:, :half]))
