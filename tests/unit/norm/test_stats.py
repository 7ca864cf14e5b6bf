"""Moments as values against the images themselves, for any sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reid.norm.stats import Stats, moments, pool, pool_softly

C = 3


def maps(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(count, C, 1, 1, generator=generator, dtype=dtype) * 3
    return torch.randn(count, C, 4, 3, generator=generator, dtype=dtype) + offset


def direct(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) over all positions of all images, image i counting with weights[i]."""
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
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = maps(4, 0).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        moments(x)
    assert sum(t.numel() for t in kept) == x.numel() + 4 * C


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), groups=st.integers(1, 4))
def test_pooling_by_weights_and_by_labels_is_direct(seed: int, count: int, groups: int) -> None:
    x = maps(count, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, groups, generator=generator, dtype=torch.float64) + 0.01
    soft = pool_softly(*moments(x), weights)
    for g in range(groups):
        mean, var = direct(x, weights[:, g])
        assert torch.allclose(soft.mean[g], mean)
        assert torch.allclose(soft.var[g], var)
    labels = torch.randint(groups, (count,), generator=generator)
    hard = pool(*moments(x), labels, groups)
    one_hot = pool_softly(*moments(x), torch.nn.functional.one_hot(labels, groups).double())
    assert torch.allclose(hard.mean, one_hot.mean)
    assert torch.allclose(hard.var, one_hot.var)
    assert hard.mass.tolist() == torch.bincount(labels, minlength=groups).tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), counts=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_mixing_groups_is_mixing_their_images(seed: int, counts: list[int]) -> None:
    x = maps(sum(counts), seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    stats = pool(*moments(x), labels, len(counts))
    weights = torch.rand(2, len(counts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    weights = weights / weights.sum(1, keepdim=True)
    mixed = stats.mix(weights)
    for k in range(2):
        mean, var = direct(x, weights[k][labels] / torch.tensor(counts, dtype=torch.float64)[labels])
        assert torch.allclose(mixed.mean[k], mean)
        assert torch.allclose(mixed.var[k], var)
    everything = direct(x, torch.ones(len(x), dtype=torch.float64))
    assert torch.allclose(stats.total().mean[0], everything[0])
    assert torch.allclose(stats.total().var[0], everything[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_blending_counts_the_variance_between_and_the_straight_line_does_not(share: float) -> None:
    a, b = (pool(*moments(maps(3, seed)), torch.zeros(3, dtype=torch.int64), 1) for seed in (1, 2))
    both = Stats(torch.cat([a.mean, b.mean]), torch.cat([a.var, b.var]), torch.ones(2, dtype=torch.float64))
    exact = both.mix(torch.tensor([[1 - share, share]], dtype=torch.float64))
    assert torch.allclose(a.blend(b, share).var, exact.var)
    assert torch.allclose(a.blend(b, share).mean, exact.mean)
    missing = share * (1 - share) * (a.mean - b.mean).square()
    assert torch.allclose(a.blend(b, share).var - a.lerp(b, share).var, missing)


def test_wasserstein_is_zero_symmetric_and_adds_means_and_deviations() -> None:
    a = Stats(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 4.0, 9.0]]), torch.ones(1))
    b = Stats(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[1.0, 1.0, 9.0]]), torch.ones(1))
    assert a.wasserstein(a).item() == 0.0
    assert a.wasserstein(b).item() == b.wasserstein(a).item() == pytest.approx(9.0 + 1.0)


def test_where_takes_the_known_groups() -> None:
    a = Stats(torch.zeros(2, C), torch.ones(2, C), torch.tensor([1.0, 0.0]))
    b = Stats(torch.ones(2, C), 2 * torch.ones(2, C), torch.tensor([5.0, 6.0]))
    taken = a.where(torch.tensor([True, False]), b)
    assert taken.mean[:, 0].tolist() == [0.0, 1.0]
    assert taken.mass.tolist() == [1.0, 6.0]


def test_an_empty_group_means_nothing_and_is_finite() -> None:
    stats = pool_softly(*moments(maps(3, 0)), torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64))
    assert stats.mass[1] == 0
    assert stats.mean[1].abs().sum() == 0
    assert stats.var[1].abs().sum() == 0


def test_parts_of_images_merge_too() -> None:
    a, b = (Stats(torch.full((1, C), v), torch.ones(1, C), torch.tensor([0.2])) for v in (0.0, 1.0))
    assert torch.allclose(a.merge(b).mean, torch.full((1, C), 0.5))
    assert torch.allclose(Stats(a.mean, a.var, a.mass).total().mean, a.mean)
