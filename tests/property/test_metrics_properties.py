"""Properties that hold for the metrics of any vectors and labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reid.evaluation.analysis.match_rates import score_histograms
from reid.evaluation.analysis.open_set import best_scores
from reid.evaluation.labels import Labels
from reid.evaluation.metrics import MetricOptions, NoMatchError, market_metrics, score_metrics
from reid.retrieval.rerank import k_reciprocal

# No deadline: a busy machine may stall for seconds.
relaxed = settings(max_examples=60, deadline=None)

LABELS = ("query_identities", "gallery_identities", "query_cameras", "gallery_cameras")


@st.composite
def cases(draw):
    """Draw vectors on a lattice (exact inner products, many ties), and few identities and cameras."""
    queries, gallery = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = [random.choice(np.float32([-0.5, 0.5]), size=(rows, 4)) for rows in (queries, gallery)]
    sizes = (queries, gallery, queries, gallery)
    labels = [random.integers(0, count, size) for count, size in zip((4, 4, 3, 3), sizes, strict=True)]
    return vectors[0], vectors[1], dict(zip(LABELS, labels, strict=True))


@st.composite
def options(draw):
    """Draw a way to compute the metrics; every way has these properties."""
    return {
        "ties": draw(st.sampled_from(["worst", "mean"])),
        "variants": draw(st.sampled_from([(), ("trapezoid",), ("all_queries",), ("trapezoid", "all_queries")])),
        "cmc_over": draw(st.sampled_from(["rows", "identities"])),
    }


def evaluated(query, gallery, labels, **more):
    try:
        return market_metrics(query, gallery, **labels, **more)
    except NoMatchError:
        assume(False)


def assert_equal(one, other):
    exact = one.ties == "worst"  # means over orders are sums of fractions
    for field in ("average_precision", "inverse_negative_penalty", "first_match", "rank1", "cmc"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=0, atol=0 if exact else 1e-12)
    for field in ("mAP", "mINP", "r_precision", "map_at_r"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), rel=0, abs=0 if exact else 1e-12)


def rows_of(labels, keep):
    return {name: label[keep] if name.startswith("gallery") else label for name, label in labels.items()}


@relaxed
@given(cases(), options())
def test_values_are_fractions_in_order(case, how):
    metrics = evaluated(*case, **how)
    for value in (metrics.mINP, metrics.mAP):
        assert 0 < value <= 1
    assert 0 <= metrics.map_at_r <= metrics.r_precision <= 1
    assert np.all(np.diff(metrics.cmc) >= 0)
    assert 0 <= metrics.cmc[0] <= metrics.cmc[-1] <= 1
    assert metrics.queries_without_match == np.count_nonzero(metrics.first_match == 0)
    assert metrics.rank(1) == pytest.approx(np.nanmean(metrics.averaged(metrics.rank1)))
    assert metrics.mAP == pytest.approx(np.nanmean(metrics.averaged(metrics.average_precision)))
    matched = metrics.first_match > 0
    assert np.all(metrics.average_precision[matched] > 0)
    assert np.all(metrics.rank1[metrics.first_match == 1] == 1)


@relaxed
@given(cases())
def test_the_worst_order_of_ties_is_at_most_their_mean(case):
    worst, mean = evaluated(*case), evaluated(*case, ties="mean")
    for field in ("mAP", "mINP", "r_precision", "map_at_r"):
        assert getattr(worst, field) <= getattr(mean, field) + 1e-12
    assert np.all(worst.cmc <= mean.cmc + 1e-12)
    np.testing.assert_array_equal(worst.first_match, mean.first_match)


@relaxed
@given(cases(), st.integers(0, 2**32 - 1))
def test_without_ties_the_tie_rule_does_not_matter(case, seed):
    query, _, labels = case
    random = np.random.default_rng(seed)
    gallery = random.standard_normal((len(labels["gallery_identities"]), 4)).astype(np.float32)
    assert_equal(evaluated(query, gallery, labels, ties="mean"), evaluated(query, gallery, labels))


@relaxed
@given(cases(), options(), st.sampled_from([0.25, 2.0, 64.0]))
def test_a_monotone_transform_of_the_scores_changes_nothing(case, how, factor):
    query, gallery, labels = case
    assert_equal(evaluated(*case, **how), market_metrics(query * np.float32(factor), gallery, **labels, **how))
    # An affine one, s -> s + 1: a further dimension in which all vectors agree.
    ones = [np.ones((len(rows), 1), np.float32) for rows in (query, gallery)]
    shifted = [np.hstack(pair) for pair in zip((query, gallery), ones, strict=True)]
    assert_equal(evaluated(*case, **how), market_metrics(*shifted, **labels, **how))


@relaxed
@given(cases(), options(), st.sampled_from([np.exp, np.arctan, lambda s: s**3]))
def test_a_curved_monotone_transform_changes_nothing(case, how, transform):
    query, gallery, labels = case
    table = (query @ gallery.T).astype(np.float64)
    straight = evaluated(*case, **how)
    curved = score_metrics(lambda start, stop: transform(table[start:stop]), Labels(**labels), MetricOptions(**how))
    assert_equal(straight, curved)


@relaxed
@given(cases(), options(), st.randoms(use_true_random=False))
def test_the_order_of_the_gallery_changes_nothing(case, how, random):
    query, gallery, labels = case
    order = list(range(len(gallery)))
    random.shuffle(order)
    assert_equal(evaluated(*case, **how), market_metrics(query, gallery[order], **rows_of(labels, order), **how))


@relaxed
@given(cases(), options(), st.integers(0, 5))
def test_the_block_size_changes_nothing(case, how, block):
    assert_equal(evaluated(*case, **how), market_metrics(case[0], case[1], **case[2], **how, block=block + 1))


@relaxed
@given(cases(), options())
def test_names_instead_of_numbers_change_nothing(case, how):
    query, gallery, labels = case
    named = {name: [f"{name[-8:]} {label}" for label in column] for name, column in labels.items()}
    assert_equal(evaluated(*case, **how), market_metrics(query, gallery, **named, **how))


@relaxed
@given(cases(), options(), st.integers(0, 15))
def test_a_distractor_never_helps(case, how, corner):
    query, gallery, labels = case
    vector = np.float32([[0.5 if corner >> bit & 1 else -0.5 for bit in range(4)]])
    more = {name: np.append(label, 99) if name.startswith("gallery") else label for name, label in labels.items()}
    before, after = evaluated(*case, **how), market_metrics(query, np.vstack([gallery, vector]), **more, **how)
    matched = before.first_match > 0
    for field in ("average_precision", "inverse_negative_penalty", "rank1"):
        assert np.all(getattr(after, field)[matched] <= getattr(before, field)[matched] + 1e-12)
    for field in ("r_precision", "map_at_r"):
        assert getattr(after, field) <= getattr(before, field) + 1e-12
    assert np.all(after.cmc <= before.cmc + 1e-12)


@relaxed
@given(cases(), options())
def test_rows_left_out_might_as_well_not_exist(case, how):
    query, gallery, labels = case
    one = {name: label[:1] if name.startswith("query") else label for name, label in labels.items()}
    left_out = (one["query_identities"] == one["gallery_identities"]) & (one["query_cameras"] == one["gallery_cameras"])
    whole = evaluated(query[:1], gallery, one, **how)
    assert_equal(whole, market_metrics(query[:1], gallery[~left_out], **rows_of(one, ~left_out), **how))


@relaxed
@given(cases(), options(), st.integers(0, 2**32 - 1))
def test_locations_left_out_might_as_well_not_exist(case, how, seed):
    query, gallery, labels = case
    one = {name: label[:1] if name.startswith("query") else label for name, label in labels.items()}
    locations = np.random.default_rng(seed).integers(0, 3, len(gallery))
    whole = evaluated(query[:1], gallery, one, query_locations=[0], gallery_locations=locations, **how)
    assert_equal(whole, market_metrics(query[:1], gallery[locations != 0], **rows_of(one, locations != 0), **how))


@relaxed
@given(cases(), st.randoms(use_true_random=False))
def test_open_set_rates_do_not_depend_on_the_order_of_the_gallery(case, random):
    query, gallery, labels = case
    order = list(range(len(gallery)))
    random.shuffle(order)
    one, other = Labels(**labels), Labels(**rows_of(labels, order))
    best, again = best_scores(query, gallery, one), best_scores(query, gallery[order], other)
    np.testing.assert_array_equal(best.right, again.right)
    np.testing.assert_array_equal(best.wrong, again.wrong)
    assume(np.isfinite(best.right).any() and np.isfinite(best.wrong).any())
    hist, shuffled = score_histograms(query, gallery, one), score_histograms(query, gallery[order], other)
    np.testing.assert_array_equal(hist.same_by_identity, shuffled.same_by_identity)
    np.testing.assert_array_equal(hist.different, shuffled.different)
    thresholds, true, false = hist.rates()
    assert np.all(np.diff(true) <= 0)
    assert np.all(np.diff(false) <= 0)
    assert false[np.searchsorted(thresholds, hist.threshold_for(0.1))] <= 0.1


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 40), st.integers(1, 12), st.integers(1, 6))
def test_re_ranking_does_not_depend_on_the_order_of_a_gallery_without_ties(seed, queries, gallery, k1, k2):
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((queries + gallery, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query, rows = vectors[:queries], vectors[queries:]
    order = random.permutation(gallery)
    scores = k_reciprocal(query, rows, k1=k1, k2=k2)(0, queries)
    shuffled = k_reciprocal(query, rows[order], k1=k1, k2=k2)(0, queries)
    np.testing.assert_allclose(scores[:, order], shuffled, atol=1e-5)
    assert np.all((scores >= -1 - 1e-6) & (scores <= 0))


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 3), st.sampled_from([3, 64, 127, 700]))
def test_a_collapsed_embedding_scores_the_least_there_is(seed, wrong, right, dimension):
    """Where all vectors are equal, every wrong row stands first, whatever the order of rows and the rounding."""
    random = np.random.default_rng(seed)
    vector = random.standard_normal(dimension).astype(np.float32)
    vector /= np.linalg.norm(vector)
    identities = random.permutation([0] * right + [1] * wrong)
    metrics = market_metrics(
        np.tile(vector, (1, 1)),
        np.tile(vector, (right + wrong, 1)),
        query_identities=[0],
        gallery_identities=identities,
        query_cameras=[0],
        gallery_cameras=np.ones(right + wrong, int),
    )
    assert metrics.first_match.tolist() == [wrong + 1]
    assert metrics.mAP == pytest.approx(np.mean([i / (wrong + i) for i in range(1, right + 1)]))
