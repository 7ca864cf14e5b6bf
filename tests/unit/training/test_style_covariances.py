"""Instance selective whitening and the covariances that it removes, against slow, obvious code and closed forms.

Wrong variants that these tests refuse: covariances without instance normalization, of the whole batch, or divided by
all positions; a mask that reaches the diagonal or counts every pair twice; a margin for each pair; division by an empty
mask; views of different images paired; a mask of the largest cluster only; k-means that stops at a local optimum.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reid.errors import ConfigError
from reid.training.losses import instance_covariances, isw_loss
from reid.training.style_covariances import cluster_values, covariance_mask, photometric_sensitivity

C = 4
ALL = torch.ones(C, C).triu(1) > 0


def maps(rows: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Maps (rows, C, 5, 4) of correlated channels."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(C, C, generator=generator, dtype=dtype) + 1
    return torch.einsum("cd,bdhw->bchw", mixing, torch.randn(rows, C, 5, 4, generator=generator, dtype=dtype)) + 2


def slow_isw(images: Tensor, mask: Tensor, margin: float = 0.0) -> float:
    """Compute the loss image by image and pair by pair."""
    pairs = [(a, b) for a in range(images.shape[1]) for b in range(images.shape[1]) if mask[a, b]]
    losses = []
    for image in images:
        values = image.flatten(1)
        normal = (values - values.mean(1, keepdim=True)) / (values.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        total = sum(abs(float(normal[a] @ normal[b])) / (values.shape[1] - 1) for a, b in pairs)
        losses.append(max(total - margin, 0.0))
    return sum(losses) / len(losses) / len(pairs)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 100.0])
def test_isw_equals_a_loop_over_images_and_pairs(margin: float) -> None:
    mask = ALL.clone()
    mask[0, 2] = False
    expected = slow_isw(maps(), mask, margin)
    assert isw_loss(maps(), mask, margin).item() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert (expected > 0) == (margin < 100)


def wrong_isw(images: Tensor, mask: Tensor, margin: float, wrong: str) -> Tensor:
    """Compute the loss in vectorized form with one mistake."""
    values = images.flatten(2)
    rows = values.transpose(0, 1).flatten(1)[None] if wrong == "of the batch" else values
    normal = rows - rows.mean(2, keepdim=True)
    if wrong != "without instance normalization":
        normal = normal / (rows.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    cov = normal @ normal.mT / (rows.shape[2] - (wrong != "biased"))
    mask = {"with the diagonal": mask | torch.eye(C, dtype=torch.bool), "pairs twice": mask | mask.T}.get(wrong, mask)
    if wrong == "a margin for each pair":
        return ((cov.abs() - margin).clamp_min(0) * mask).sum((1, 2)).mean() / mask.sum()
    if wrong == "signed":
        return ((cov * mask).sum((1, 2)) - margin).clamp_min(0).mean() / mask.sum()
    total = (cov.square() if wrong == "squared" else cov.abs()) * mask
    pairs = 1 if wrong == "a sum" else ALL.sum() if wrong == "pairs twice" else mask.sum()
    return (total.sum((1, 2)) - margin).clamp_min(0).mean() / pairs


def check_isw(loss) -> None:
    """Compare a loss with the slow one: on all pairs and on some, with and without a margin."""
    some = ALL.clone()
    some[0, 2] = some[1, 3] = False
    for mask, margin in ((ALL, 0.0), (some, 0.0), (some, 0.5)):
        assert float(loss(maps(), mask, margin)) == pytest.approx(slow_isw(maps(), mask, margin), rel=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        "without instance normalization", "of the batch", "biased", "with the diagonal", "pairs twice",
        "a margin for each pair", "signed", "squared", "a sum",
    ],
)  # fmt: skip
def test_the_loop_over_pairs_refuses_wrong_losses(wrong: str) -> None:
    check_isw(isw_loss)
    check_isw(lambda x, mask, margin: wrong_isw(x, mask, margin, ""))
    with pytest.raises(AssertionError):
        check_isw(lambda x, mask, margin: wrong_isw(x, mask, margin, wrong))


def test_isw_is_0_on_orthogonal_channels_and_not_on_correlated_ones() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.cat([torch.ones(20, 1), torch.randn(20, C)], 1).double()).Q[:, 1:]
    orthogonal = basis.T.reshape(1, C, 5, 4)
    assert isw_loss(orthogonal, ALL).item() < 1e-12
    same = orthogonal[:, :1].expand(1, C, 5, 4)
    assert isw_loss(same, ALL).item() == pytest.approx(20 / 19, rel=1e-2)
    full = torch.ones_like(ALL)  # a wrong mask: with the diagonal the loss is never 0
    assert isw_loss(orthogonal, full).item() > 0.2


def test_isw_does_not_depend_on_gain_and_offset() -> None:
    torch.manual_seed(0)
    gain, offset = torch.rand(3, C, 1, 1).double() * 5 + 1, torch.randn(3, C, 1, 1).double() * 50
    found = isw_loss(maps() * gain + offset, ALL).item()
    assert found == pytest.approx(isw_loss(maps(), ALL).item(), rel=1e-4)


def test_an_empty_mask_is_0_and_its_gradient_too() -> None:
    """Division by the number of pairs as it is gives NaN."""
    assert wrong_isw(maps(), torch.zeros(C, C, dtype=torch.bool), 0.0, "").isnan()
    x = maps().requires_grad_()
    loss = isw_loss(x, torch.zeros(C, C, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


def test_isw_gradient_and_half_precision() -> None:
    assert torch.autograd.gradcheck(lambda x: isw_loss(x, ALL), (maps(2).requires_grad_(),))
    flat = torch.zeros(1, C, 5, 4, requires_grad=True)  # channels without variance
    isw_loss(flat, ALL).backward()
    assert flat.grad.isfinite().all()
    x = maps(dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = isw_loss(x, ALL)
    assert torch.equal(loss, isw_loss(x.float(), ALL))


def test_instance_covariances_equal_those_of_torch() -> None:
    for image, found in zip(maps(), instance_covariances(maps()), strict=True):
        torch.testing.assert_close(found, torch.corrcoef(image.flatten(1)) * 20 / 19, rtol=1e-4, atol=1e-4)


def test_sensitivity_is_the_variance_over_the_two_views() -> None:
    plain, jittered = maps(5, 1), maps(5, 2)
    views = torch.stack([instance_covariances(plain), instance_covariances(jittered)])
    expected = views.var(0, correction=0).mean(0)
    whole = photometric_sensitivity([(plain, jittered)])
    torch.testing.assert_close(whole, expected)
    chunks = photometric_sensitivity([(plain[:1], jittered[:1]), (plain[1:], jittered[1:])])
    torch.testing.assert_close(chunks, expected)
    torch.testing.assert_close(whole, whole.T)
    other_images = photometric_sensitivity([(plain, jittered.flip(0))])
    assert (other_images - expected).abs().max() > 1e-3


def test_the_mask_finds_the_pairs_that_the_jitter_changes() -> None:
    """Channels 2 and 3 share a colour cast of varying strength; channels 0 and 1 share content that stays.

    The strength of the covariance does not find them, because channels 0 and 1 have a strong one too.
    """
    torch.manual_seed(0)
    x, cast = torch.randn(16, C, 8, 8).double(), torch.randn(16, 1, 8, 8).double() * 3
    x[:, 1] += x[:, 0]
    jittered = x.clone()
    jittered[:, 2:] += cast
    mask = covariance_mask(photometric_sensitivity([(x, jittered)]), clusters=2)
    assert mask.nonzero().tolist() == [[2, 3]]
    by_strength = covariance_mask(instance_covariances(x).abs().mean(0), clusters=2)
    assert by_strength.nonzero().tolist() == [[0, 1]]
    untouched = covariance_mask(photometric_sensitivity([(x, x)]))
    assert not untouched.any()
    assert isw_loss(x, untouched).item() == 0


def test_the_mask_is_strictly_upper_triangular_and_keeps_what_never_changes() -> None:
    sensitivity = torch.tensor([[9.0, 0.0, 0.5], [0.0, 9.0, 1.0], [0.5, 1.0, 9.0]])
    expected = torch.tensor([[False, False, True], [False, False, True], [False, False, False]])
    assert torch.equal(covariance_mask(sensitivity), expected)
    upper = torch.ones(3, 3).triu(1) > 0
    strongest = torch.zeros(3, 3, dtype=torch.bool)
    strongest[upper] = cluster_values(sensitivity[upper], 3) == 2
    assert not torch.equal(strongest, expected)  # wrong: only the largest cluster


def cost_of(values: list[float], labels: list[int]) -> float:
    total = 0.0
    for cluster in set(labels):
        own = [v for v, label in zip(values, labels, strict=True) if label == cluster]
        mean = sum(own) / len(own)
        total += sum((v - mean) ** 2 for v in own)
    return total


def least_cost(values: list[float], clusters: int) -> float:
    """Find the least cost over every way to cut the sorted values."""
    ordered = sorted(values)
    cuts = itertools.combinations_with_replacement(range(len(values) + 1), clusters - 1)
    return min(cost_of(ordered, [sum(i >= cut for cut in cut_set) for i in range(len(ordered))]) for cut_set in cuts)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.integers(-5, 5) | st.floats(-100, 100), min_size=1, max_size=9),
    clusters=st.integers(1, 4),
)
def test_clusters_have_the_least_cost(values: list[float], clusters: int) -> None:
    labels = cluster_values(torch.tensor(values, dtype=torch.float64), clusters).tolist()
    assert cost_of(values, labels) <= least_cost(values, clusters) + 1e-9 * (1 + max(v * v for v in values))
    assert set(labels) == set(range(min(clusters, len(set(map(float, values))))))
    pairs = list(zip(values, labels, strict=True))
    assert all(a[1] <= b[1] for a in pairs for b in pairs if a[0] <= b[0])  # ascending; equal values together


def lloyd(values: list[float], centres: list[float]) -> list[int]:
    """Run the usual k-means, which ends at the local optimum nearest to its start."""
    for _ in range(50):
        labels = [min(range(len(centres)), key=lambda k: abs(v - centres[k])) for v in values]
        own = [[v for v, label in zip(values, labels, strict=True) if label == k] for k in range(len(centres))]
        centres = [sum(o) / len(o) if o else c for o, c in zip(own, centres, strict=True)]
    return labels


def test_the_oracle_fails_on_a_local_optimum() -> None:
    values = [0.0, 1.0, 10.0, 11.0, 100.0, 101.0]
    local = lloyd(values, [0.0, 100.0, 101.0])
    assert cost_of(values, local) > least_cost(values, 3) + 1
    assert cluster_values(torch.tensor(values), 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_clusters_of_many_values() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.rand(300, generator=generator) * 1e-3, torch.rand(50, generator=generator) + 5])
    order = torch.randperm(350, generator=generator)
    assert torch.equal(cluster_values(values[order], 2), (order >= 300).long())


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_clusters_of_skewed_values_are_those_of_the_quadratic_program(clusters: int) -> None:
    """Most values are near 0 and few are large, as sensitivities are. The slow code tries every beginning."""
    values = torch.randn(60, generator=torch.Generator().manual_seed(clusters), dtype=torch.float64).mul(2).exp()
    ordered = values.sort().values.tolist()
    best = [0.0] + [math.inf] * 60
    for _ in range(clusters):
        best = [
            min((best[i] + cost_of(ordered[i:j], [0] * (j - i)) for i in range(j)), default=math.inf) for j in range(61)
        ]
    found = cost_of(values.tolist(), cluster_values(values, clusters).tolist())
    assert found == pytest.approx(best[60], rel=1e-9)


def test_clusters_of_no_values_and_of_wrong_values() -> None:
    assert cluster_values(torch.zeros(0), 3).tolist() == []
    assert not covariance_mask(torch.zeros(1, 1)).any()
    with pytest.raises(ConfigError, match="NaN"):
        cluster_values(torch.tensor([1.0, math.nan]), 2)
    with pytest.raises(ConfigError, match="got 0"):
        cluster_values(torch.tensor([1.0]), 0)


@pytest.mark.parametrize(
    ("shape", "mask", "decisive"),
    [
        ((3, C, 5, 4), ALL.float(), "(4, 4)"),
        ((3, C, 5, 4), ALL[:3, :3], "bool (3, 3)"),
        ((3, C, 1, 1), ALL, "1 x 1"),
    ],
)
def test_isw_refuses_a_mask_or_maps_of_another_shape(shape: tuple[int, ...], mask: Tensor, decisive: str) -> None:
    with pytest.raises(ConfigError) as caught:
        isw_loss(torch.zeros(shape), mask)
    assert decisive in str(caught.value)


def test_a_sensitivity_needs_two_views_of_the_same_images() -> None:
    with pytest.raises(ConfigError) as caught:
        photometric_sensitivity([(maps(3), maps(2))])
    assert "(2, 4, 5, 4)" in str(caught.value)
    with pytest.raises(ConfigError, match="no images"):
        photometric_sensitivity([])
