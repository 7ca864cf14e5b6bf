"""Scores of samples against closed forms on Gaussians, slow loops, and the wrong variants that they must refuse."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from reid.errors import DataError
from reid.generation.sample_scores import (
    area_under_curve,
    classifier_auc,
    compare_samples,
    floor_scores,
    frechet_distance,
    frechet_of_moments,
    kernel_distance,
    kernel_mmd,
)


def covariance(seed: int, size: int) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((size, size + 1))
    return factor @ factor.T


@given(seed=st.integers(0, 200))
def test_frechet_of_covariances_that_commute(seed: int) -> None:
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.standard_normal((5, 5)))[0]
    one, other = random.uniform(0, 3, (2, 5))
    means = random.standard_normal((2, 5))
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(one) - np.sqrt(other)) ** 2).sum()
    found = frechet_of_moments(
        means[0], rotation @ np.diag(one) @ rotation.T, means[1], rotation @ np.diag(other) @ rotation.T
    )
    assert found == pytest.approx(expected, abs=1e-9)


@given(seed=st.integers(0, 200))
def test_frechet_of_two_dimensions_has_a_closed_form(seed: int) -> None:
    a, b = covariance(seed, 2), covariance(seed + 1000, 2)
    product = a @ b
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert frechet_of_moments(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected, abs=1e-8)
    assert frechet_of_moments(np.zeros(2), a, np.zeros(2), b) == pytest.approx(
        frechet_of_moments(np.zeros(2), b, np.zeros(2), a), abs=1e-8
    )


def test_the_root_of_the_product_as_if_it_were_symmetric_is_wrong() -> None:
    a, b = np.diag([1.0, 16.0]), np.array([[10.0, 6.0], [6.0, 10.0]])
    values = np.linalg.eigvalsh(a @ b)  # looks at one triangle only
    naive = np.trace(a) + np.trace(b) - 2 * np.sqrt(values.clip(0)).sum()
    elementwise = np.trace(a) + np.trace(b) - 2 * np.trace(np.sqrt(a @ b))
    exact = np.trace(a + b) - 2 * np.sqrt(np.linalg.eigvals(a @ b).real).sum()
    found = frechet_of_moments(np.zeros(2), a, np.zeros(2), b)
    assert found == pytest.approx(exact, abs=1e-9)
    assert abs(naive - exact) > 0.5
    assert abs(elementwise - exact) > 0.3


def test_frechet_of_samples_and_of_deficient_rank() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((40_000, 3))
    y = random.standard_normal((40_000, 3)) * [1, 2, 3] + [1, 0, 0]
    assert frechet_distance(x, y) == pytest.approx(1 + 1 + 4, abs=0.15)
    few = random.standard_normal((4, 30))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(frechet_distance(few, random.standard_normal((5, 30))))


def loop_mmd(x: np.ndarray, y: np.ndarray, biased: bool) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(u * v for u, v in zip(a, b, strict=True)) / len(a) + 1) ** 3)

    def within(rows: np.ndarray) -> float:
        values = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if biased or i != j]
        return float(np.mean(values))

    return within(x) + within(y) - 2 * float(np.mean([kernel(a, b) for a in x for b in y]))


def test_mmd_is_the_loop_without_pairs_of_a_row_with_itself() -> None:
    random = np.random.default_rng(1)
    x, y = random.standard_normal((7, 3)), random.standard_normal((5, 3)) + 0.3
    assert kernel_mmd(x, y) == pytest.approx(loop_mmd(x, y, biased=False), abs=1e-10)
    assert abs(kernel_mmd(x, y) - loop_mmd(x, y, biased=True)) > 0.1


def test_mmd_of_equal_populations_is_0_in_the_mean_and_the_biased_one_is_not() -> None:
    random = np.random.default_rng(2)
    pairs = [random.standard_normal((2, 20, 4)) for _ in range(400)]
    found = [kernel_mmd(x, y) for x, y in pairs]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * error
    biased = [loop_mmd(x, y, biased=True) for x, y in pairs[:10]]
    assert np.mean(biased) > 0.5


def test_mmd_of_two_gaussians_has_a_closed_form() -> None:
    size, shift = 6, np.full(6, 0.5)
    length = float(shift @ shift)

    def expected(first: float, second: float, third: float) -> float:
        return 1 + 3 * first / size + 3 * second / size**2 + third / size**3

    moved = expected(length, length**2 + 2 * length + size, length**3 + 6 * length**2 + 3 * length * size + 6 * length)
    centred, across = expected(0, size, 0), expected(0, size + length, 0)
    random = np.random.default_rng(3)
    found = kernel_mmd(random.standard_normal((3000, size)) + shift, random.standard_normal((3000, size)))
    assert found == pytest.approx(moved + centred - 2 * across, abs=0.05)
    mean, deviation = kernel_distance(
        random.standard_normal((3000, size)) + shift, random.standard_normal((3000, size)), seed=1
    )
    assert mean == pytest.approx(moved + centred - 2 * across, abs=0.15)
    assert 0 < deviation < 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_the_area_under_the_curve_counts_ties_half(higher: list[int], lower: list[int]) -> None:
    found = area_under_curve(np.array(higher, float), np.array(lower, float))
    assert found == pytest.approx(roc_auc_score([1] * len(higher) + [0] * len(lower), higher + lower))


def test_the_auc_of_two_gaussians_has_a_closed_form() -> None:
    random = np.random.default_rng(4)
    for distance in (0.0, 0.8, 2.0):
        x, y = random.standard_normal((2, 6000, 5)) * [1, 1, 2, 1, 1]
        y[:, 2] += 2 * distance
        assert classifier_auc(x, y) == pytest.approx(NormalDist().cdf(distance / np.sqrt(2)), abs=0.02)


def test_a_classifier_tested_on_what_it_learned_would_tell_equal_populations() -> None:
    random, honest, wrong = np.random.default_rng(5), [], []
    for seed in range(20):
        x, y = random.standard_normal((2, 40, 30))
        honest.append(classifier_auc(x, y, seed))
        pooled = np.cov(np.concatenate([x - x.mean(0), y - y.mean(0)]), rowvar=False)
        direction = np.linalg.solve(pooled, y.mean(0) - x.mean(0))
        wrong.append(area_under_curve(y @ direction, x @ direction))
    assert np.mean(honest) == pytest.approx(0.5, abs=0.07)
    assert np.mean(wrong) > 0.75


def test_scores_rise_with_the_difference_and_the_floor_is_low() -> None:
    random = np.random.default_rng(6)
    recorded = random.standard_normal((300, 8))
    near, far = (compare_samples(recorded, random.standard_normal((300, 8)) + shift) for shift in (0.2, 1.5))
    floor = floor_scores(recorded)
    assert floor.frechet < near.frechet + 0.3 < far.frechet
    assert abs(floor.kernel) < near.kernel < far.kernel
    assert abs(floor.auc - 0.5) < 0.15 < far.auc - 0.5
    assert compare_samples(recorded, recorded[:50], 3) == compare_samples(recorded, recorded[:50], 3)


def test_the_kernel_distance_does_not_depend_on_the_size_of_the_features() -> None:
    random = np.random.default_rng(7)
    recorded, written = random.standard_normal((2, 60, 8))
    one, other = (compare_samples(recorded * size, written * size + size) for size in (1.0, 0.01))
    assert one.kernel == pytest.approx(other.kernel, rel=1e-9)
    assert one.frechet == pytest.approx(10**4 * other.frechet, rel=1e-6)
    assert one.auc == pytest.approx(other.auc, abs=0.01)


def test_wrong_features_are_refused() -> None:
    good = np.zeros((8, 3))
    for wrong in (np.zeros((3, 3)), np.zeros((8, 2)), np.zeros(8), np.full((8, 3), np.nan)):
        with pytest.raises(DataError):
            compare_samples(good, wrong)
