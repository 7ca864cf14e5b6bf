"""The fast store: the paths that the contract does not reach, and memory-mapped vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_embeddings import assert_same_ranking, random_rows, tied_rows
from reid.retrieval.exact import exact_search
from reid.retrieval.stores import flat_store, products, tile_search, tiles
from reid.retrieval.stores.flat_store import FlatStore


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def arithmetic(request, monkeypatch):
    """Both kinds of matrix products; a processor without bfloat16 computes the same, only slower."""
    monkeypatch.setattr(products, "has_bfloat16", lambda: request.param)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tile_search, "TILE_ROWS", 64)
    monkeypatch.setattr(tile_search, "TILE_ROWS_OF_FEW", 128)
    monkeypatch.setattr(tile_search, "SHORTEST_RUN", 24)
    monkeypatch.setattr(tile_search, "SHORTEST_RUN_OF_FEW", 8)
    monkeypatch.setattr(tile_search, "QUERIES_AT_ONCE", 7)


def keep_of(name, random, rows):
    """Which rows may answer: scattered ones, runs, or runs with holes."""
    if name == "scattered":
        return random.random(rows) < 0.1
    if name == "most":
        return random.random(rows) < 0.9
    keep = np.zeros(rows, bool)
    keep[rows // 8 : rows // 3] = keep[rows // 2 : rows - 40] = True
    if name == "holes":
        keep[random.integers(0, rows, rows // 30)] = False
    return keep


@pytest.mark.parametrize("queries", [1, 8, 9, 30])
@pytest.mark.parametrize(
    "make", [lambda random, rows: random_rows(random, rows, 24), tied_rows], ids=["random", "ties"]
)
@pytest.mark.parametrize("kept", ["scattered", "most", "runs", "holes"])
@pytest.mark.usefixtures("small_tiles", "arithmetic")
def test_equals_the_exact_search(make, kept, queries):
    random = np.random.default_rng(queries)
    vectors, queried, keep = make(random, 700), make(random, queries), keep_of(kept, random, 700)
    store = FlatStore(vectors.shape[1])
    for part in (slice(0, 100), slice(100, 700)):
        store.add(np.arange(700)[part], vectors[part])
    expected = exact_search(queried, vectors, 13, np.tile(keep, (queries, 1)))
    assert_same_ranking(store.search(queried, 13, allowed=np.flatnonzero(keep)), expected)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_tiles_hold_every_row_that_may_answer_once(data):
    keep = np.array(data.draw(st.lists(st.booleans(), max_size=80)), dtype=np.bool_)
    vectors = np.zeros((len(keep), 2), np.float32)
    rows, shortest = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    found = []
    for tile in tiles.tiles_of(vectors, keep, rows, shortest, data.draw(st.sampled_from([1.0, 1.5, 4.0]))):
        assert 0 < tile.size <= rows
        columns = np.arange(tile.size) if tile.mask is None else np.flatnonzero(tile.mask)
        found.extend(tile.rows_at(columns).tolist())
    assert sorted(found) == np.flatnonzero(keep).tolist()


def test_equal_vectors_answer_by_number_and_in_bounded_lists(monkeypatch, small_tiles):
    reduced = []
    reduce = tile_search._Candidates.reduce
    monkeypatch.setattr(
        tile_search._Candidates, "reduce", lambda self: (reduced.append(self.collected), reduce(self))[1]
    )
    vectors = np.tile(random_rows(np.random.default_rng(0), 1, 16), (1000, 1))
    store = FlatStore(16)
    store.add(np.arange(1000)[::-1].copy(), vectors)
    assert store.search(vectors[:9], 4).rows.tolist() == [[0, 1, 2, 3]] * 9
    assert max(reduced) <= 9 * (4 * tile_search.PAIRS_PER_RANK + 64)


@pytest.mark.parametrize("spread", [1.0, 0.1])  # scores around 0, and scores near 1
@pytest.mark.usefixtures("arithmetic")
def test_rounding_loses_no_row(spread, monkeypatch):
    random = np.random.default_rng(1)
    vectors = spread * random_rows(random, 3000, 64) + random_rows(random, 1, 64) * (1 - spread)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    store = FlatStore(64)
    store.add(np.arange(3000), vectors)
    assert_same_ranking(store.search(vectors[:40], 20), exact_search(vectors[:40], vectors, 20))


def test_a_search_that_trusts_bfloat16_is_wrong(monkeypatch):
    monkeypatch.setattr(products, "has_bfloat16", lambda: True)
    monkeypatch.setattr(products.Bfloat16Products, "margin", lambda self, bounds, first, stop: np.zeros_like(bounds))
    random = np.random.default_rng(1)
    vectors = 0.1 * random_rows(random, 3000, 64) + 0.9 * random_rows(random, 1, 64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = FlatStore(64)
    store.add(np.arange(3000), vectors)
    assert not np.array_equal(store.search(vectors[:40], 20).rows, exact_search(vectors[:40], vectors, 20).rows)


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("arithmetic")
def test_a_memory_mapped_file_is_searched_without_a_copy(tmp_path):
    vectors = random_rows(np.random.default_rng(0), 500, 16)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    store = FlatStore(16)
    store.add(np.arange(500), mapped)
    assert np.shares_memory(store._segments[0].vectors, mapped)
    for queries in (1, 20):
        found = store.search(vectors[:queries], 5)
        assert_same_ranking(found, exact_search(vectors[:queries], vectors, 5))


def test_a_search_reads_the_state_before_or_after_a_change(monkeypatch):
    vectors = random_rows(np.random.default_rng(0), 64, 8)
    store = FlatStore(8)
    store.add(np.arange(64), vectors)
    search = flat_store.search_segments

    def remove_first(*arguments):
        store.remove(np.arange(64))
        return search(*arguments)

    monkeypatch.setattr(flat_store, "search_segments", remove_first)
    assert_same_ranking(store.search(vectors[:2], 64), exact_search(vectors[:2], vectors, 64))
    assert store.count() == 0
