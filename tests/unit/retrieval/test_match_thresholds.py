"""False-match rates without labels: on scores whose distribution is known, and what is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reid.errors import DataError
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.cohorts import measure_cohorts
from reid.retrieval.match_thresholds import (
    MatchThresholds,
    MatchVerdict,
    false_alarm_rate,
    fit_thresholds,
    verdict_of,
)


def site(seed=0, people=150, crops=2, dimension=48, noise=0.5):
    """Crops of people by three cameras with offsets of different lengths, and who they show."""
    random = np.random.default_rng(seed)
    centres, offsets = random.standard_normal((people, dimension)), random.standard_normal((3, dimension))
    who = np.repeat(np.arange(people), 3 * crops)
    camera = np.tile(np.repeat(np.arange(3), crops), people)
    vectors = centres[who] + np.array([0.2, 0.5, 1.0])[camera][:, None] * offsets[camera]
    vectors += noise * random.standard_normal(vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return CohortRows.of_cameras([f"c{i}" for i in camera], vectors.astype(np.float32)), who


def test_the_rates_hold_for_every_pair_of_cameras():
    """Within a factor of three at one in a hundred, where one threshold for all pairs is far off for some."""
    rows, who = site()
    statistics = measure_cohorts(rows, rows, "csls")
    table = fit_thresholds(rows, statistics)
    scores = rows.vectors @ rows.vectors.T
    different = who[:, None] != who[None]
    rates = []
    for first in (1, 2, 3):
        for second in (1, 2, 3):
            pair = np.ix_(rows.cameras == statistics.cameras[first], rows.cameras == statistics.cameras[second])
            threshold = table.thresholds(0.01)[first, second]
            rates.append(float((scores[pair] >= threshold)[different[pair]].mean()))
    assert max(rates) < 0.03
    assert min(rates) > 0.002
    one = np.quantile(scores[different], 0.99)
    pairs = [np.ix_(rows.cameras == name, rows.cameras == name) for name in statistics.cameras[1:]]
    shared = [float((scores[pair] >= one)[different[pair]].mean()) for pair in pairs]
    assert max(shared) > 0.03


def test_a_rate_and_its_threshold_agree_and_unknown_cameras_take_the_pool():
    rows, _ = site(1)
    table = fit_thresholds(rows, measure_cohorts(rows, rows, "csls"))
    for rate in (0.3, 0.01, 1e-6):
        threshold = float(table.thresholds(rate)[1, 2])
        assert table.false_match_rate(threshold, "/c0", "/c1") == pytest.approx(rate, rel=1e-6)
    pooled = table.false_match_rate(0.0, "/", "/c1")
    assert table.false_match_rate(0.0, "/never", "/c1") == pooled
    assert np.isnan(table.false_match_rate(0.0, "vehicle/c0", "/c1"))
    one = fit_thresholds(rows, measure_cohorts(rows, rows, "csls"), ["/c0"])
    assert one.false_match_rate(0.0, "/c0", "/c1") == table.false_match_rate(0.0, "/c0", "/c1")
    other = fit_thresholds(rows, measure_cohorts(rows, rows, "csls"), ["/c2"])
    both = MatchThresholds.merged([one, other])
    for camera in ("/c0", "/c2"):
        assert both.false_match_rate(0.0, camera, "/c1") == table.false_match_rate(0.0, camera, "/c1")


def test_with_labels_the_rates_are_those_that_are_counted():
    rows, who = site(4)
    statistics = measure_cohorts(rows, rows, "csls")
    identities = [f"p{person}" for person in who]
    table = fit_thresholds(rows, statistics, identities=identities)
    assert table.source == "labels"
    scores = rows.vectors @ rows.vectors.T
    for rate in (0.1, 0.01, 1e-3):
        thresholds = table.thresholds(rate)
        for first in (1, 3):
            mask = np.ix_(rows.cameras == statistics.cameras[first], rows.cameras == statistics.cameras[2])
            wrong = scores[mask][who[rows.cameras == statistics.cameras[first]][:, None]
                                 != who[rows.cameras == statistics.cameras[2]][None]]  # fmt: skip
            reached = float((wrong >= thresholds[first, 2]).mean())
            assert rate - 1.5 / len(wrong) - 1e-4 <= reached <= rate + 1e-4
    unknown = fit_thresholds(rows, statistics, identities=[""] * len(who))
    assert np.isnan(unknown.scores).all()
    assert np.isnan(unknown.false_match_rate(0.0, "/c0", "/c1"))


def test_the_order_of_rows_changes_nothing():
    rows, _ = site(2)
    order = np.random.default_rng(0).permutation(len(rows.vectors))
    moved = rows.select(order)
    tables = [fit_thresholds(some, measure_cohorts(some, some, "csls")) for some in (rows, moved)]
    np.testing.assert_allclose(tables[0].scores, tables[1].scores, atol=1e-5)


def test_json_and_back():
    rows, _ = site(3)
    table = fit_thresholds(rows, measure_cohorts(rows, rows, "csls"), ["/c1"])
    again = MatchThresholds.from_json(table.to_json())
    assert (again.cameras, again.source) == (table.cameras, "scores")
    np.testing.assert_array_equal(again.scores, table.scores)
    np.testing.assert_array_equal(again.rates, table.rates)
    for text in ("{", "[]", '{"version": 1}', replace(table, source="guess").to_json()):
        with pytest.raises(DataError):
            MatchThresholds.from_json(text)
    with pytest.raises(DataError):
        table.thresholds(0)


def test_verdicts():
    assert verdict_of(1e-4) is MatchVerdict.SAME
    assert verdict_of(1e-2) is MatchVerdict.UNDECIDED
    assert verdict_of(float("nan")) is MatchVerdict.OTHER
    assert false_alarm_rate(0.0, 10**6) == 0
    assert false_alarm_rate(1.0, 1) == pytest.approx(1)
    assert false_alarm_rate(1e-9, 10**6) == pytest.approx(1e-3, rel=1e-3)
