"""Statistics as values are compared with the images themselves, for all sizes.

The wrong formulas that these tests catch, each refused at the end: the variance between images or groups lost,
unbiased variances, groups counted alike whatever their mass, E[x^2] - E[x]^2 where means are large, distances of
variances in place of deviations, the domain of the first image used for all.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reid.norm.statistics import Statistics, moments, pool, pool_by_weights

C = 3


def maps(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(count, C, 1, 1, generator=generator, dtype=dtype) * 3
    return torch.randn(count, C, 4, 3, generator=generator, dtype=dtype) + offset


def direct(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance (C,) over all positions of all images, where image i counts with weights[i]."""
    share = (weights / weights.sum()).view(-1, 1, 1, 1) / (x.shape[2] * x.shape[3])
    mean = (share * x).sum((0, 2, 3))
    return mean, (share * (x - mean.view(1, -1, 1, 1)).square()).sum((0, 2, 3))


def test_moments_are_those_of_each_image_with_exact_gradients() -> None:
    x = maps(4, 0).requires_grad_()
    mean, var = moments(x)
    assert torch.allclose(mean, x.mean((2, 3)))
    assert torch.allclose(var, x.var((2, 3), correction=0))
    assert torch.autograd.gradcheck(moments, (x,))
    assert torch.autograd.gradgradcheck(moments, (x,))


def test_moments_keep_only_their_input() -> None:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x = maps(4, 0).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        moments(x)
    assert sum(t.numel() for t in saved) == x.numel() + 4 * C


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), groups=st.integers(1, 4))
def test_pooling_by_weights_and_by_labels_is_direct(seed: int, count: int, groups: int) -> None:
    x = maps(count, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, groups, generator=generator, dtype=torch.float64) + 0.01
    soft = pool_by_weights(*moments(x), weights)
    for g in range(groups):
        mean, var = direct(x, weights[:, g])
        assert torch.allclose(soft.mean[g], mean)
        assert torch.allclose(soft.var[g], var)
    domain = torch.randint(groups, (count,), generator=generator)
    hard = pool(*moments(x), domain, groups)
    one_hot = pool_by_weights(*moments(x), torch.nn.functional.one_hot(domain, groups).double())
    assert torch.allclose(hard.mean, one_hot.mean)
    assert torch.allclose(hard.var, one_hot.var)
    assert hard.mass.tolist() == torch.bincount(domain, minlength=groups).tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), counts=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_mixing_groups_is_mixing_their_images(seed: int, counts: list[int]) -> None:
    x = maps(sum(counts), seed)
    domain = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    stats = pool(*moments(x), domain, len(counts))
    weights = torch.rand(2, len(counts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    weights = weights / weights.sum(1, keepdim=True)
    mixed = stats.mix(weights)
    for k in range(2):
        mean, var = direct(x, weights[k][domain] / torch.tensor(counts, dtype=torch.float64)[domain])
        assert torch.allclose(mixed.mean[k], mean)
        assert torch.allclose(mixed.var[k], var)
    everything = direct(x, torch.ones(len(x), dtype=torch.float64))
    assert torch.allclose(stats.merge_all().mean[0], everything[0])
    assert torch.allclose(stats.merge_all().var[0], everything[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixing_counts_the_variance_between_means_and_interpolating_does_not(share: float) -> None:
    a, b = (pool(*moments(maps(3, seed)), torch.zeros(3, dtype=torch.int64), 1) for seed in (1, 2))
    both = Statistics(torch.cat([a.mean, b.mean]), torch.cat([a.var, b.var]), torch.ones(2, dtype=torch.float64))
    exact = both.mix(torch.tensor([[1 - share, share]], dtype=torch.float64))
    assert torch.allclose(a.mix_with(b, share).var, exact.var)
    assert torch.allclose(a.mix_with(b, share).mean, exact.mean)
    missing = share * (1 - share) * (a.mean - b.mean).square()
    assert torch.allclose(a.mix_with(b, share).var - a.interpolate(b, share).var, missing)


def test_wasserstein_is_zero_symmetric_and_adds_means_and_deviations() -> None:
    a = Statistics(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 4.0, 9.0]]), torch.ones(1))
    b = Statistics(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[1.0, 1.0, 9.0]]), torch.ones(1))
    assert a.wasserstein(a).item() == 0.0
    assert a.wasserstein(b).item() == b.wasserstein(a).item() == pytest.approx(9.0 + 1.0)


def test_keep_where_keeps_the_known_groups() -> None:
    a = Statistics(torch.zeros(2, C), torch.ones(2, C), torch.tensor([1.0, 0.0]))
    b = Statistics(torch.ones(2, C), 2 * torch.ones(2, C), torch.tensor([5.0, 6.0]))
    taken = a.keep_where(torch.tensor([True, False]), b)
    assert taken.mean[:, 0].tolist() == [0.0, 1.0]
    assert taken.mass.tolist() == [1.0, 6.0]


def test_an_empty_group_is_finite() -> None:
    stats = pool_by_weights(*moments(maps(3, 0)), torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64))
    assert stats.mass[1] == 0
    assert stats.mean[1].abs().sum() == 0
    assert stats.var[1].abs().sum() == 0


def test_statistics_of_parts_of_images_merge() -> None:
    a, b = (Statistics(torch.full((1, C), v), torch.ones(1, C), torch.tensor([0.2])) for v in (0.0, 1.0))
    assert torch.allclose(a.merge(b).mean, torch.full((1, C), 0.5))
    assert torch.allclose(Statistics(a.mean, a.var, a.mass).merge_all().mean, a.mean)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9))
def test_a_group_of_one_image_has_the_moments_of_the_image(seed: int, count: int) -> None:
    """The weights are the identity matrix."""
    mean, var = moments(maps(count, seed))
    for found in (
        pool(mean, var, torch.arange(count), count),
        pool_by_weights(mean, var, torch.eye(count, dtype=torch.float64)),
    ):
        assert torch.equal(found.mean, mean)
        assert torch.equal(found.var, var)
        assert torch.equal(found.mass, torch.ones(count, dtype=torch.float64))


# What the comparisons refuse.


def check_pooling(pooling) -> None:
    """Compare three groups of two, three and one image with all their values."""
    x, domain = maps(6, 3), torch.tensor([0, 1, 1, 0, 2, 1])
    found = pooling(*moments(x), domain, 3)
    for group in range(3):
        mean, var = direct(x[domain == group], torch.ones(int((domain == group).sum()), dtype=torch.float64))
        torch.testing.assert_close(found.mean[group], mean)
        torch.testing.assert_close(found.var[group], var)
    assert found.mass.tolist() == [2, 3, 1]


def wrong_pooling(mean: Tensor, var: Tensor, domain: Tensor, groups: int, wrong: str) -> Statistics:
    domain = domain[:1].expand_as(domain) if wrong == "the first label" else domain
    right = pool(mean, var, domain, groups)
    counts = right.mass[:, None]
    if wrong == "between lost":
        return Statistics(right.mean, torch.stack([var[domain == g].mean(0) for g in range(groups)]), right.mass)
    if wrong == "unbiased":
        return Statistics(right.mean, right.var * counts * 12 / (counts * 12 - 1), right.mass)
    if wrong == "from the common mean":
        far = torch.stack([(mean[domain == g] - mean.mean(0)).square().mean(0) for g in range(groups)])
        within = torch.stack([var[domain == g].mean(0) for g in range(groups)])
        return Statistics(right.mean, within + far, right.mass)
    return right


@pytest.mark.parametrize("wrong", ["between lost", "unbiased", "from the common mean", "the first label"])
def test_wrong_pooling_is_refused(wrong: str) -> None:
    check_pooling(pool)
    with pytest.raises(AssertionError):
        check_pooling(lambda mean, var, domain, groups: wrong_pooling(mean, var, domain, groups, wrong))


def check_merging(merge, offset: float = 0.0) -> None:
    """Compare the merge of two images and four, in single precision, with all six."""
    x = (maps(6, 5) + offset).float()
    parts = [pool(*moments(part), torch.zeros(len(part), dtype=torch.int64), 1) for part in (x[:2], x[2:])]
    found = merge(*parts)
    mean, var = direct(x.double(), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(found.mean[0].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.var[0].double(), var, rtol=1e-3, atol=1e-5)
    assert found.mass.tolist() == [6]


def wrong_merge(a: Statistics, b: Statistics, wrong: str) -> Statistics:
    share = {"groups count alike": 0.5, "shares swapped": 1 / 3}.get(wrong, 2 / 3)
    if wrong == "between lost":
        return Statistics(a.interpolate(b, share).mean, a.interpolate(b, share).var, a.mass + b.mass)
    if wrong == "raw moments":  # E[x^2] - E[x]^2
        square = (1 - share) * (a.var + a.mean.square()) + share * (b.var + b.mean.square())
        mean = (1 - share) * a.mean + share * b.mean
        return Statistics(mean, square - mean.square(), a.mass + b.mass)
    mixed = a.mix_with(b, share)
    return Statistics(mixed.mean, mixed.var, a.mass + b.mass)


@pytest.mark.parametrize("wrong", ["between lost", "groups count alike", "shares swapped", "raw moments"])
def test_wrong_merging_is_refused(wrong: str) -> None:
    """Sums of squares are right near 0 and cancel far from it."""
    offset = 3000.0 if wrong == "raw moments" else 0.0
    check_merging(Statistics.merge, offset)
    if wrong == "raw moments":
        check_merging(lambda a, b: wrong_merge(a, b, wrong))
    with pytest.raises(AssertionError):
        check_merging(lambda a, b: wrong_merge(a, b, wrong), offset)


def bures(a: Statistics, b: Statistics, row: int) -> float:
    """|mu - mu'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2), with matrices."""
    root = torch.diag(a.var[row]).sqrt()
    values = torch.linalg.eigvalsh(root @ torch.diag(b.var[row]) @ root).clamp_min(0)
    trace = a.var[row].sum() + b.var[row].sum() - 2 * values.sqrt().sum()
    return float((a.mean[row] - b.mean[row]).square().sum() + trace)


DISTANCES = {
    "of variances": lambda a, b: (a.mean - b.mean).square().sum(1) + (a.var - b.var).square().sum(1),
    "only of means": lambda a, b: (a.mean - b.mean).square().sum(1),
    "not squared": lambda a, b: a.wasserstein(b).sqrt(),
    "Kullback-Leibler": lambda a, b: (
        0.5 * ((b.var / a.var).log() + (a.var + (a.mean - b.mean).square()) / b.var - 1).sum(1)
    ),
}


@pytest.mark.parametrize("wrong", ["", *DISTANCES])
def test_the_distance_is_that_of_full_gaussians(wrong: str) -> None:
    """BN embeddings: the distance is symmetric, 0 only for equal Gaussians, and that of full matrices."""
    a, b = (pool(*moments(maps(6, seed)), torch.tensor([0, 0, 0, 1, 1, 1]), 2) for seed in (7, 8))

    def check(distance) -> None:
        found = distance(a, b)
        torch.testing.assert_close(found, torch.tensor([bures(a, b, 0), bures(a, b, 1)], dtype=torch.float64))
        torch.testing.assert_close(found, distance(b, a))
        assert (found > 0).all()
        assert not distance(a, a).any()

    if wrong:
        with pytest.raises(AssertionError):
            check(DISTANCES[wrong])
    else:
        check(Statistics.wasserstein)
