"""Identification and verification rates equal those of double loops, of scikit-learn and of sampling.

The oracles refuse these wrong variants: a threshold that lets ties of unmatched queries pass, rows of the query's own
camera counted as pairs, a right answer that ties with a wrong one counted, unmatched queries taken for known ones,
intervals over pairs or queries in place of identities.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from reid.errors import DataError
from reid.evaluation.analysis import match_rates
from reid.evaluation.analysis.intervals import bootstrap_weights
from reid.evaluation.analysis.match_rates import STEP, score_histograms
from reid.evaluation.analysis.open_set import BestScores, best_scores, identification_rates
from reid.evaluation.labels import Labels

RATES = (0.0, 0.01, 0.1, 0.3, 0.5)


def case(seed=0, queries=60, gallery=200, identities=25, unmatched=8, dimension=16, noise=1.2):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((identities, dimension))
    queried = random.integers(0, identities, queries)
    in_gallery = random.integers(unmatched, identities, gallery)  # the first identities are not in the gallery
    vectors = centres[np.concatenate([queried, in_gallery])]
    vectors = vectors + noise * random.standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    labels = Labels(queried, in_gallery, random.integers(0, 3, queries), random.integers(0, 3, gallery))
    return vectors[:queries], vectors[queries:], labels


def valid_pairs(query, gallery, labels, junk=False):
    """(score, same identity, identity of the query) of all valid pairs, by a double loop over the labels."""
    scores = query @ gallery.T
    pairs = []
    for q in range(len(query)):
        for g in range(len(gallery)):
            same = labels.query_identities[q] == labels.gallery_identities[g]
            if junk or not (same and labels.query_cameras[q] == labels.gallery_cameras[g]):
                pairs.append((float(scores[q, g]), bool(same), int(labels.query_identities[q])))
    return pairs


def rates_at(pairs, threshold):
    same = [score >= threshold for score, right, _ in pairs if right]
    different = [score >= threshold for score, right, _ in pairs if not right]
    return np.mean(same), np.mean(different)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_rate_is_exact_at_its_threshold(seed):
    query, gallery, labels = case(seed)
    thresholds, true, false = score_histograms(query, gallery, labels).rates()
    pairs = valid_pairs(query, gallery, labels)
    for index in [0, *np.searchsorted(thresholds, [-0.5, -0.1, 0.0, 0.3, 0.6, 0.9]).tolist(), len(thresholds) - 1]:
        assert (true[index], false[index]) == pytest.approx(rates_at(pairs, thresholds[index]), abs=1e-12)
    assert (true[0], false[0], true[-1], false[-1]) == (1, 1, 0, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_curve_is_that_of_scikit_learn(seed):
    query, gallery, labels = case(seed)
    points = score_histograms(query, gallery, labels).operating_points([0.01, 0.1, 0.3], replicates=5)
    pairs = valid_pairs(query, gallery, labels)
    false, true, _ = roc_curve([right for _, right, _ in pairs], [s for s, _, _ in pairs], drop_intermediate=False)
    for point in points:
        expected = true[false <= point.wished].max()
        slack = np.mean([abs(s - point.threshold) < 2 * STEP for s, right, _ in pairs if right])
        assert expected - slack - 1e-12 <= point.true_match_rate.value <= expected + 1e-12
        assert point.false_match_rate <= point.wished


def test_wrong_pairs_differ():
    query, gallery, labels = case(0)
    hist = score_histograms(query, gallery, labels)
    with_junk = valid_pairs(query, gallery, labels, junk=True)
    pairs = valid_pairs(query, gallery, labels)
    assert len(with_junk) > len(pairs)
    assert hist.same.sum() == sum(right for _, right, _ in pairs)
    assert hist.different.sum() == sum(not right for _, right, _ in pairs)
    assert hist.same.sum() != sum(right for _, right, _ in with_junk)


def test_a_threshold_keeps_its_promise_and_is_the_lowest_that_does():
    query, gallery, labels = case(2)
    hist = score_histograms(query, gallery, labels)
    pairs = valid_pairs(query, gallery, labels)
    for wished in (0.0, 0.001, 0.05, 0.5, 0.99):
        threshold = hist.threshold_for(wished)
        assert rates_at(pairs, threshold)[1] <= wished
        assert rates_at(pairs, threshold - STEP)[1] > wished


def test_scores_on_a_threshold_and_beyond_one():
    """Inner products of exactly 1, 1/2, 0: "at least the threshold" counts a score that equals it."""
    query = np.float32([[1, 0, 0, 0]])
    gallery = np.float32([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0], [1.0005, 0, 0, 0]])
    labels = Labels(np.array([1]), np.array([1, 2, 2, 1]), np.array([0]), np.array([1, 1, 1, 1]))
    hist = score_histograms(query, gallery, labels)
    thresholds, true, false = hist.rates()
    half, one = np.searchsorted(thresholds, [0.5, 1.0])
    assert thresholds[half] == 0.5
    assert (false[half], false[half + 1]) == (0.5, 0)
    assert (true[one], true[one + 1]) == (1, 0.5)
    assert hist.threshold_for(0.5) == STEP
    assert hist.threshold_for(0) == 0.5 + STEP


def test_the_equal_error_rate():
    """Hand-worked: scores of the same 0.9, 0.8, 0.3, 0.7, of different ones 0.1, 0.2, 0.75, 0.4: one in four each."""
    scores = np.float32([0.9, 0.8, 0.3, 0.7, 0.1, 0.2, 0.75, 0.4])
    gallery = np.stack([scores, np.sqrt(1 - scores**2)], axis=1)
    labels = Labels(np.array([1]), np.array([1] * 4 + [2] * 4), np.array([0]), np.ones(8, int))
    rate, threshold = score_histograms(np.float32([[1, 0]]), gallery, labels).equal_error()
    assert rate == pytest.approx(0.25)
    assert 0.4 < threshold < 0.7


def test_the_equal_error_rate_is_where_the_curves_cross():
    query, gallery, labels = case(3)
    rate, threshold = score_histograms(query, gallery, labels).equal_error()
    true, false = rates_at(valid_pairs(query, gallery, labels), threshold)
    assert rate == pytest.approx(false, abs=0.005)
    assert rate == pytest.approx(1 - true, abs=0.005)


def test_the_interval_is_that_of_drawing_identities():
    query, gallery, labels = case(4, queries=120)
    wished = 0.05
    point = score_histograms(query, gallery, labels).operating_points([wished], replicates=200, seed=1)[0]
    pairs = valid_pairs(query, gallery, labels)
    people = np.unique(labels.query_identities)
    owned = {person: [[], []] for person in people.tolist()}
    for score, right, person in pairs:
        owned[person][0 if right else 1].append(score)

    def rate(drawn):
        same, different = (np.concatenate([owned[person][side] for person in drawn]) for side in (0, 1))
        return np.mean(same > np.sort(different)[::-1][int(wished * len(different))])

    random = np.random.default_rng(1)
    rates = [rate(people[random.integers(0, len(people), len(people))]) for _ in range(200)]
    low, high = np.quantile(rates, [0.025, 0.975])
    assert (point.true_match_rate.low, point.true_match_rate.high) == pytest.approx((low, high), abs=0.01)
    assert point.true_match_rate.low <= point.true_match_rate.value <= point.true_match_rate.high
    share, count = point.true_match_rate.value, sum(right for _, right, _ in pairs)
    if_pairs_were_drawn = 2 * 1.96 * np.sqrt(share * (1 - share) / count)
    assert if_pairs_were_drawn < 0.8 * (high - low)


def test_memory_decides_how_fine_the_histograms_by_identity_are(monkeypatch):
    query, gallery, labels = case(5)
    fine = score_histograms(query, gallery, labels)
    monkeypatch.setattr(match_rates, "BY_IDENTITY_BYTES", 2 * 25 * 300 * 8)
    monkeypatch.setattr(match_rates, "PAIRS_AT_ONCE", 450)
    coarse = score_histograms(query, gallery, labels)
    np.testing.assert_array_equal(fine.same, coarse.same)
    np.testing.assert_array_equal(fine.different, coarse.different)
    assert coarse.same_by_identity.shape[1] < fine.same_by_identity.shape[1] <= 4160
    for name in ("same", "different"):
        table = getattr(coarse, f"{name}_by_identity")
        assert table.nbytes <= 25 * 300 * 8
        np.testing.assert_array_equal(
            table.sum(axis=0), getattr(coarse, name).reshape(table.shape[1], -1).sum(axis=1)
        )  # fmt: skip
    one, other = (hist.operating_points([0.1], replicates=200)[0].true_match_rate for hist in (fine, coarse))
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.01)
    edges, same, different = coarse.coarse(26)
    assert len(edges) == 27
    assert (same.sum(), different.sum()) == (coarse.same.sum(), coarse.different.sum())


def all_bins_at_once(hist, wished, replicates):
    """Return the interval that all bins of all replicates give at once: the obvious form, which takes much memory."""
    (weights,) = bootstrap_weights(len(hist.same_by_identity), replicates, 0)
    tables = [weights @ table for table in (hist.same_by_identity, hist.different_by_identity)]
    tails = [np.append(np.cumsum(t[:, ::-1], axis=1)[:, ::-1], np.zeros((len(t), 1)), axis=1) for t in tables]
    true, false = (tail / tail[:, :1] for tail in tails)
    rates = []
    for t, f in zip(true, false, strict=True):
        after = next(index for index in range(len(f)) if f[index] <= wished)
        before = max(after - 1, 0)
        share = (f[before] - wished) / max(f[before] - f[after], np.finfo(float).tiny)
        rates.append(t[before] + share * (t[after] - t[before]))
    return tuple(np.quantile(rates, [0.025, 0.975]).tolist())


@pytest.mark.parametrize("wished", [0.0, 0.001, 0.05, 0.5])
def test_the_interval_needs_neither_empty_bins_nor_all_replicates_at_once(monkeypatch, wished):
    query, gallery, labels = case(6, queries=40, gallery=60, identities=12, unmatched=2)
    hist = score_histograms(query, gallery, labels)
    expected = all_bins_at_once(hist, wished, 50)
    monkeypatch.setattr(match_rates, "DRAWN_BYTES", 7 * 8 * 2000)
    monkeypatch.setattr(match_rates, "_at_least", watched := Watched(match_rates._at_least))
    found = hist.operating_points([wished], replicates=50)[0].true_match_rate
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    drawn = [counts for counts in watched.seen if counts.ndim == 2]
    assert len(drawn) > 2
    assert all(counts.nbytes <= 7 * 8 * 2000 for counts in drawn)


class Watched:
    """Calls a function and keeps what it was called with."""

    def __init__(self, call):
        self.call, self.seen = call, []

    def __call__(self, counts):
        self.seen.append(counts)
        return self.call(counts)


def slow_best(query, gallery, labels):
    scores = query @ gallery.T
    right, wrong = [], []
    for q in range(len(query)):
        same = labels.query_identities[q] == labels.gallery_identities
        own_camera = labels.query_cameras[q] == labels.gallery_cameras
        right.append(max(scores[q][same & ~own_camera], default=-np.inf))
        wrong.append(max(scores[q][~same], default=-np.inf))
    return np.array(right), np.array(wrong)


def slow_identification(right, wrong, wished):
    """Find the lowest threshold, of those just above the score of an unmatched query, with the wished false alarms."""
    unmatched, known = wrong[right == -np.inf], right > -np.inf
    allowed = [
        just_above
        for just_above in np.nextafter(unmatched, np.inf)
        if np.mean(unmatched >= just_above) <= wished
    ]  # fmt: skip
    threshold = min(allowed)
    hit = (right[known] > wrong[known]) & (right[known] >= threshold)
    return hit.mean(), np.mean(unmatched >= threshold), threshold


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_identification_equals_the_loop(seed):
    query, gallery, labels = case(seed)
    best = best_scores(query, gallery, labels)
    right, wrong = slow_best(query, gallery, labels)
    np.testing.assert_allclose(best.right, right, atol=1e-6)
    np.testing.assert_allclose(best.wrong, wrong, atol=1e-6)
    for result in identification_rates(best, RATES, replicates=50):
        rate, alarms, threshold = slow_identification(best.right, best.wrong, result.wished)
        assert (result.rate.value, result.false_alarm_rate) == pytest.approx((rate, alarms))
        assert result.threshold == threshold
        assert result.known + result.unmatched == len(query)
        assert result.rate.low <= result.rate.value <= result.rate.high
        assert result.unmatched == np.count_nonzero(best.right == -np.inf) > 0


def test_ties_of_unmatched_queries_and_with_wrong_answers():
    """Of ten unmatched queries four have one score: at 20 % of false alarms, none of these four may pass."""
    wrong = np.array([0.9, 0.8, 0.8, 0.8, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1, 0.6, 0.6, 0.6])
    right = np.array([-np.inf] * 10 + [0.95, 0.85, 0.6])
    best = BestScores(right, wrong, np.arange(13))
    fifth, half, everything = identification_rates(best, [0.2, 0.5, 0.9])
    assert (fifth.false_alarm_rate, fifth.rate.value) == (0.1, pytest.approx(2 / 3))
    assert (half.false_alarm_rate, half.rate.value) == (0.5, pytest.approx(2 / 3))
    assert fifth.threshold == np.nextafter(0.8, 1)
    # however low the threshold, the third known query ties with a wrong answer
    assert everything.rate.value == pytest.approx(2 / 3)
    passing = [np.mean(wrong[:10] >= threshold) for threshold in (0.8, fifth.threshold)]
    assert passing == [0.5, 0.1]  # a threshold at the tied score itself would break the promise


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, g, m: identification_rates(best_scores(q, g, m), [1.0]), "false-alarm rate.*1.0"),
        (lambda q, g, m: identification_rates(BestScores(np.ones(2), np.ones(2), np.arange(2)), [0.1]),
         "0 of 2 queries"),
        (lambda q, g, m: score_histograms(q, g, m).threshold_for(-0.1), "false-match rate"),
        (lambda q, g, m: score_histograms(q, g, m).coarse(7), "66560, got 7"),
        (lambda q, g, m: score_histograms(2 * q, g, m), "query_vectors: row 0"),
        (lambda q, g, m: score_histograms(q[:1], g[:1], Labels(*np.zeros((4, 1), int))), "only one of these"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(DataError, match=message):
        call(*case())


def test_operating_points_of_no_rate_say_so():
    with pytest.raises(DataError, match="false-match rate"):
        score_histograms(*case()).operating_points([])


def test_a_bound_on_memory_changes_nothing():
    query, gallery, labels = case()
    free, bound = (score_histograms(query, gallery, labels, memory) for memory in (None, 4 * len(gallery)))
    np.testing.assert_array_equal(free.same, bound.same)
    np.testing.assert_array_equal(free.different_by_identity, bound.different_by_identity)
    few = best_scores(query, gallery, labels, 4 * len(gallery))
    np.testing.assert_allclose(few.wrong, best_scores(query, gallery, labels).wrong, atol=1e-6)
