"""The exact search, which is the reference of all others, against sums computed in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reid.errors import DataError
from reid.retrieval.exact import exact_search, score_pairs, score_rows


def unit(random, rows, dimension):
    vectors = random.standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_equals_a_loop_in_python():
    random = np.random.default_rng(0)
    queries, gallery = unit(random, 5, 20), unit(random, 60, 20)
    ranking = exact_search(queries, gallery, 7)
    for q, query in enumerate(queries.tolist()):
        scored = [
            (-np.float32(math.fsum(a * b for a, b in zip(query, row, strict=True))), g)
            for g, row in enumerate(gallery.tolist())
        ]
        expected = sorted(scored)[:7]
        assert ranking.rows[q].tolist() == [g for _, g in expected]
        assert ranking.scores[q].tolist() == [-score for score, _ in expected]


@pytest.mark.parametrize("dimension", [1, 3, 8, 127, 512, 2048])
def test_scores_of_pairs_equal_those_of_rows_to_the_last_bit(dimension):
    random = np.random.default_rng(dimension)
    queries, vectors = (random.standard_normal((n, dimension)).astype(np.float32) for n in (20, 300))
    whole = np.stack([score_rows(query, vectors) for query in queries])
    query, row = np.divmod(random.permutation(whole.size), whole.shape[1])
    np.testing.assert_array_equal(score_pairs(queries, vectors, query, row), whole[query, row])


def test_equal_scores_put_the_lower_row_first():
    query = np.float32([[1, 0]])
    gallery = np.float32([[0, 1], [1, 0], [0.6, 0.8], [1, 0], [0, 1]])
    assert exact_search(query, gallery, 5).rows.tolist() == [[1, 3, 2, 0, 4]]


def test_only_kept_rows_answer():
    random = np.random.default_rng(1)
    queries, gallery = unit(random, 3, 8), unit(random, 10, 8)
    keep = np.zeros((3, 10), bool)
    keep[0, [2, 5]] = keep[1] = True
    ranking = exact_search(queries, gallery, 4, keep)
    assert ranking.counts.tolist() == [2, 4, 0]
    assert {row for row, _ in ranking.answers(0)} == {2, 5}
    assert ranking.answers(2) == []
    assert exact_search(queries, gallery, 99).rows.shape == (3, 10)


def test_equal_rows_have_equal_scores_at_any_position():
    random = np.random.default_rng(2)
    for dimension in (3, 64, 127, 700):
        query, row = unit(random, 2, dimension)
        assert len(np.unique(score_rows(query, np.tile(row, (5000, 1))))) == 1


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "keep", "value"),
    [
        (np.ones((1, 2)), np.ones((1, 3)), 1, None, r"\(1, 3\)"),
        (np.ones(2), np.ones((1, 2)), 1, None, r"\(2,\)"),
        (np.ones((1, 2)), np.ones((1, 2)), 0, None, "got 0"),
        (np.ones((1, 2)), np.ones((1, 2)), 1, np.ones((1, 3), bool), r"\(1, 3\)"),
    ],
)
def test_wrong_shapes_are_an_error(queries, gallery, k, keep, value):
    with pytest.raises(DataError, match=value):
        exact_search(queries.astype(np.float32), gallery.astype(np.float32), k, keep)
