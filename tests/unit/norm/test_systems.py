"""Every member of the family against its definition, written out for one layer.

The wrong variants that are shown to fail: DIAL that mixes variances, a prior that counts pixels or leaves
out the variance between means where it is asked for, weights over domains that mix statistics in place of
outputs, a transferability with a gradient, an instance half that depends on the batch, a gate that a gradient does
not pass.  Wrong variants of every system are refused in test_oracles.py.
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

from reid.errors import ConditionError, ConfigError
from reid.norm import (
    SYSTEMS,
    Condition,
    DomainBatchNorm,
    Given,
    add_domain,
    calibrate,
    convert_norm,
    domains_of,
    extract,
    given,
    install,
    mixes_domains,
    system_of,
)
from reid.norm.assignment import DomainGate, gate_logits, gate_loss
from reid.norm.convert import norm_layers, take_rows
from reid.norm.domain_policy import DomainPolicy
from reid.norm.statistics import Statistics, moments, pool
from reid.norm.statistics_source import Align, BatchStatistics, Blend, Instance, Optimized, Prior
from reid.norm.systems import first_layers, layers_at
from reid.norm.unseen_domains import mixture, with_source

CHANNELS = 6
LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 0])


def make(groups: int = 2, **parts: nn.Module) -> DomainBatchNorm:
    """A layer whose domains and affine all differ, in evaluation mode."""
    torch.manual_seed(0)
    layer = DomainBatchNorm(
        CHANNELS, [f"d{i}" for i in range(groups)], affine="domain" if "gate" in parts else "shared"
    )
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer.eval()


def images(count: int = len(LABELS), seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(count, CHANNELS, 1, 1, generator=generator) + 0.5
    return torch.randn(count, CHANNELS, 5, 4, generator=generator) * scales + scales


def run(layer: nn.Module, x: Tensor, domain: Tensor | int | None) -> Tensor:
    with given(Condition(domain)):
        return layer(x)


def normalized(x: Tensor, stats: Statistics, layer: DomainBatchNorm) -> Tensor:
    """The definition: rows of statistics (B, C), a shared affine."""
    mean, var = stats.mean[:, :, None, None], stats.var[:, :, None, None]
    weight, bias = layer.weight.view(1, -1, 1, 1), layer.bias.view(1, -1, 1, 1)
    return (x - mean) / (var + layer.eps).sqrt() * weight + bias


def kept(layer: DomainBatchNorm, labels: Tensor) -> Statistics:
    mean, var = (buffer.view(layer.domain_count, -1)[labels] for buffer in (layer.running_mean, layer.running_var))
    return Statistics(mean, var, torch.ones(len(labels)))


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> bool:
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))


# Assignments


@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=20, deadline=None)
@hypothesis_given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    affine=st.sampled_from(["shared", "domain"]),
)
def test_certain_weights_are_labels_whatever_the_sizes(
    training: bool, labels: list[int], size: tuple[int, int], affine: str
) -> None:
    """T6: outputs, and what is kept, also of absent domains and of single values."""
    torch.manual_seed(len(labels))
    hard = DomainBatchNorm(CHANNELS, ("a", "b", "c"), affine=affine).double().train(training)
    with torch.no_grad():
        for value in (hard.running_mean, hard.weight, hard.bias):
            value.normal_()
    soft, x = copy.deepcopy(hard), torch.randn(len(labels), CHANNELS, *size, dtype=torch.float64) * 2 + 1
    rows = torch.tensor(labels)
    y = run(soft, x, functional.one_hot(rows, 3).double())
    assert close(run(hard, x, rows), y, 1e-9)
    for key, value in hard.named_buffers():
        assert close(value.double(), soft.get_buffer(key).double(), 1e-9), key


@settings(max_examples=20, deadline=None)
@hypothesis_given(count=st.integers(2, 6), height=st.integers(1, 5), width=st.integers(2, 5))
def test_a_domain_for_each_image_is_instance_norm(count: int, height: int, width: int) -> None:
    """T7: by labels, by weights, and by the source that says so."""
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
def test_weights_that_are_certain_are_labels(training: bool) -> None:
    hard, soft, x = make(), make(), images()
    one_hot = functional.one_hot(LABELS, 2).float()
    assert close(run(hard.train(training), x, LABELS), run(soft.train(training), x, one_hot))
    for key, value in hard.state_dict().items():
        assert key.endswith("_extra_state") or close(value.float(), soft.state_dict()[key].float()), key


def test_one_latent_domain_is_batchnorm() -> None:
    layer, plain = make(1).train(), nn.BatchNorm2d(CHANNELS)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if isinstance(v, Tensor)})
    x = images()
    assert close(run(layer, x, torch.ones(len(x), 1)), plain(x))
    assert close(layer.running_var, plain.running_var)


def test_weights_mix_outputs_of_weighted_statistics() -> None:
    layer, x = make(3).train(), images()
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


def test_the_output_is_linear_in_the_weights_and_blind_to_the_order_of_domains() -> None:
    layer, x = make(2), images()
    ends = [run(layer, x, torch.tensor([[1.0, 0.0]]).expand(len(x), 2)), run(layer, x, 1)]
    assert close(run(layer, x, torch.full((len(x), 2), 0.5)), (ends[0] + ends[1]) / 2)
    swapped = layer.take_rows(("d1", "d0"), [1, 0])
    weights = torch.rand(len(x), 2)
    assert close(run(layer, x, weights), run(swapped, x, weights.flip(1)))


def test_a_latent_domain_without_images_stays_finite() -> None:
    """T13: its weight is 0 or nearly so; it is not asked and keeps what it has."""
    layer, x = make(3).train(), images()
    before = layer.running_mean.clone()
    weights = torch.tensor([[0.5, 0.5, 0.0]]).expand(len(x), 3).clone().requires_grad_()
    y = run(layer, x, weights)
    y.sum().backward()
    assert y.isfinite().all()
    assert weights.grad.isfinite().all()
    assert torch.equal(layer.running_mean[2], before[2])
    assert not torch.equal(layer.running_mean[0], before[0])


def test_weights_of_another_number_of_domains_are_refused() -> None:
    with pytest.raises(ConditionError, match=r"expected \(B, 2\), a column each domain, got \(7, 3\)"):
        run(make(2), images(), torch.ones(7, 3) / 3)


# Sources


def test_instance_statistics_are_instance_norm() -> None:
    layer, x = make(source=Instance()), images()
    assert close(run(layer, x, LABELS), functional.instance_norm(x, weight=layer.weight, bias=layer.bias))


def test_prediction_time_statistics_are_the_batchs_and_nothing_is_kept() -> None:
    layer, x = make(source=BatchStatistics()), images()
    before = {key: value.clone() for key, value in layer.state_dict().items() if isinstance(value, Tensor)}
    expected = functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
    assert close(run(layer, x, 0), expected)
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in before.items())
    assert not close(run(layer, x[:3], 0), expected[:3], 1e-2)  # an image depends on its batch mates
    frozen = make()
    assert torch.equal(run(frozen, x[:3], 0), run(frozen, x, 0)[:3])  # and does not when statistics are kept


@pytest.mark.parametrize("variance", ["naive", "mixture"])
def test_a_prior_counts_as_so_many_images(variance: str) -> None:
    layer, x = make(source=Prior(5, variance)), images()
    batch = pool(*moments(x), LABELS, 2)
    share = (batch.mass / (batch.mass + 5))[:, None]
    old = kept(layer, torch.tensor([0, 1]))
    mean = (1 - share) * old.mean + share * batch.mean
    var = (1 - share) * old.var + share * batch.var
    between = share * (1 - share) * (old.mean - batch.mean).square()
    right, wrong = (var, var + between) if variance == "naive" else (var + between, var)
    found = run(layer, x, LABELS)
    assert close(found, normalized(x, Statistics(mean[LABELS], right[LABELS], torch.ones(7)), layer))
    assert not close(found, normalized(x, Statistics(mean[LABELS], wrong[LABELS], torch.ones(7)), layer), 1e-3)


def test_a_prior_goes_from_the_batch_to_the_kept_statistics() -> None:
    x = images()
    ends = run(make(source=BatchStatistics()), x, LABELS), run(make(), x, LABELS)
    assert close(run(make(source=Prior(0)), x, LABELS), ends[0])
    assert close(run(make(source=Prior(1e12)), x, LABELS), ends[1])
    distances = [(run(make(source=Prior(n)), x, LABELS) - ends[1]).abs().mean().item() for n in (0, 1, 4, 16, 256)]
    assert distances == sorted(distances, reverse=True)
    with pytest.raises(ConfigError, match="N >= 0 images"):
        Prior(-1)


@settings(max_examples=25, deadline=None)
@hypothesis_given(
    labels=st.lists(st.integers(0, 1), min_size=2, max_size=9),
    numbers=st.lists(st.floats(0, 1e6), min_size=2, max_size=5, unique=True),
    seed=st.integers(0, 99),
)
def test_a_prior_has_its_closed_form_and_is_monotone(labels: list[int], numbers: list[float], seed: int) -> None:
    """T9: for any N and any number of images a domain; the more N counts, the nearer to what is kept."""
    x, rows = images(len(labels), seed), torch.tensor(labels)
    old, batch = kept(make(), rows), pool(*moments(x), rows, 2)
    near = []
    for number in sorted(numbers):
        share = (batch.mass / (batch.mass + number))[rows][:, None]
        mean = (1 - share) * old.mean + share * batch.mean[rows]
        var = (1 - share) * old.var + share * batch.var[rows]
        layer = make(source=Prior(number))
        found = run(layer, x, rows)
        assert close(found, normalized(x, Statistics(mean, var, torch.ones(len(x))), layer), 1e-4)
        near.append((mean - old.mean).abs().max().item())
    assert near == sorted(near, reverse=True)


def test_aligned_domains_are_separate_at_one_and_the_same_at_a_half() -> None:
    x = images()
    assert close(run(make(source=Align(1.0)).train(), x, LABELS), run(make().train(), x, LABELS))
    half = make(source=Align(0.5)).train()
    batch = half.source.combine_domains(pool(*moments(x), LABELS, 2))
    assert close(batch.mean[0], batch.mean[1])
    assert close(batch.var[0], batch.var[1])


def test_alignment_takes_the_variance_around_the_mixed_mean() -> None:
    alpha, x = 0.7, images()
    x[LABELS == 1] += 3.0
    mixed = make(source=Align(alpha)).train().source.combine_domains(pool(*moments(x), LABELS, 2))
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
    labels=st.lists(st.integers(0, 1), min_size=2, max_size=9).filter(lambda found: len(set(found)) == 2),
    alpha=st.floats(0.5, 1.0),
    shift=st.floats(-5, 5),
)
def test_aligned_batches_have_weighted_moments_zero_and_one(labels: list[int], alpha: float, shift: float) -> None:
    """T8: an image of the domain counts alpha / n, one of the other (1 - alpha) / m; for each domain by its own
    normalization, whatever the numbers.  Mixed variances would give a second moment above 1."""
    rows = torch.tensor(labels)
    x = images(len(labels)).double() + shift * rows[:, None, None, None]
    layer = DomainBatchNorm(CHANNELS, ("a", "b"), affine=None, eps=0.0).double().train()
    layer.source = Align(alpha).double()
    settled = layer.source.combine_domains(pool(*moments(x), rows, 2))
    run(layer, x, rows)
    for domain in (0, 1):
        own = rows == domain
        parts = torch.where(own, alpha / own.sum(), (1 - alpha) / (~own).sum()).double()
        z = (x - settled.mean[domain][:, None, None]) / settled.var[domain].sqrt()[:, None, None]
        assert close(torch.einsum("i,icp->c", parts, z.flatten(2)) / 20, torch.zeros(CHANNELS).double(), 1e-6)
        second = torch.einsum("i,icp->c", parts, z.flatten(2).square()) / 20
        assert close(second, torch.ones(CHANNELS).double(), 1e-6)


def test_alpha_learns_and_stays_between_a_half_and_one() -> None:
    layer = make(source=Align(0.8)).train()
    run(layer, images(), LABELS).square().sum().backward()
    assert layer.source.alpha.grad.abs() > 0
    with torch.no_grad():
        layer.source.alpha.fill_(0.2)
    run(layer, images(), LABELS)
    assert layer.source.alpha.item() == 0.5


def test_a_batch_of_one_domain_mixes_nothing_in() -> None:
    x = images()
    assert close(run(make(source=Align(0.6)).train(), x, 0), run(make().train(), x, 0))


def test_optimized_statistics_lie_between_the_images_and_the_domains() -> None:
    x = images()
    layer = make(source=Optimized(2))
    with torch.no_grad():
        layer.source.logits.fill_(50.0)
    assert close(run(layer, x, LABELS), run(make(), x, LABELS))
    with torch.no_grad():
        layer.source.logits.fill_(-50.0)
    assert close(run(layer, x, LABELS), run(make(source=Instance()), x, LABELS))
    with torch.no_grad():
        layer.source.logits.copy_(torch.tensor([[0.3, -0.2], [0.8, 0.1]]))
    share = torch.sigmoid(layer.source.logits)[LABELS]
    mean, var = moments(x)
    domain = kept(layer, LABELS)
    mixed = Statistics(
        share[:, :1] * domain.mean + (1 - share[:, :1]) * mean,
        share[:, 1:] * domain.var + (1 - share[:, 1:]) * var,
        var,
    )
    assert close(run(layer, x, LABELS), normalized(x, mixed, layer))


def test_a_gate_blends_batch_and_instance_normalization() -> None:
    x = images()
    ones = torch.ones(CHANNELS)
    assert close(run(make(source=Blend(ones, learned=True)), x, LABELS), run(make(), x, LABELS))
    assert close(run(make(source=Blend(0 * ones, learned=True)), x, LABELS), run(make(source=Instance()), x, LABELS))
    half = run(make(source=Blend(0.5 * ones, learned=True)), x, LABELS)
    assert close(half, (run(make(), x, LABELS) + run(make(source=Instance()), x, LABELS)) / 2)
    layer = make(source=Blend(ones.clone(), learned=True)).train()
    with torch.no_grad():
        layer.source.gate.fill_(1.5)
    run(layer, x, LABELS).square().sum().backward()
    assert layer.source.gate.detach().max() == 1.0
    assert layer.source.gate.grad.abs().sum() > 0
    vectors = make(source=Blend(0 * ones, learned=True))
    assert torch.isfinite(run(vectors, x[:, :, 0, 0], LABELS)).all()  # a vector has no instance statistics


def test_the_instance_half_of_ibn_does_not_feel_the_batch() -> None:
    layer = convert_norm(nn.Sequential(nn.BatchNorm2d(CHANNELS)), DomainPolicy("none", (), system="ibn"))[0].train()
    x = images()
    whole, part = run(layer, x, None), run(layer, x[:3], None)
    half = CHANNELS // 2
    assert close(whole[:3, :half], part[:, :half])
    assert not close(whole[:3, half:], part[:, half:], 1e-2)
    expected = functional.batch_norm(x[:, half:], None, None, training=True)
    assert close(whole[:, half:], expected)
    assert close(whole[:, :half], functional.instance_norm(x[:, :half]))


# Colours and gates


def test_transfer_factors_sum_to_twice_the_channels_and_have_no_gradient() -> None:
    from reid.norm.domain_affine import Transfer

    layer, x = make(transfer=Transfer()), images()
    stats = kept(layer, torch.tensor([0, 1]))
    factors = layer.transfer(stats, layer.eps)
    position = stats.mean / (stats.var + layer.eps).sqrt()
    slow = torch.stack([1 / (1 + (position[0, c] - position[1, c]).abs()) for c in range(CHANNELS)])
    assert close(factors, 1 + CHANNELS * slow / slow.sum())
    assert factors.sum().item() == pytest.approx(2 * CHANNELS, rel=1e-5)
    assert close(run(layer, x, LABELS), run(make(), x, LABELS) * factors.view(1, -1, 1, 1))
    leaf = stats.mean.clone().requires_grad_()
    assert not layer.transfer(Statistics(leaf, stats.var, stats.mass), layer.eps).requires_grad


def test_equal_domains_are_doubled_as_published() -> None:
    from reid.norm.domain_affine import Transfer

    layer, x = make(transfer=Transfer()), images()
    with torch.no_grad():
        layer.running_mean[1], layer.running_var[1] = layer.running_mean[0], layer.running_var[0]
    assert close(run(layer, x, 0), 2 * (run(make(), x, 0)))


def test_a_certain_gate_is_its_branch() -> None:
    layer, x = make(gate=DomainGate(CHANNELS, 2)), images()
    with torch.no_grad():
        layer.gate.layers[-1].weight.zero_()
        layer.gate.layers[-1].bias.copy_(torch.tensor([200.0, 0.0]))
    assert close(run(layer, x, None), run(layer, x, 0))
    assert not close(run(layer, x, None), run(layer, x, 1), 1e-2)


def test_a_branch_that_the_gate_refuses_changes_nothing() -> None:
    """T13: the probability of the branch is 0."""
    layer, x = make(gate=DomainGate(CHANNELS, 2)), images()
    with torch.no_grad():
        layer.gate.layers[-1].weight.zero_()
        layer.gate.layers[-1].bias.copy_(torch.tensor([300.0, 0.0]))
    before = run(layer, x, None)
    with torch.no_grad():
        layer.running_mean[1] += 7
        layer.weight[1] *= -3
    assert torch.equal(run(layer, x, None), before)


def test_the_gradient_passes_the_gate() -> None:
    """T13: an attack differentiates through the gate too; without that part the gradient is not the slope."""
    layer, x = make(gate=DomainGate(CHANNELS, 2)).double(), images(3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(layer, x, None), (x,))
    (whole,) = torch.autograd.grad(run(layer, x, None).square().sum(), x)
    weights = torch.softmax(layer.gate(*moments(x)), 1).detach()
    fixed = copy.deepcopy(layer)
    fixed.gate = None
    (masked,) = torch.autograd.grad(run(fixed, x, weights).square().sum(), x)
    assert not close(masked, whole, 1e-3)


def test_a_gate_over_equal_branches_changes_nothing_and_learns_from_labels() -> None:
    layer, x = make(gate=DomainGate(CHANNELS, 2)), images()
    same = layer.take_rows(("d0", "d1"), [0, 0])
    assert close(run(same, x, None), run(same, x, 1))
    network = nn.Sequential(layer.train())
    with gate_logits(network) as logits:
        out = Given(network)(x, LABELS)
    assert [tuple(part.shape) for part in logits] == [(7, 2)]
    (out.sum() + gate_loss(logits, LABELS)).backward()
    assert layer.gate.layers[0].weight.grad.abs().sum() > 0


# Networks


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8),
    )  # fmt: skip


def names_for(system: str) -> tuple[str, ...]:
    latent = SYSTEMS[system].latent
    return tuple(f"latent-{i}" for i in range(latent)) if latent else ("a", "b") if SYSTEMS[system].min_domains else ()


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "batch"])
def test_every_system_trains_saves_and_goes_round(system: str) -> None:
    policy = DomainPolicy("test", names_for(system), system=system)
    x = torch.randn(8, 3, 32, 16, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(8) % 2 if SYSTEMS[system].min_domains and not SYSTEMS[system].latent else None
    converted = convert_norm(network(), policy).train()
    Given(converted)(x, labels).square().sum().backward()
    missing = [name for name, p in converted.named_parameters() if p.grad is None and "gate" not in name]
    assert not missing
    converted.eval()
    again = convert_norm(network(), policy).eval()
    again.load_state_dict(converted.state_dict())
    assert torch.equal(Given(again)(x, labels), Given(converted)(x, labels))
    assert system_of(converted) == system
    assert domains_of(converted) == names_for(system)
    assert Given(converted)(x[:1], None if labels is None else labels[:1]).isfinite().all()


@pytest.mark.parametrize("system", ["dson", "dial", "transnorm", "gated", "dwt"])
def test_one_domain_can_be_taken_out(system: str) -> None:
    converted = convert_norm(network(), DomainPolicy("test", ("a", "b"), system=system)).train()
    x = torch.randn(8, 3, 32, 16, generator=torch.Generator().manual_seed(4))
    for _ in range(2):
        Given(converted)(x * 2, torch.arange(8) % 2)
    converted.eval()
    for index, name in enumerate(("a", "b")):
        alone = extract(converted, name)
        assert close(alone(x), Given(converted)(x, index))


def test_systems_say_what_they_need() -> None:
    with pytest.raises(ConfigError, match='"transnorm" needs 2 domains, got 3'):
        convert_norm(network(), DomainPolicy("camera", ("a", "b", "c"), system="transnorm"))
    with pytest.raises(ConfigError, match='"dial" needs at least 2 domains, got 0'):
        convert_norm(network(), DomainPolicy("camera", (), system="dial"))
    with pytest.raises(ConfigError, match="norm system"):
        DomainPolicy("camera", ("a", "b"), system="dail")
    once = convert_norm(network(), DomainPolicy("none", (), system="ibn"))
    with pytest.raises(ConfigError, match='has norm system "ibn" already'):
        convert_norm(once, DomainPolicy("camera", ("a", "b"), system="dial"))


def test_an_ibn_network_can_have_cameras() -> None:
    once = convert_norm(network(), DomainPolicy("none", (), system="ibn")).eval()
    cameras = convert_norm(once, DomainPolicy("camera", ("a", "b"))).eval()
    x = torch.randn(4, 3, 32, 16)
    assert system_of(cameras) == "ibn"
    assert domains_of(cameras) == ("a", "b")
    assert torch.equal(Given(cameras)(x, torch.tensor([0, 1, 1, 0])), once(x))


def test_places() -> None:
    assert list(first_layers(0.25)(8)) == [0, 1]
    assert list(first_layers(0.01)(8)) == [0]
    assert list(layers_at(0.0, 0.5, 1.0)(9)) == [0, 4, 8]
    assert list(layers_at(0.1, 0.1)(2)) == [0]


# What a second reader found


def converted(system: str, affine: str = "shared", plain: nn.Module | None = None) -> nn.Module:
    return convert_norm(plain or network(), DomainPolicy("test", names_for(system), affine, system))


def test_calibrating_aligned_domains_keeps_them_aligned() -> None:
    net = converted("dial").train()
    for layer in norm_layers(net).values():
        layer.source.alpha.data.fill_(0.5)
    x = torch.randn(32, 3, 32, 16, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(32) % 2
    x[labels == 1] += 2.0
    assert mixes_domains(net)
    assert not mixes_domains(converted("dson"))
    calibrated = install(net.eval(), calibrate(net, [(x, labels)], ("a", "b")))
    for layer in norm_layers(calibrated).values():
        assert close(layer.running_mean[0], layer.running_mean[1])
        assert close(layer.running_var[0], layer.running_var[1])
    first = calibrated[1]
    assert close(first.running_mean[0], net[0](x).mean((0, 2, 3)), 1e-4)  # both halves count the same


@pytest.mark.parametrize("system", ["dson", "gated"])
def test_a_state_with_its_domains_in_another_order_loads_by_name(system: str) -> None:
    net = converted(system, "domain").eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.1, 1.0)
    other = convert_norm(network(), DomainPolicy("test", ("b", "a"), "domain", system)).eval()
    other.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 32, 16)
    assert close(Given(net)(x, 0), Given(other)(x, 1))
    turned = take_rows(net, ("b", "a"), [1, 0])
    assert close(Given(net)(x, 1), Given(turned)(x, 0))
    if system == "gated":
        assert close(Given(net)(x), Given(other)(x))
        assert close(Given(net)(x), Given(turned)(x))


@pytest.mark.parametrize("system", ["batch", "dial", "dson", "transnorm", "gated", "dwt"])
@pytest.mark.parametrize("domain", [-1, 2, torch.tensor([0, 1, 2, 0]), torch.tensor([-1, 0, 1, 1])])
def test_domains_out_of_range_are_refused_by_all(system: str, domain: int | Tensor) -> None:
    net = convert_norm(network(), DomainPolicy("test", ("a", "b"), system=system)).eval()
    with pytest.raises(ConditionError, match="out of range"):
        Given(net)(torch.randn(4, 3, 32, 16), domain)


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "batch"])
def test_training_flags_and_dtype_carry_over(system: str) -> None:
    net = converted(system, plain=network().double().eval())
    assert not any(part.training for part in net.modules())
    assert all(p.dtype == torch.float64 for p in net.parameters())
    x = torch.randn(4, 3, 32, 16, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0]) if SYSTEMS[system].min_domains and not SYSTEMS[system].latent else None
    assert Given(net)(x, labels).dtype == torch.float64


def test_one_domain_of_transnorm_without_affine_keeps_its_factors() -> None:
    net = converted("transnorm", plain=nn.Sequential(nn.BatchNorm2d(CHANNELS, affine=False))).eval()
    net[0].running_mean.normal_()
    x = images()
    assert close(extract(net, "b")(x), Given(net)(x, 1))


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ConfigError, match="has no domains yet; use convert_norm"):
        add_domain(network(), "x")
    with pytest.raises(ConfigError, match='"ibn" has statistics of its own kind'):
        with_source(converted("ibn"), Prior(4))
    with pytest.raises(ConfigError, match='"dwt" has statistics of its own kind'):
        with_source(converted("dwt"), Prior(4))
    with pytest.raises(ConfigError, match='"dwt" has one scale and shift for all'):
        converted("dwt", "domain")
    with pytest.raises(ConfigError, match=r"has domains already \(a, b\)"):
        convert_norm(converted("dial"), DomainPolicy("camera", ("c",)))
    with pytest.raises(ConditionError, match=r"call network.eval\(\) first"):
        mixture(converted("dson").train(), torch.randn(2, 3, 32, 16))
    assert system_of(extract(converted("dial"), "a")) == "batch"
