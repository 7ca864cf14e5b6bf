"""Losses on the predictions for unlabelled images, against slow, obvious code.

Wrong variants that these tests refuse: the entropy of the mean instead of the mean entropy; a consensus in which each
view has its own best candidate, or the whole batch has one.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reid.errors import ConfigError
from reid.training.losses import consensus_loss, entropy_loss


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def logits(rows: int = 6, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_entropy_equals_the_formula() -> None:
    expected = [-sum(p * math.log(p) for p in softmax(row)) for row in logits().tolist()]
    found = entropy_loss(logits()).item()
    assert found == pytest.approx(sum(expected) / 6, rel=1e-12)
    mean = torch.softmax(logits(), 1).mean(0)
    entropy_of_the_mean = -(mean * mean.log()).sum().item()
    assert abs(entropy_of_the_mean - found) > 0.1
    assert entropy_loss(torch.zeros(2, 5)).item() == pytest.approx(math.log(5))
    assert entropy_loss(torch.tensor([[0.0, 200.0]])).item() == pytest.approx(0, abs=1e-12)


def test_excluded_candidates_change_nothing() -> None:
    x = logits().requires_grad_()
    masked = torch.cat([x, torch.full((6, 2), -torch.inf)], 1)
    assert entropy_loss(masked).item() == pytest.approx(entropy_loss(x).item())
    assert consensus_loss(masked, masked).item() == pytest.approx(consensus_loss(x, x).item())
    (entropy_loss(masked) + consensus_loss(masked, masked)).backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_consensus_equals_the_formula() -> None:
    first, second = logits(seed=1), logits(seed=2)
    rows = [
        min(-(math.log(p) + math.log(q)) / 2 for p, q in zip(softmax(a), softmax(b), strict=True))
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    found = consensus_loss(first, second).item()
    assert found == pytest.approx(sum(rows) / 6, rel=1e-12)
    assert consensus_loss(second, first).item() == pytest.approx(found)
    each_with_its_own_best = sum(-math.log(max(softmax(row))) for row in (first.tolist() + second.tolist())) / 12
    assert found > each_with_its_own_best + 0.1
    one_best_for_the_batch = -(first.log_softmax(1) + second.log_softmax(1)).mean(0).amax().item() / 2
    assert one_best_for_the_batch > found + 0.1


def test_consensus_of_equal_and_of_certain_views() -> None:
    same = consensus_loss(logits(), logits()).item()
    assert same == pytest.approx(-torch.softmax(logits(), 1).amax(1).log().mean().item())
    sure, other = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])
    assert consensus_loss(sure, sure).item() == 0
    assert consensus_loss(sure, other).item() == pytest.approx(250)


def test_gradients_of_the_losses_on_predictions() -> None:
    assert torch.autograd.gradcheck(entropy_loss, (logits().requires_grad_(),))
    assert torch.autograd.gradcheck(consensus_loss, (logits(seed=1).requires_grad_(), logits(seed=2).requires_grad_()))


def test_consensus_needs_two_views_of_the_same_images() -> None:
    with pytest.raises(ConfigError) as caught:
        consensus_loss(logits(3), logits(1))
    assert "(1, 5)" in str(caught.value)
