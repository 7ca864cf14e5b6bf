"""What must hold for the metrics of any vectors and labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reid.evaluation import NoMatchError, market_metrics

LABELS = ("query_identities", "gallery_identities", "query_cameras", "gallery_cameras")


@st.composite
def cases(draw):
    """Vectors on a lattice (exact inner products, many ties), few identities and cameras."""
    queries, gallery = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = [random.choice(np.float32([-0.5, 0.5]), size=(rows, 4)) for rows in (queries, gallery)]
    sizes = (queries, gallery, queries, gallery)
    labels = [random.integers(0, count, size) for count, size in zip((4, 4, 3, 3), sizes, strict=True)]
    return vectors[0], vectors[1], dict(zip(LABELS, labels, strict=True))


def evaluated(query, gallery, labels, **more):
    try:
        return market_metrics(query, gallery, **labels, **more)
    except NoMatchError:
        assume(False)


def assert_equal(one, other):
    for field in ("average_precision", "inverse_negative_penalty", "first_match"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert (one.mAP, one.mINP, one.cmc.tolist()) == (other.mAP, other.mINP, other.cmc.tolist())


def rows_of(labels, keep):
    return {name: label[keep] if name.startswith("gallery") else label for name, label in labels.items()}


@given(cases())
def test_values_are_fractions_in_order(case):
    metrics = evaluated(*case)
    assert 0 < metrics.mINP <= 1
    assert 0 < metrics.mAP <= 1
    assert np.all(np.diff(metrics.cmc) >= 0)
    assert 0 <= metrics.cmc[0] <= metrics.cmc[-1] <= 1
    assert metrics.queries_without_match == np.count_nonzero(metrics.first_match == 0)


@given(cases(), st.sampled_from([0.25, 2.0, 64.0]))
def test_a_monotone_transform_of_the_scores_changes_nothing(case, factor):
    query, gallery, labels = case
    assert_equal(evaluated(*case), market_metrics(query * np.float32(factor), gallery, **labels))
    # An affine one, s -> s + 1: a further dimension in which all vectors agree.
    ones = [np.ones((len(rows), 1), np.float32) for rows in (query, gallery)]
    shifted = [np.hstack(pair) for pair in zip((query, gallery), ones, strict=True)]
    assert_equal(evaluated(*case), market_metrics(*shifted, **labels))


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_gallery_changes_nothing(case, random):
    query, gallery, labels = case
    order = list(range(len(gallery)))
    random.shuffle(order)
    assert_equal(evaluated(*case), market_metrics(query, gallery[order], **rows_of(labels, order)))


@given(cases(), st.integers(0, 5))
def test_the_block_size_changes_nothing(case, block):
    assert_equal(evaluated(*case), market_metrics(case[0], case[1], **case[2], block=block + 1))


@given(cases())
def test_names_instead_of_numbers_change_nothing(case):
    query, gallery, labels = case
    named = {name: [f"{name[-8:]} {label}" for label in column] for name, column in labels.items()}
    assert_equal(evaluated(*case), market_metrics(query, gallery, **named))


@given(cases(), st.integers(0, 15))
def test_a_distractor_never_helps(case, corner):
    query, gallery, labels = case
    vector = np.float32([[0.5 if corner >> bit & 1 else -0.5 for bit in range(4)]])
    more = {name: np.append(label, 99) if name.startswith("gallery") else label for name, label in labels.items()}
    before, after = evaluated(*case), market_metrics(query, np.vstack([gallery, vector]), **more)
    matched = before.first_match > 0
    assert np.all(after.average_precision[matched] <= before.average_precision[matched])
    assert np.all(after.inverse_negative_penalty[matched] <= before.inverse_negative_penalty[matched])
    assert np.all(after.cmc <= before.cmc)


@given(cases())
def test_rows_left_out_might_as_well_not_exist(case):
    query, gallery, labels = case
    one = {name: label[:1] if name.startswith("query") else label for name, label in labels.items()}
    left_out = (one["query_identities"] == one["gallery_identities"]) & (one["query_cameras"] == one["gallery_cameras"])
    whole = evaluated(query[:1], gallery, one)
    assert_equal(whole, market_metrics(query[:1], gallery[~left_out], **rows_of(one, ~left_out)))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 3), st.sampled_from([3, 64, 127, 700]))
def test_a_collapsed_embedding_scores_the_least_there_is(seed, wrong, right, dimension):
    """All vectors equal: every wrong row stands first, wherever the rows lie and whatever the rounding."""
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
