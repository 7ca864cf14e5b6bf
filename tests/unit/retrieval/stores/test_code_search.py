"""The search by short codes gives the answers of the exact search, and falls back where codes say too little."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_embeddings import assert_same_ranking, random_rows, tied_rows
from helpers.store_contract import columns_of
from reid.retrieval.exact import exact_search
from reid.retrieval.faiss_index import pair_products
from reid.retrieval.stores import code_scan, code_search, flat_store
from reid.retrieval.stores.flat_store import FlatStore
from reid.retrieval.stores.row_codes import CodedQueries, RowCodes, map_codes, write_codes
from reid.retrieval.stores.row_numbers import camera_order


@pytest.fixture(params=[True, False], ids=["bytes", "vectors"])
def byte_products(request, monkeypatch):
    """Both kinds of processors."""
    monkeypatch.setattr(code_search, "has_byte_products", lambda: request.param)


@pytest.fixture
def always(monkeypatch):
    """Codes are used for the smallest store, in tiles and scans of a few rows."""
    for name, value in (("FEWEST_CODED", 1), ("ROWS_PER_RANK", 0)):
        monkeypatch.setattr(flat_store, name, value)
    for name, value in (
        ("MOST_RUNS", 2), ("SCANNED_AT_LEAST", 1), ("SCANNED_PER_RANK", 1), ("LARGEST_SHARE", 1),
    ):  # fmt: skip
        monkeypatch.setattr(code_scan, name, value)
    for name, value in (("TILE_ROWS", 64), ("SHORTEST_RUN", 8), ("QUERIES_AT_ONCE", 7)):
        monkeypatch.setattr(code_search, name, value)


def keep_of(name, random, rows):
    """Which rows may answer: scattered ones, runs, or runs with holes."""
    if name == "scattered":
        return random.random(rows) < 0.1
    if name == "all":
        return np.ones(rows, bool)
    keep = np.zeros(rows, bool)
    keep[rows // 8 : rows // 3] = keep[rows // 2 : rows - 40] = True
    if name == "holes":
        keep[random.integers(0, rows, rows // 30)] = False
    return keep


def spread_rows(random, rows):
    """Vectors near each other, whose numbers have very different ranges."""
    vectors = (random_rows(random, rows, 24) * np.geomspace(1e-6, 1, 24) + 0.2).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("queries", [1, 2, 9, 30])
@pytest.mark.parametrize(
    "make",
    [lambda random, rows: random_rows(random, rows, 24), tied_rows, spread_rows],
    ids=["random", "ties", "spread"],
)
@pytest.mark.parametrize("kept", ["all", "scattered", "runs", "holes"])
@pytest.mark.usefixtures("always", "byte_products")
def test_equals_the_exact_search(make, kept, queries):
    random = np.random.default_rng(queries)
    vectors, queried, keep = make(random, 700), make(random, queries), keep_of(kept, random, 700)
    store = FlatStore(vectors.shape[1])
    for part in (slice(0, 100), slice(100, 700)):
        store.add(np.arange(700)[part], vectors[part], columns_of(np.arange(700)[part]))
    expected = exact_search(queried, vectors, 13, np.tile(keep, (queries, 1)))
    assert_same_ranking(store.search(queried, 13, allowed=np.flatnonzero(keep)), expected)
    gone = np.arange(0, 700, 3)
    store.remove(gone)
    keep[gone] = False
    expected = exact_search(queried, vectors, 13, np.tile(keep, (queries, 1)))
    assert_same_ranking(store.search(queried, 13, allowed=np.flatnonzero(keep)), expected)


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.usefixtures("always")
def test_codes_answer_without_the_vectors_of_most_rows(queries, monkeypatch):
    random = np.random.default_rng(0)
    vectors, read = random_rows(random, 2000, 64), []
    rough = code_scan.rough_scores
    for module in (code_scan, code_search):
        monkeypatch.setattr(
            module, "rough_scores", lambda q, s, *pairs: (read.append(len(pairs[1])), rough(q, s, *pairs))[1]
        )
    monkeypatch.setattr(code_search, "has_byte_products", lambda: True)
    store = FlatStore(64)
    store.add(np.arange(2000), vectors)
    found = store.search(vectors[:queries], 5)
    assert_same_ranking(found, exact_search(vectors[:queries], vectors, 5))
    assert 0 < sum(read) < queries * 200


@pytest.mark.usefixtures("always")
def test_a_search_that_trusts_codes_is_wrong(monkeypatch):
    whole = CodedQueries.of

    def trusting(queries, codes):
        coded = whole(queries, codes)
        return CodedQueries(coded.whole, coded.units, coded.constants, np.zeros_like(coded.errors))

    monkeypatch.setattr(CodedQueries, "of", staticmethod(trusting))
    random = np.random.default_rng(1)
    vectors = 0.1 * random_rows(random, 3000, 64) + 0.9 * random_rows(random, 1, 64)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors[::2, 0] += 0.5  # one number of a large range makes the steps of the query coarse
    store = FlatStore(64)
    store.add(np.arange(3000), vectors)
    expected = [exact_search(vectors[i : i + 1], vectors, 20).rows[0].tolist() for i in range(40)]
    assert expected != [store.search(vectors[i : i + 1], 20).rows[0].tolist() for i in range(40)]


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 7, 64, 300]), st.sampled_from([1e-3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_bounds_hold_for_every_row(seed, dimension, spread):
    random = np.random.default_rng(seed)
    ranges = random.choice([0, 1e-4, 1, 3], dimension)
    vectors = (random.standard_normal((50, dimension)) * ranges * spread + random.standard_normal(dimension)).astype(
        np.float32
    )
    queries = random.standard_normal((4, dimension)).astype(np.float32)
    codes = RowCodes.of(vectors)
    coded = CodedQueries.of(queries, codes)
    sums = coded.whole @ (codes.codes.astype(np.float64) - 128).T
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    for i in range(4):
        assert np.all(np.abs(coded.scores(i, sums[i]) - exact[i]) <= coded.errors[i])


@pytest.mark.usefixtures("always", "byte_products")
def test_equal_vectors_answer_by_number(monkeypatch):
    monkeypatch.setattr(code_search, "MOST_PAIRS", 64)
    vectors = np.tile(random_rows(np.random.default_rng(0), 1, 16), (1000, 1))
    store = FlatStore(16)
    store.add(np.arange(1000)[::-1].copy(), vectors)
    for queries in (1, 9):
        assert store.search(vectors[:queries], 4).rows.tolist() == [[0, 1, 2, 3]] * queries


@pytest.mark.parametrize("counts", [(5, 5, 5), (3, 40, 4), (3, 3, 3, 3, 3, 400)])
def test_the_largest_of_each_query_are_found_where_some_have_many_more_pairs(counts):
    values = np.random.default_rng(0).permutation(sum(counts)).astype(np.float32)
    found = code_search._largest_of_each(values, np.array(counts), 3).reshape(-1, 3)
    for start, count, positions in zip(np.cumsum((0, *counts[:-1])), counts, found, strict=True):
        expected = start + np.argsort(values[start : start + count])[-3:]
        assert sorted(positions.tolist()) == sorted(expected.tolist())


def test_large_segments_get_codes_at_the_second_search():
    vectors = random_rows(np.random.default_rng(0), 9000, 8)
    store = FlatStore(8)
    store.add(np.arange(9000), vectors)
    source = store._segments[0].source
    ready = []
    for _ in range(3):
        assert_same_ranking(store.search(vectors[:1], 3), exact_search(vectors[:1], vectors, 3))
        ready.append(source.is_ready)
    assert ready == [False, True, True]


def test_codes_of_a_file_are_those_that_were_written(tmp_path):
    vectors = random_rows(np.random.default_rng(0), 3000, 5)
    order = np.random.default_rng(1).permutation(3000)
    bounds = write_codes(tmp_path / "codes.npy", vectors, order)
    values, expected = map_codes(tmp_path / "codes.npy", 5), RowCodes.of(vectors, order)
    found = RowCodes.of_file(values, 3000, bounds, order)
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert np.load(tmp_path / "codes.npy").shape == (3012, 5)
    with pytest.raises(ValueError, match="2999 rows"):
        RowCodes.of_file(values, 2999, bounds, order)


def test_bounds_of_codes_without_means_hold():
    """Earlier files have no means: their bounds are those of the codes themselves."""
    random = np.random.default_rng(0)
    vectors = np.abs(random_rows(random, 200, 16)) ** 2
    queries = random_rows(random, 3, 16)
    codes = RowCodes.of(vectors)
    old = np.concatenate([np.stack([codes.steps, codes.centres]).view(np.uint8).reshape(8, 16), codes.codes])
    longest = float(np.linalg.norm(codes.codes.astype(np.float64) - 128, axis=1).max())
    bounds = {"error": codes.error, "scaled_error": codes.scaled_error, "longest": longest}
    read = RowCodes.of_file(old, 200, bounds, None)
    np.testing.assert_array_equal(read.codes, codes.codes)
    errors = []
    for one in (codes, read):
        coded = CodedQueries.of(queries, one)
        sums = coded.whole @ (one.codes.astype(np.float64) - 128).T
        exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
        found = np.stack([coded.scores(i, sums[i]) for i in range(3)])
        assert np.all(np.abs(found - exact) <= coded.errors[:, None])
        errors.append(coded.errors)
    assert np.all(errors[0] < 0.8 * errors[1])  # means narrow the bounds of numbers that are far from their middle


def test_the_order_by_camera_does_not_depend_on_how_words_are_kept():
    table = columns_of(np.arange(40))
    reversed_words = columns_of(np.arange(40)[::-1].copy()).take(np.arange(40)[::-1].copy())
    order = camera_order(table)
    assert order is not None
    np.testing.assert_array_equal(order, camera_order(reversed_words))
    cameras = [table.samples[i].camera for i in order.tolist()]
    lights = [table.samples[i].modality for i in order.tolist()]
    assert list(zip(lights, cameras, strict=True)) == sorted(zip(lights, cameras, strict=True))
    assert camera_order(table.take(np.flatnonzero(np.arange(40) % 6 == 1))) is None


@pytest.mark.usefixtures("always")
def test_threads_search_at_the_same_time():
    random = np.random.default_rng(0)
    vectors, queries = random_rows(random, 3000, 16), random_rows(random, 64, 16)
    store = FlatStore(16)
    store.add(np.arange(3000), vectors, columns_of(np.arange(3000)))
    expected = exact_search(queries, vectors, 9)
    keep = np.arange(3000) % 3 > 0
    filtered = exact_search(queries, vectors, 9, np.tile(keep, (64, 1)))
    with ThreadPoolExecutor(8) as pool:
        whole = list(pool.map(lambda i: store.search(queries[i : i + 1], 9), range(64)))
        part = list(pool.map(lambda i: store.search(queries[i : i + 1], 9, np.flatnonzero(keep)), range(64)))
    assert [found.rows[0].tolist() for found in whole] == expected.rows.tolist()
    assert [found.rows[0].tolist() for found in part] == filtered.rows.tolist()


@pytest.mark.parametrize("counts", [(3, 3, 3), (0, 2, 1), (1, 0, 40), (0, 0, 0)])
def test_products_of_pairs_are_those_of_a_matrix_product(counts):
    """The last rows of the second case are padding; the third has too much of it, and is computed query by query."""
    random = np.random.default_rng(0)
    queries, vectors = random_rows(random, 3, 12), random_rows(random, 50, 12)
    query = np.repeat(np.arange(3), counts)
    rows = random.integers(0, 50, len(query))
    found = pair_products(queries, vectors, query, rows)
    np.testing.assert_allclose(found, (queries @ vectors.T)[query, rows], atol=1e-6)
