"""Balls of perturbations: closed forms, projections, and 8-bit values that never leave the ball."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reid.robustness.perturbation_ball import NORMS, change_of

norms = pytest.mark.parametrize("norm", NORMS)


def drawn(seed: int, scale: float, size: tuple[int, int] = (6, 4)) -> Tensor:
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(seed)) * scale


def exact_size(delta: Tensor, norm: str) -> list[float]:
    """The slow way, one image at a time."""
    found = []
    for image in delta.double().numpy():
        values = np.abs(image).ravel()
        found.append({"linf": values.max(), "l2": np.sqrt((values**2).mean()), "l1": values.mean()}[norm])
    return found


@norms
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.01, 0.4, 3.0, 90.0]), epsilon=st.sampled_from([0.3, 2, 7.5]))
@settings(max_examples=40, deadline=None)
def test_projected_and_rounded_changes_are_inside_the_ball(norm: str, seed: int, scale: float, epsilon: float) -> None:
    ball = NORMS[norm]
    delta = drawn(seed, scale)
    inside = ball.project(delta, epsilon)
    assert np.allclose(ball.measure(delta), exact_size(delta, norm))
    assert max(exact_size(inside, norm)) <= epsilon * (1 + 1e-6)
    whole = ball.quantize(inside, epsilon)
    assert torch.equal(whole, whole.round())
    assert max(exact_size(whole, norm)) <= epsilon * (1 + 1e-9)
    assert bool(((whole == 0) | (whole.sign() == inside.sign())).all())


@norms
def test_a_change_inside_the_ball_stays(norm: str) -> None:
    delta = drawn(0, 1.0)
    assert torch.allclose(NORMS[norm].project(delta, 200.0), delta)


@norms
def test_the_projection_is_the_nearest_point_of_the_ball(norm: str) -> None:
    delta, epsilon = drawn(1, 5.0), 2.0
    nearest = (NORMS[norm].project(delta, epsilon) - delta).square().sum((1, 2, 3))
    for seed in range(2, 60):
        other = NORMS[norm].project(delta + drawn(seed, 3.0), epsilon)
        assert bool(((other - delta).square().sum((1, 2, 3)) >= nearest - 1e-3).all())


@norms
def test_rounding_to_the_nearest_leaves_the_ball(norm: str) -> None:
    """The wrong variant: values just below one half above a whole number go up together."""
    epsilon = {"linf": 2.7, "l2": 0.6, "l1": 0.6}[norm]
    delta = torch.full((1, 3, 4, 4), epsilon)
    assert exact_size(delta.round(), norm)[0] > epsilon
    assert exact_size(NORMS[norm].quantize(delta, epsilon), norm)[0] <= epsilon


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_rounding_keeps_the_size_of_small_dense_changes(norm: str) -> None:
    """Truncation would lose a change of less than one grey level everywhere; in linf nothing else is inside."""
    whole = NORMS[norm].quantize(drawn(3, 0.3, (16, 8)), 0.5)
    assert min(exact_size(whole, norm)) > 0.9 * min(exact_size(drawn(3, 0.3, (16, 8)), norm))


@norms
def test_the_steepest_step_beats_every_other_step_of_its_size(norm: str) -> None:
    gradient, size = drawn(4, 1.0), 3.0
    room = torch.full_like(gradient, 1e6)
    best = (NORMS[norm].steepest(gradient, room, size) * gradient).sum((1, 2, 3))
    for seed in range(5, 60):
        other = NORMS[norm].project(drawn(seed, 50.0), size)
        assert bool(((other * gradient).sum((1, 2, 3)) <= best * (1 + 1e-5)).all())


def test_a_step_in_l1_uses_the_room_of_the_largest_gradients() -> None:
    gradient = torch.tensor([3.0, -2.0, 1.0]).view(1, 3, 1, 1)
    room = torch.tensor([5.0, 5.0, 5.0]).view(1, 3, 1, 1)
    step = NORMS["l1"].steepest(gradient, room, 2.0)  # 6 levels in all
    assert step.flatten().tolist() == [5.0, -1.0, 0.0]


@norms
def test_without_gradient_there_is_no_step(norm: str) -> None:
    nothing = torch.zeros(2, 3, 4, 4)
    assert not NORMS[norm].steepest(nothing, nothing + 9, 2.0).any()


def test_sizes_do_not_depend_on_the_size_of_the_image() -> None:
    for norm in NORMS:
        small, large = torch.full((1, 3, 2, 2), 10), torch.full((1, 3, 20, 10), 10)
        assert change_of(small * 0, small, norm) == change_of(large * 0, large, norm)
