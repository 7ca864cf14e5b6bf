"""Covariances of groups of images are compared with those of torch, and merging with one pass over all images.

The wrong code that these tests catch: the covariance between images forgotten, covariances averaged by batch,
moments computed in half precision, blocks that see their neighbours.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.whitening_oracles import SIZE, C, block_diagonal, close, columns, images, slow_cov
from reid.norm import covariance as covariance_module
from reid.norm.covariance import CovarianceStatistics, covariances, synchronized_covariances
from reid.norm.statistics import Statistics, moments, pool


def test_covariances_are_those_of_all_values_of_the_group() -> None:
    x = images(7, dtype=torch.float64)
    domain = torch.tensor([2, 0, 2, 0, 0, 2, 2])
    stats = covariances(x, domain, 3, SIZE)
    for group in (0, 2):
        own = x[domain == group]
        dense = slow_cov(own)
        close(block_diagonal(stats.cov[group]), dense * block_diagonal(torch.ones(2, SIZE, SIZE)))
        close(stats.mean[group], columns(own).mean(1))
        forgot_between_images = torch.stack([slow_cov(image[None]) for image in own]).mean(0)
        assert (dense - forgot_between_images).abs().max() > 0.1
    assert stats.mass.tolist() == [3, 0, 4]
    assert not stats.cov[1].any()


def test_the_diagonal_is_what_batchnorm_pools() -> None:
    x, domain = images(6, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 1])
    diagonal, expected = covariances(x, domain, 2, 2).diagonal(), pool(*moments(x), domain, 2)
    close(diagonal.mean, expected.mean)
    close(diagonal.var, expected.var)
    close(diagonal.mass, expected.mass)


@settings(max_examples=40, deadline=None)
@given(
    domain=st.lists(st.integers(0, 2), min_size=1, max_size=10),
    cuts=st.lists(st.integers(0, 10), max_size=4),
    seed=st.integers(0, 99),
    flip=st.booleans(),
)
def test_merging_any_chunks_is_one_pass(domain: list[int], cuts: list[int], seed: int, flip: bool) -> None:
    x, group = images(len(domain), seed, torch.float64), torch.tensor(domain)
    whole = covariances(x, group, 3, SIZE)
    edges = sorted({0, len(domain), *(cut for cut in cuts if cut < len(domain))})
    parts = [covariances(x[i:j], group[i:j], 3, SIZE) for i, j in pairwise(edges)]
    merged = CovarianceStatistics(
        torch.zeros(3, C).double(), torch.zeros(3, C // SIZE, SIZE, SIZE).double(), torch.zeros(3).double()
    )
    for part in parts:
        merged = part.merge(merged) if flip else merged.merge(part)
    for found, expected in ((merged.mean, whole.mean), (merged.cov, whole.cov), (merged.mass, whole.mass)):
        close(found, expected)
    together = covariances(x, torch.zeros_like(group), 1, SIZE)
    total = whole.merge_all()
    close(total.mean, together.mean)
    close(total.cov, together.cov)
    assert total.mass.tolist() == [len(domain)]


def test_averaging_batch_covariances_is_not_merging() -> None:
    """What a running average with momentum None does: the covariance of the batch means is lost."""
    drift = torch.tensor([-3.0, 0.0, 3.0])[:, None, None, None]
    x = torch.randn(3, C, 4, 3, generator=torch.Generator().manual_seed(0)) + drift
    parts = [covariances(image[None], torch.tensor([0]), 1, SIZE) for image in x]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    close(block_diagonal(merged.cov[0])[:SIZE, :SIZE], slow_cov(x)[:SIZE, :SIZE], 1e-4)
    averaged = torch.stack([part.cov for part in parts]).mean(0)
    assert averaged.max() < 2
    assert merged.cov.min() > 4


def test_weights_pool_every_image_into_several_groups() -> None:
    x = images(5, dtype=torch.float64)
    weights = torch.softmax(torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1)
    stats = covariances(x, weights, 2, SIZE)
    for group in range(2):
        share = weights[:, group].repeat_interleave(12)
        dense = torch.cov(columns(x), correction=0, aweights=share)
        close(block_diagonal(stats.cov[group]), dense * block_diagonal(torch.ones(2, SIZE, SIZE)))
    one_hot = torch.eye(2, dtype=torch.float64)[[0, 1, 1, 0, 1]]
    hard = covariances(x, torch.tensor([0, 1, 1, 0, 1]), 2, SIZE)
    assert torch.equal(covariances(x, one_hot, 2, SIZE).cov, hard.cov)


def test_gradient_of_the_moments() -> None:
    x, domain = images(3, dtype=torch.float64).requires_grad_(), torch.tensor([0, 1, 0])

    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        stats = covariances(x, domain, 2, SIZE)
        return stats.mean, stats.cov.pow(2)

    assert torch.autograd.gradcheck(of, (x,))


def test_moments_of_half_precision_are_computed_in_float32() -> None:
    x = images(8) * 300  # the squares overflow in float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stats = covariances(x.half(), torch.zeros(8).long(), 1, SIZE)
    assert stats.cov.dtype == torch.float32
    expected = covariances(x.half().float(), torch.zeros(8).long(), 1, SIZE)
    assert torch.equal(stats.cov, expected.cov)


def test_statistics_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patched ``synchronized`` merges with the statistics of a second process."""
    x, domain = images(8, dtype=torch.float64), torch.tensor([0, 0, 0, 2, 2, 0, 2, 2])
    sent: list[Statistics] = []
    monkeypatch.setattr(covariance_module, "synchronized", lambda batch: sent.append(batch) or batch)
    synchronized_covariances(covariances(x[5:], domain[5:], 3, SIZE))
    monkeypatch.setattr(covariance_module, "synchronized", lambda batch: batch.merge(sent[0]))
    found = synchronized_covariances(covariances(x[:5], domain[:5], 3, SIZE))
    whole = covariances(x, domain, 3, SIZE)
    assert torch.equal(found.mass, whole.mass)
    for row in (0, 2):
        close(found.mean[row], whole.mean[row])
        close(found.cov[row], whole.cov[row])
