"""Bootstrap intervals and paired comparisons equal loops, enumeration and theory.

The tests refuse these wrong variants: queries drawn where identities should be, the mean of
identity means in place of the mean over queries, a one-sided p-value, a p-value of unpaired runs.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from reid.errors import DataError
from reid.evaluation.analysis import intervals
from reid.evaluation.analysis.intervals import bootstrap_mean, bootstrap_weights, metric_intervals, paired_difference
from reid.evaluation.metrics import market_metrics


def slow_means(values, identities, replicates, seed):
    """Draw identities one by one, and average the values of their queries."""
    random = np.random.default_rng(seed)
    people = sorted(set(identities))
    means = []
    for _ in range(replicates):
        drawn = [people[i] for i in random.integers(0, len(people), len(people))]
        brought = [
            value for person in drawn for value, owner in zip(values, identities, strict=True) if owner == person
        ]
        means.append(np.mean(brought))
    return means


def uneven(seed=0):
    """Identities with 1 to 20 queries, whose values are alike within an identity."""
    random = np.random.default_rng(seed)
    identities = np.repeat(np.arange(40), random.integers(1, 21, 40))
    values = random.uniform(0, 1, 40)[identities] + 0.05 * random.standard_normal(len(identities))
    return values, identities


def test_equals_drawing_identities_one_by_one():
    values, identities = uneven()
    interval = bootstrap_mean(values, identities, replicates=300, seed=4)
    means = slow_means(values.tolist(), identities.tolist(), 300, 4)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_wrong_ways_to_draw_differ():
    values, identities = uneven()
    right = bootstrap_mean(values, identities)
    too_sure = bootstrap_mean(values)
    assert too_sure.high - too_sure.low < 0.6 * (right.high - right.low)
    by_identity = np.array([values[identities == i].mean() for i in range(40)])
    assert abs(bootstrap_mean(by_identity).value - right.value) > 0.005


def test_the_interval_of_a_mean_is_as_wide_as_theory_says_and_covers():
    random = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        values = random.uniform(0, 1, 100)
        interval = bootstrap_mean(values, replicates=400, seed=trial)
        inside += interval.low <= 0.5 <= interval.high
    assert 0.89 <= inside / 200 <= 0.99
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.15)
    narrow = bootstrap_mean(values, level=0.5, replicates=400, seed=trial)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_the_seed_decides_and_the_memory_does_not(monkeypatch):
    values, identities = uneven()
    once = bootstrap_mean(values, identities, seed=3)
    assert bootstrap_mean(values, identities, seed=3) == once
    assert bootstrap_mean(values, identities, seed=5) != once
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 1000)
    assert bootstrap_mean(values, identities, seed=3) == once


def test_weights_count_what_is_drawn():
    weights = np.concatenate(list(bootstrap_weights(7, 500, 2)))
    assert weights.shape == (500, 7)
    assert np.all(weights.sum(axis=1) == 7)
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


def test_unmatched_queries_stay_out_unless_all_queries_count():
    random = np.random.default_rng(2)
    vectors = random.standard_normal((60, 8)).astype(np.float32)
    labels = {
        "query_identities": random.integers(0, 9, 20),
        "gallery_identities": random.integers(0, 6, 40),
        "query_cameras": np.zeros(20, int),
        "gallery_cameras": np.ones(40, int),
    }
    for variants in ((), ("all_queries",)):
        metrics = market_metrics(vectors[:20], vectors[20:], **labels, variants=variants)
        assert metrics.queries_without_match > 0
        found = metric_intervals(metrics, labels["query_identities"], replicates=200)
        assert found["mAP"].value == pytest.approx(metrics.mAP)
        assert found["mINP"].value == pytest.approx(metrics.mINP)
        assert found["rank1"].value == pytest.approx(metrics.rank(1))
        assert all(interval.low <= interval.value <= interval.high for interval in found.values())


def exact_p(differences):
    """All 2^n exchanges of the two runs."""
    observed = abs(sum(differences)) - 1e-12
    signs = list(product((-1, 1), repeat=len(differences)))
    return np.mean([abs(np.dot(sign, differences)) >= observed for sign in signs])


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.3])
def test_the_p_value_is_that_of_all_exchanges(shift):
    random = np.random.default_rng(3)
    first = random.uniform(0, 1, 12)
    second = first + shift + 0.3 * random.standard_normal(12)
    result = paired_difference(first, second, replicates=20_000)
    assert result.p_value == pytest.approx(exact_p(second - first), abs=0.012)
    assert paired_difference(second, first, replicates=20_000).p_value == pytest.approx(result.p_value)  # two-sided


def test_hits_and_misses_are_compared_by_whole_steps():
    """Values of 0 and 1: sums tie often, and rounding must not decide; 3 of 4 changes for the better is nothing."""
    first = np.array([0.0] * 7 + [1.0] * 13)
    second = np.array([1.0] * 3 + [0.0] * 4 + [1.0] * 12 + [0.0])
    result = paired_difference(first, second, replicates=20_000)
    assert (result.wins, result.losses, result.draws) == (3, 1, 16)
    assert result.p_value == pytest.approx(10 / 16, abs=0.02)  # 3:1 or worse, either way: 2 (1 + 4) / 16
    tenth = paired_difference(0.1 * first, 0.1 * second, replicates=20_000)
    assert tenth.p_value == result.p_value


def test_identities_are_exchanged_as_one():
    """One person with 30 queries improves: that is one observation, and not thirty."""
    first, second = np.zeros(36), np.zeros(36)
    second[:30] = 1
    identities = [0] * 30 + [1, 2, 3, 4, 5, 6]
    assert paired_difference(first, second).p_value < 0.001
    assert paired_difference(first, second, identities).p_value == 1.0


def test_equal_runs_are_not_different():
    values = np.random.default_rng(4).uniform(0, 1, 50)
    same = paired_difference(values, values)
    assert (same.p_value, same.difference.value, same.wins, same.losses, same.draws) == (1, 0, 0, 0, 50)


def test_who_wins_where():
    first = np.array([0.5, np.nan, 0.2, 0.9, 0.4])
    second = np.array([0.6, np.nan, 0.9, 0.1, 0.4])
    result = paired_difference(first, second)
    assert result.order.tolist() == [2, 0, 4, 3]
    assert (result.wins, result.losses, result.draws) == (2, 1, 1)
    assert result.difference.value == pytest.approx(0)
    assert np.isnan(result.differences[1])


def test_pairs_tell_more_than_two_separate_runs():
    random = np.random.default_rng(5)
    first = random.uniform(0, 1, 300)
    second = first + 0.02 + 0.01 * random.standard_normal(300)
    assert paired_difference(first, second).p_value < 0.001
    assert paired_difference(first, random.permutation(second)).p_value > 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([0.1, 0.2], [0.1]), r"\(2,\) and \(1,\)"),
        (lambda: paired_difference([0.1, np.nan], [0.1, 0.2]), "query 1"),
        (lambda: bootstrap_mean([[0.1]]), r"\(1, 1\)"),
        (lambda: bootstrap_mean([np.nan]), "1 queries"),
        (lambda: bootstrap_mean([0.5], level=1.0), "level.*1.0"),
        (lambda: bootstrap_mean([0.5], replicates=0), "replicates.* 0"),
        (lambda: bootstrap_mean([0.5], ["a", "b"]), r"identities.*\(1,\)"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(DataError, match=message):
        call()
