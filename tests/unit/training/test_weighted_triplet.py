"""The weighted triplet loss agrees with a loop over anchors, and the loop refuses the wrong variants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from reid.config import Train
from reid.training.batches import TrainingBatch
from reid.training.losses import batch_hard_triplet, weighted_triplet
from reid.training.objective import TERMS, Outputs


def slow(
    features: torch.Tensor, identities: list[int], modalities: list[int] | None, squared: bool, variant: str = ""
) -> float:
    """Sum over the anchors, candidate by candidate, in plain Python."""
    losses = []
    for i, own in enumerate(identities):
        distances = [float((features[i] - other).norm()) for other in features]
        same = [j for j, name in enumerate(identities) if name == own and (j != i or variant == "self is positive")]
        if modalities is not None:
            same = [j for j in same if modalities[j] != modalities[i]] or same
        others = [j for j, name in enumerate(identities) if name != own]
        if not same or not others:
            continue
        sign = -1 if variant == "far negatives" else 1
        p = weighted([distances[j] for j in same], 1)
        n = weighted([distances[j] for j in others], -sign)
        gap = p - n
        if squared:
            square = gap * gap if variant == "without the sign" else math.copysign(gap * gap, gap)
            gap = min(max(square, -88.0), 88.0)
        losses.append(math.log1p(math.exp(gap)))
    return sum(losses) / max(len(losses), 1)


def weighted(values: list[float], sign: int) -> float:
    weights = [math.exp(sign * value) for value in values]
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def drawn(count: int, seed: int) -> tuple[torch.Tensor, list[int], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    identities = torch.randint(0, 3, (count,), generator=generator).tolist()
    return features, identities, torch.randint(0, 2, (count,), generator=generator).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000), st.booleans(), st.booleans())
def test_it_agrees_with_the_loop(count: int, seed: int, squared: bool, across: bool) -> None:
    features, identities, modalities = drawn(count, seed)
    given_modalities = torch.tensor(modalities) if across else None
    loss = weighted_triplet(features, torch.tensor(identities), given_modalities, squared=squared)
    expected = slow(features, identities, modalities if across else None, squared)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("variant", ["self is positive", "far negatives", "without the sign"])
def test_the_loop_refuses_wrong_variants(variant: str) -> None:
    features, identities, _ = drawn(9, 3)
    features = features + 1.5 * torch.tensor(identities)[:, None]  # so that gaps of both signs occur
    loss = weighted_triplet(features, torch.tensor(identities), squared=True).item()
    assert abs(slow(features, identities, None, True, variant) - loss) > 0.01


def test_distances_beyond_the_bound_stay_finite() -> None:
    features = (torch.tensor([[0.0], [1.0], [0.5]]) * 1e4).requires_grad_()
    loss = weighted_triplet(features, torch.tensor([0, 0, 1]), squared=True)
    loss.backward()
    assert loss.item() == pytest.approx(88.0)
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_a_batch_without_a_negative_has_no_loss_and_no_gradient() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    loss = weighted_triplet(features, torch.tensor([0, 0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("name", ["hard", "weighted", "weighted_squared"])
def test_the_recipe_chooses_the_loss(name: str) -> None:
    features, identities, modalities = drawn(9, 5)
    features, targets = features.float(), torch.tensor(identities)
    recipe = Train(triplet_margin=0.3 if name == "hard" else name, positives="cross_modality")
    batch = TrainingBatch(torch.zeros(9, 3, 8, 4), targets, torch.tensor(modalities), None, 9, recipe)
    term = TERMS["triplet"].loss
    assert not isinstance(term, type)
    found = term(batch, Outputs(features, functional.normalize(features), features))
    if name == "hard":
        expected = batch_hard_triplet(features, targets, 0.3, torch.tensor(modalities))
    else:
        expected = weighted_triplet(features, targets, torch.tensor(modalities), squared=name == "weighted_squared")
    assert torch.equal(found, expected)
