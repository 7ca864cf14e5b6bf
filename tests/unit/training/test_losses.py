"""Losses on identities against slow, obvious code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.training.losses import batch_hard_triplet, contrastive_loss, identity_loss


def slow_identity_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> float:
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(value) for value in row))
        for identity, value in enumerate(row):
            probability = (1 - smoothing) * (identity == target) + smoothing / len(row)
            total -= probability * (value - normalizer)
    return total / len(logits)


def slow_triplet(
    features: torch.Tensor, identities: list[int], margin: float | str, modalities: list[int] | None = None
) -> float:
    losses = []
    for i, anchor in enumerate(features):
        distance = [float((anchor - other).norm()) for other in features]
        positives = [j for j in range(len(features)) if j != i and identities[j] == identities[i]]
        if modalities is not None:
            across = [j for j in positives if modalities[j] != modalities[i]]
            positives = across or positives
        negatives = [j for j in range(len(features)) if identities[j] != identities[i]]
        if positives and negatives:
            gap = max(distance[j] for j in positives) - min(distance[j] for j in negatives)
            losses.append(math.log1p(math.exp(gap)) if margin == "soft" else max(0.0, gap + float(margin)))
    return sum(losses) / len(losses) if losses else 0.0


def slow_contrast(
    embeddings: torch.Tensor, identities: list[int], temperature: float, modalities: list[int] | None = None
) -> float:
    unit = [(row / row.norm()).tolist() for row in embeddings]
    losses = []
    for i, anchor in enumerate(unit):
        candidates = [j for j in range(len(unit)) if (j != i if modalities is None else modalities[j] != modalities[i])]
        positives = [j for j in candidates if identities[j] == identities[i]]
        if not positives or len(positives) == len(candidates):
            continue
        weight = {
            j: math.exp(sum(a * b for a, b in zip(anchor, unit[j], strict=True)) / temperature) for j in candidates
        }
        losses.append(-sum(math.log(weight[j] / sum(weight.values())) for j in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_identity_loss_equals_the_formula(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (7,), generator=generator)
    expected = slow_identity_loss(logits, targets, smoothing)
    assert identity_loss(logits, targets, smoothing).item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    identities=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    margin=st.sampled_from([0.3, 2.0, "soft"]),
    cross=st.booleans(),
)
def test_triplet_equals_a_loop_over_anchors(seed: int, identities: list[int], margin: float | str, cross: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(identities), 6, generator=generator, dtype=torch.float64) + 50.0
    modalities = torch.randint(2, (len(identities),), generator=generator)
    found = batch_hard_triplet(features, torch.tensor(identities), margin, modalities if cross else None)
    expected = slow_triplet(features, identities, margin, modalities.tolist() if cross else None)
    assert found.item() == pytest.approx(expected, abs=1e-7)


def test_triplet_gradient_is_that_of_the_distances() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(8, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    identities = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet(x, identities, "soft"), (features,))


@pytest.mark.parametrize("identities", [[0, 0, 0], [0, 1, 2], [0]])
def test_triplet_without_a_usable_anchor_is_zero_with_zero_gradient(identities: list[int]) -> None:
    features = torch.randn(len(identities), 4, requires_grad=True)
    loss = batch_hard_triplet(features, torch.tensor(identities), 0.3)
    loss.backward()
    assert loss.item() == 0.0
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_equal_features_cost_the_margin_and_have_a_finite_gradient() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    loss = batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), 0.3)
    loss.backward()
    assert loss.item() == pytest.approx(0.3)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_cross_modality_takes_the_positive_of_the_other_modality() -> None:
    features = torch.tensor([[0.0], [5.0], [1.0], [9.0]])
    identities, modalities = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 0])
    # Anchor 0 has the positives 5.0 (same modality, farther) and 1.0 (other modality).
    everything = batch_hard_triplet(features, identities, 100.0)
    across = batch_hard_triplet(features, identities, 100.0, modalities)
    assert everything.item() == pytest.approx(((5 - 9) + (5 - 4) + (4 - 8)) / 3 + 100)
    assert across.item() == pytest.approx(((1 - 9) + (4 - 4) + (4 - 8)) / 3 + 100)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    identities=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    temperature=st.sampled_from([0.1, 1.0]),
    cross=st.booleans(),
)
def test_contrast_equals_a_loop_over_anchors(seed: int, identities: list[int], temperature: float, cross: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(identities), 6, generator=generator, dtype=torch.float64) * 7.0
    modalities = torch.randint(2, (len(identities),), generator=generator)
    found = contrastive_loss(embeddings, torch.tensor(identities), modalities if cross else None, temperature)
    expected = slow_contrast(embeddings, identities, temperature, modalities.tolist() if cross else None)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_contrast_gradient_is_finite_and_that_of_the_formula() -> None:
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    identities, modalities = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, identities, modalities, 0.5), (embeddings,))


def test_contrast_without_a_usable_anchor_is_zero_with_zero_gradient() -> None:
    embeddings = torch.randn(4, 3, requires_grad=True)
    loss = contrastive_loss(embeddings, torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_contrast_across_modalities_ignores_images_of_the_same_modality() -> None:
    identities, modalities = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    separated = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    alike = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])  # identities of one modality look the same
    assert contrastive_loss(separated, identities, modalities) < 1e-3
    assert contrastive_loss(alike, identities, modalities) > 1.0
