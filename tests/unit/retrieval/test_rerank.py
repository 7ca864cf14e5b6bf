"""k-reciprocal re-ranking against the paper's dense formulas, and query expansion.

The dense formulas refuse these wrong variants: no expansion of the k-reciprocal set, no local query expansion,
distances that are not divided by the largest, lambda on the wrong side, the Euclidean distance instead of its square,
and neighbours in one direction instead of reciprocal ones.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.errors import DataError
from reid.evaluation.labels import Labels
from reid.evaluation.metrics import market_metrics, score_metrics
from reid.retrieval import rerank
from reid.retrieval.exact import exact_search
from reid.retrieval.neighbours import nearest_among, nearest_rows
from reid.retrieval.rerank import average_query_expansion, k_reciprocal


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(seed, queries=15, gallery=70, identities=9, dimension=24, noise=0.7):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((identities, dimension))
    rows = centres[random.integers(0, identities, queries + gallery)]
    vectors = unit(rows + noise * random.standard_normal(rows.shape))
    return vectors[:queries], vectors[queries:]


def dense(
    queries, gallery, k1=20, k2=6, weight=0.3, *, reciprocal=True, grow=True, power=2, normalise=True, swapped=False
):
    """The formulas of the paper with whole matrices and Python sets; distances (Q, G) float64."""
    vectors = np.concatenate([queries, gallery]).astype(np.float64)
    count = len(vectors)
    squared = np.array([[np.sum((a - b) ** 2) for b in vectors] for a in vectors])
    plain = squared ** (power / 2)
    if normalise:
        plain = plain / plain.max(axis=1, keepdims=True)
    by_distance = squared.copy()
    by_distance[np.arange(count), np.arange(count)] = -1
    # Rounded, so that rounding errors do not decide which of two equally near rows is nearer.
    order = np.argsort(np.round(by_distance, 9), axis=1, kind="stable")

    def mutual(row, k):
        near = order[row, : k + 1]
        return {int(g) for g in near if not reciprocal or row in order[g, : k + 1]}

    encoded = np.zeros((count, count))
    for row in range(count):
        members = mutual(row, k1)
        grown = set(members)
        for member in members if grow else ():
            theirs = mutual(member, int(np.around(k1 / 2)))
            if len(theirs & members) > 2 / 3 * len(theirs):
                grown |= theirs
        grown = sorted(grown)
        encoded[row, grown] = np.exp(-plain[row, grown])
        encoded[row] /= encoded[row].sum()
    encoded = np.stack([encoded[order[row, :k2]].mean(axis=0) for row in range(count)])
    jaccard = np.array(
        [
            [1 - np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in encoded[len(queries) :]]
            for a in encoded[: len(queries)]
        ]
    )
    share = 1 - weight if swapped else weight
    return (1 - share) * jaccard + share * plain[: len(queries), len(queries) :]


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (3, 8, 1.0), (50, 15, 0.3), (1, 2, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_dense_formulas(seed, k1, k2, weight):
    queries, gallery = clustered(seed)
    reranked = k_reciprocal(queries, gallery, k1=k1, k2=k2, weight=weight)
    expected = dense(queries, gallery, k1, k2, weight)
    np.testing.assert_allclose(-reranked(0, len(queries)), expected, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 30), st.integers(1, 12), st.integers(1, 9),
    st.floats(0.05, 1.5),
)  # fmt: skip
def test_equals_the_dense_formulas_at_any_size(seed, queries, gallery, k1, k2, noise):
    query, rows = clustered(seed, queries, gallery, 4, 6, noise)
    reranked = k_reciprocal(query, rows, k1=k1, k2=k2)
    np.testing.assert_allclose(-reranked(0, queries), dense(query, rows, k1, k2), atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"grow": False}, {"k2": 1}, {"normalise": False}, {"swapped": True}, {"power": 1}, {"power": 4},
     {"reciprocal": False}, {"k1": 19}],
    ids=str,
)  # fmt: skip
def test_wrong_variants_differ(wrong):
    queries, gallery = clustered(0)
    reranked = k_reciprocal(queries, gallery)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(-reranked(0, len(queries)), dense(queries, gallery, **wrong), atol=1e-4)


def test_blocks_of_queries_and_chunks_of_rows_change_nothing(monkeypatch):
    queries, gallery = clustered(3)
    whole = k_reciprocal(queries, gallery)(0, len(queries))
    monkeypatch.setattr(rerank, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 100)
    monkeypatch.setattr("reid.retrieval.neighbours.SMALLEST_BLOCK", 1)
    monkeypatch.setattr("reid.retrieval.neighbours.LARGEST_BLOCK", 11)
    scores = k_reciprocal(queries, gallery)
    parts = [scores(start, min(start + 4, len(queries))) for start in range(0, len(queries), 4)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_copies_of_one_image_equal_the_dense_formulas():
    queries, gallery = clustered(4, gallery=30)
    gallery = np.concatenate([gallery, gallery[:10], queries[:3], gallery[:5]])
    reranked = k_reciprocal(queries, gallery, k1=8, k2=3)
    np.testing.assert_allclose(-reranked(0, len(queries)), dense(queries, gallery, 8, 3), atol=1e-4)


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_nearly_equal_vectors_have_scores_in_range(noise):
    random = np.random.default_rng(11)
    vectors = unit(random.standard_normal(32) + noise * random.standard_normal((200, 32)))
    scores = k_reciprocal(vectors[:20], vectors[20:])(0, 20)
    assert np.all((scores >= -1) & (scores <= 0))


def test_re_ranking_raises_map_of_noisy_clusters():
    random = np.random.default_rng(10)
    centres = random.standard_normal((40, 32))
    identities = np.repeat(np.arange(40), 12)
    vectors = unit(centres[identities] + 1.6 * random.standard_normal((480, 32)))
    is_query = np.arange(480) % 12 == 0
    labels = {
        "query_identities": identities[is_query],
        "gallery_identities": identities[~is_query],
        "query_cameras": np.zeros(40, int),
        "gallery_cameras": np.ones(440, int),
    }
    plain = market_metrics(vectors[is_query], vectors[~is_query], **labels)
    better = score_metrics(k_reciprocal(vectors[is_query], vectors[~is_query]), Labels(**labels))
    assert better.mAP > plain.mAP + 0.05


def test_the_stamp_has_every_parameter():
    queries, gallery = clustered(5)
    assert k_reciprocal(queries, gallery, k1=7, k2=2, weight=0.25).stamp == "k-reciprocal, k1 7, k2 2, lambda 0.25"


def lattice(random: np.random.Generator, rows: int) -> np.ndarray:
    """Return unit vectors with many equal scores."""
    return random.choice(np.float32([-0.25, 0.25]), size=(rows, 16))


def scattered(random: np.random.Generator, rows: int) -> np.ndarray:
    return unit(random.standard_normal((rows, 48)))


def collapsed(random: np.random.Generator, rows: int) -> np.ndarray:
    """Return vectors that are equal except for rounding errors."""
    return unit(random.standard_normal(24) + 1e-7 * random.standard_normal((rows, 24)))


@pytest.mark.parametrize("make", [lattice, scattered])
def test_neighbours_are_those_of_the_exact_search(make):
    vectors = make(np.random.default_rng(6), 900)
    queries = vectors[:60]
    found = nearest_rows(queries, vectors, 9)
    np.testing.assert_array_equal(found.rows, exact_search(queries, vectors, 9).rows)
    check_scores(found, queries, vectors)


@pytest.mark.parametrize("make", [lattice, scattered, collapsed])
@pytest.mark.parametrize(("rows", "k"), [(1, 3), (5, 9), (63, 1), (64, 64), (300, 9), (300, 100)])
def test_neighbours_of_one_another_are_those_of_the_exact_search(make, rows, k, monkeypatch):
    """Blocks are smaller and larger than the lists, and lists are shortened while they grow.

    This refuses ties in the order of the matrix product, pairs of rows in two blocks that enter one list only, and a
    row that is not its own first neighbour.
    """
    monkeypatch.setattr("reid.retrieval.neighbours.BLOCK_BYTES", 0)  # 64 rows at a time
    vectors = make(np.random.default_rng(rows + k), rows)
    expected = exact_search(vectors, vectors, rows).rows
    expected = np.array([[i, *(row for row in line if row != i)] for i, line in enumerate(expected)])
    found = nearest_among(vectors, k)
    np.testing.assert_array_equal(found.rows, expected[:, :k])
    check_scores(found, vectors, vectors)


def check_scores(found, queries, vectors):
    products = queries @ vectors.T
    np.testing.assert_allclose(found.scores, np.take_along_axis(products, found.rows, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.least, products.min(axis=1), atol=1e-6)


def test_rounding_of_the_product_does_not_choose_neighbours(monkeypatch):
    """The product gets the largest error of a float32 sum; the lists stay those of the exact search."""
    random = np.random.default_rng(7)
    base = unit(random.standard_normal((40, 64)))
    vectors = unit(np.repeat(base, 20, axis=0) + 1e-6 * random.standard_normal((800, 64)))
    expected = exact_search(vectors[:30], vectors, 12)
    matmul = np.matmul

    def noisy(a, b, out):
        matmul(a, b, out=out)
        out += random.uniform(-1, 1, out.shape).astype(np.float32) * np.float32(64 * 2.0**-25)
        return out

    monkeypatch.setattr("reid.retrieval.neighbours.np.matmul", noisy)
    found = nearest_rows(vectors[:30], vectors, 12)
    np.testing.assert_array_equal(found.rows, expected.rows)
    among = nearest_among(vectors, 12)
    whole = exact_search(vectors, vectors, 13).rows
    for i, rows in enumerate(whole):
        assert among.rows[i].tolist() == [i, *[row for row in rows if row != i][:11]]


def test_query_expansion_is_the_mean_with_the_nearest():
    queries, gallery = clustered(8)
    expanded = average_query_expansion(queries, gallery, 3)
    for query, result in zip(queries, expanded, strict=True):
        best = sorted(range(len(gallery)), key=lambda g: -float(gallery[g] @ query))[:3]
        mean = (query + gallery[best].sum(axis=0)) / 4
        np.testing.assert_allclose(result, mean / np.linalg.norm(mean), atol=1e-6)
    assert not np.allclose(expanded, average_query_expansion(queries, gallery, 2))
    assert not np.allclose(expanded, unit(gallery[nearest_rows(queries, gallery, 3).rows].sum(axis=1)))


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (lambda q, g: k_reciprocal(q, g, k1=0), "0, 6 and"),
        (lambda q, g: k_reciprocal(q, g, weight=1.5), r"20, 6 and 1\.5"),
        (lambda q, g: k_reciprocal(q[:, :3], g), r"\(15, 3\)"),
        (lambda q, g: k_reciprocal(q[:0], g), r"got \(0, 24\)"),
        (lambda q, g: k_reciprocal(2 * q, g), "unit length"),
        (lambda q, g: average_query_expansion(q, g, 0), "got 0"),
        (lambda q, g: average_query_expansion(q, g[:0], 2), "2 and 0"),
        (lambda q, g: average_query_expansion(q, -q[:1], 1), "query 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, value):
    with pytest.raises(DataError, match=value) as caught:
        call(*clustered(9))
    assert "\n" not in str(caught.value)
