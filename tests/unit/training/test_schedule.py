"""Learning rate and ramp at their corners."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from reid.training.schedule import learning_rate, ramp


def rates(steps: int, warmup: int, final: float = 0.1) -> list[float]:
    return [learning_rate(s, steps=steps, warmup=warmup, peak=2.0, final=final) for s in range(steps)]


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert rates(steps=20, warmup=4)[:4] == [0.5, 1.0, 1.5, 2.0]


def test_cosine_starts_at_the_peak_halves_in_the_middle_and_ends_at_the_final_part() -> None:
    found = rates(steps=25, warmup=4)
    assert found[4] == 2.0
    assert found[14] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # 4 .. 24, half-way
    assert found[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(found[4:]))


def test_a_quarter_of_the_cosine() -> None:
    expected = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates(steps=21, warmup=0)[5] == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "warmup", "last"), [(1, 0, 0.2), (5, 5, 2.0), (5, 10, 1.0), (5, 4, 0.2)])
def test_short_trainings(steps: int, warmup: int, last: float) -> None:
    assert rates(steps, warmup)[-1] == pytest.approx(last)


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_training_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.9, got {step}"):
        learning_rate(step, steps=10, warmup=0, peak=1.0, final=0.0)


@pytest.mark.parametrize(
    ("epoch", "weight"), [(0.0, 0.0), (3.99, 0.0), (4.0, 0.0), (5.0, 0.5), (6.0, 1.0), (100.0, 1.0)]
)
def test_ramp_is_zero_then_linear_then_one(epoch: float, weight: float) -> None:
    assert ramp(epoch, start=4.0, length=2.0) == pytest.approx(weight)


def test_a_ramp_without_length_is_a_step() -> None:
    assert [ramp(e, start=1.0, length=0.0) for e in (0.0, 0.99, 1.0, 2.0)] == [0.0, 0.0, 1.0, 1.0]
