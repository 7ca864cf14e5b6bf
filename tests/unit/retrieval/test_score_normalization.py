"""Score normalization against double loops over the formulas, and what the formulas promise.

The loops refuse these wrong variants: cohorts of all cameras at once, a row in its own cohort, the statistics toward
its own camera instead of the other's, and one side only.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_embeddings import random_rows
from reid.errors import DataError
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.cohorts import measure_cohorts
from reid.retrieval.score_normalization import METHODS, NormalizedScores, normalize_among, normalize_scores

CAMERAS = ("door", "hall", "yard")


def crops(seed, count=120, cameras=CAMERAS, dimension=16):
    """Vectors with an offset of their camera, so that cameras differ, and the names of the cameras."""
    random = np.random.default_rng(seed)
    names = np.array(cameras)[random.integers(0, len(cameras), count)]
    offsets = random_rows(random, len(cameras), dimension)
    vectors = random_rows(random, count, dimension) + offsets[[cameras.index(name) for name in names]]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), names


def by_loops(vectors, cameras, method, k, *, split=True, itself=False, swapped=False, sides=2):
    """The formulas for all pairs of rows, one pair after the other, in float64."""
    exact, count = vectors.astype(np.float64), len(vectors)
    table = np.zeros((count, count))

    @cache
    def nearest(x, camera):
        cohort = [j for j in range(count) if (itself or j != x) and (not split or cameras[j] == camera)]
        scores = sorted((float(exact[x] @ exact[j]) for j in cohort), reverse=True)[: min(k, len(cohort))]
        return np.mean(scores), np.std(scores)

    for i in range(count):
        for j in range(count):
            first, second = (cameras[i], cameras[j]) if swapped else (cameras[j], cameras[i])
            sides_of = [nearest(i, first), nearest(j, second)]
            score = float(exact[i] @ exact[j])
            if method == "csls":
                table[i, j] = 2 * score - sum(mean for mean, _ in sides_of[:sides])
            else:
                table[i, j] = np.mean([(score - mean) / deviation for mean, deviation in sides_of[:sides]])
    return table


@pytest.mark.parametrize("method", METHODS)
def test_the_formulas(method):
    vectors, cameras = crops(0)
    scores = normalize_among(vectors, cameras, method, k=7)
    assert scores.is_applied
    expected = by_loops(vectors, cameras, method, 7)
    np.testing.assert_allclose(scores(0, len(vectors)), expected, atol=2e-4)
    for wrong in ({"split": False}, {"itself": True}, {"swapped": True}, {"sides": 1}):
        other = by_loops(vectors, cameras, method, 7, **wrong)
        assert np.abs(other - expected).max() > 0.01, wrong


@given(st.integers(0, 2**16), st.sampled_from(sorted(METHODS)), st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_symmetric_and_the_same_in_any_order_and_block(seed, method, k):
    vectors, cameras = crops(seed)
    scores = normalize_among(vectors, cameras, method, k=k)
    table = scores(0, len(vectors)).copy()
    np.testing.assert_allclose(table, table.T, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([scores(0, 50).copy(), scores(50, 120)]), table, atol=1e-4)
    order = np.random.default_rng(seed).permutation(len(vectors))
    moved = normalize_among(vectors[order], cameras[order], method, k=k)(0, len(vectors))
    np.testing.assert_allclose(moved, table[np.ix_(order, order)], atol=1e-4)


def test_a_constant_of_one_pair_of_cameras_changes_nothing():
    """An offset of one camera in a dimension of its own adds a constant to the scores within this camera."""
    vectors, cameras = crops(1)
    raised = np.concatenate([vectors, 0.4 * (cameras == "door")[:, None]], axis=1).astype(np.float32)
    rows = [CohortRows.of_cameras(cameras, part) for part in (vectors, raised)]
    plain, with_constant = (normalize_scores(part, part, "csls", k=5)(0, 120) for part in rows)
    np.testing.assert_allclose(with_constant, plain, atol=1e-5)
    assert np.abs(raised @ raised.T - vectors @ vectors.T).max() > 0.15


def test_all_neighbours_subtract_the_means_of_the_pair_of_cameras():
    vectors, cameras = crops(2)
    scores = normalize_among(vectors, cameras, "csls", k=999)(0, 120)
    products = vectors @ vectors.T
    here, there = np.flatnonzero(cameras == "door"), np.flatnonzero(cameras == "yard")
    block = products[np.ix_(here, there)]
    expected = 2 * block
    expected -= block.mean(axis=1, keepdims=True)
    expected -= block.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(scores[np.ix_(here, there)], expected, atol=1e-4)


def test_a_vector_that_is_similar_to_everything_wins_only_without():
    random = np.random.default_rng(3)
    common = random_rows(random, 1, 32)
    people = random_rows(random, 60, 32)

    def taken(noise):
        rows = people + 1.5 * common + noise * random_rows(random, 60, 32)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    query, gallery = taken(1.2), taken(1.2)
    hub = gallery.mean(axis=0, keepdims=True)
    vectors = np.concatenate([query, gallery, hub / np.linalg.norm(hub)]).astype(np.float32)
    cameras = ["door"] * 60 + ["hall"] * 61
    plain, scores = (table[:60, 60:] for table in (vectors @ vectors.T, normalize_among(vectors, cameras)(0, 121)))
    assert (plain.argmax(axis=1) == 60).mean() > 0.3
    assert (scores.argmax(axis=1) == 60).mean() < 0.1
    assert (scores.argmax(axis=1) == np.arange(60)).mean() > (plain.argmax(axis=1) == np.arange(60)).mean()


def test_queries_outside_of_the_gallery_have_statistics_of_their_own():
    vectors, cameras = crops(4, count=160)
    queries = CohortRows.of_cameras(cameras[:20], vectors[:20])
    gallery = CohortRows.of_cameras(cameras[20:], vectors[20:])
    gallery = CohortRows(gallery.vectors, gallery.cameras, gallery.keys, gallery.images + np.uint64(1000))
    scores = normalize_scores(queries, gallery, "csls", k=6)(0, 20)
    exact = vectors.astype(np.float64)
    i, j = 3, 50

    def nearest(x, camera):
        cohort = [row for row in range(20, 160) if row != x and cameras[row] == camera]
        return np.mean(sorted(float(exact[x] @ exact[row]) for row in cohort)[-6:])

    expected = 2 * exact[i] @ exact[20 + j] - nearest(i, cameras[20 + j]) - nearest(20 + j, cameras[i])
    assert scores[i, j] == pytest.approx(expected, abs=1e-4)


def test_a_query_whose_image_is_in_the_gallery_does_not_meet_itself():
    vectors, cameras = crops(5)
    rows = CohortRows.of_cameras(cameras, vectors)
    again = CohortRows(vectors.copy(), rows.cameras, rows.keys, rows.images)
    np.testing.assert_allclose(normalize_scores(again, rows)(0, 120), normalize_scores(rows, rows)(0, 120), atol=1e-5)
    strange = CohortRows(vectors.copy(), rows.cameras, rows.keys, rows.images + np.uint64(10**6))
    assert np.abs(normalize_scores(strange, rows)(0, 120) - normalize_scores(rows, rows)(0, 120)).max() > 0.05


def test_unknown_and_small_cameras_take_all_cameras():
    vectors, cameras = crops(6, count=150)
    cameras[:5] = "shed"
    cameras[5:10] = ""
    scores = normalize_among(vectors, cameras)
    assert scores.is_applied
    assert scores.stamp == "csls per camera pair, k 3 to 6; all cameras together for unknown and small ones"
    statistics = scores.gallery_statistics
    pool = statistics.cameras.index("/")
    assert set(scores.gallery_columns[:10].tolist()) == {pool}
    expected = np.sort(np.delete(vectors @ vectors[0], 0))[-6:].mean()
    assert statistics.mean[0, pool] == pytest.approx(expected, abs=1e-5)


def test_cameras_that_are_all_small_keep_their_own_crops():
    vectors, cameras = crops(11, count=60)
    scores = normalize_among(vectors, cameras)
    assert scores.gallery_statistics.counts[1:].max() < 32
    assert scores.is_applied
    np.testing.assert_allclose(scores(0, 60), by_loops(vectors, cameras, "csls", 3), atol=2e-4)
    unknown = normalize_among(vectors, [""] * 60)
    assert unknown.is_applied
    assert not normalize_among(vectors[:31], [""] * 31).is_applied


def test_too_few_crops_leave_the_scores_as_they_are():
    vectors, cameras = crops(7, count=15)
    scores = normalize_among(vectors, cameras)
    assert not scores.is_applied
    assert scores.stamp.startswith("too few crops")
    np.testing.assert_allclose(scores(0, 15), vectors @ vectors.T, atol=1e-6)


def test_equal_crops_give_equal_scores():
    vectors = np.tile(random_rows(np.random.default_rng(8), 1, 16), (80, 1))
    for method in METHODS:
        scores = normalize_among(vectors, ["door", "hall"] * 40, method)(0, 80)
        assert np.isfinite(scores).all()
        assert np.ptp(scores) < 1e-3


def test_wrong_input():
    vectors, cameras = crops(9, count=8)
    with pytest.raises(DataError, match="csls"):
        normalize_among(vectors, cameras, "cls")
    with pytest.raises(DataError, match="0"):
        normalize_among(vectors, cameras, k=0)
    rows = CohortRows.of_cameras(cameras, vectors)
    with pytest.raises(DataError, match="15"):
        measure_cohorts(CohortRows.of_cameras(cameras, vectors[:, :15]), rows, "csls")
    with pytest.raises(DataError, match="7"):
        CohortRows.of_cameras(cameras[:7], vectors)


def test_some_rows_of_a_block():
    vectors, cameras = crops(10)
    scores: NormalizedScores = normalize_among(vectors, cameras, "snorm", k=20)
    rows = np.array([100, 3, 50])
    some = scores.normalize(vectors[10:14] @ vectors[rows].T, np.arange(10, 14), rows)
    np.testing.assert_allclose(some, scores(10, 14)[:, rows], atol=1e-4)
