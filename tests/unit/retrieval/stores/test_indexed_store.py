"""Stores with an approximate index: exact scores, measured recall, exact filters, and rows that come and go."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.random_embeddings import assert_same_ranking, random_rows
from helpers.store_contract import columns_of
from reid.errors import ConfigError, GalleryError
from reid.retrieval.exact import exact_search
from reid.retrieval.filters import parse_where
from reid.retrieval.stores.index_kinds import INDEX_KINDS, choose_index_kind
from reid.retrieval.stores.indexed_store import IndexedStore

ROWS = 2000


@pytest.fixture(scope="module")
def vectors():
    """Rows of 100 identities: clusters, as embeddings have them."""
    random = np.random.default_rng(0)
    rows = np.repeat(random_rows(random, 100, 32), ROWS // 100, axis=0) + 0.5 * random_rows(random, ROWS, 32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def stores(vectors):
    """A store and the report of its index, by kind; tests do not change them."""
    made = {}
    for name in INDEX_KINDS:
        store = IndexedStore(32, name, recall=0.9)
        store.add(np.arange(ROWS), vectors, columns_of(np.arange(ROWS)))
        made[name] = store, store.build_index()
    return made


def queries_near(vectors, count):
    noisy = vectors[:: ROWS // count] + 0.1 * random_rows(np.random.default_rng(5), count, 32)
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("name", INDEX_KINDS)
def test_the_index_reaches_the_wished_recall_with_exact_scores(stores, vectors, name):
    store, report = stores[name]
    assert (report.index_kind, report.rows) == (name, ROWS)
    assert report.recall >= 0.9
    queried = queries_near(vectors, 50)
    found, expected = store.search(queried, 10), exact_search(queried, vectors, 10)
    assert found.counts.tolist() == [10] * 50
    shared = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), expected.rows.tolist(), strict=True)]
    assert np.mean(shared) / 10 > 0.8
    for i in range(50):
        scores = dict(exact_search(queried[i : i + 1], vectors, ROWS).answers(0))
        assert [scores[row] for row, _ in found.answers(i)] == [score for _, score in found.answers(i)]


@pytest.mark.parametrize("name", INDEX_KINDS)
def test_a_search_with_a_filter_is_exact(stores, vectors, name):
    store, _ = stores[name]
    queried, allowed = queries_near(vectors, 20), np.arange(0, ROWS, 3)
    keep = np.zeros(ROWS, bool)
    keep[allowed] = True
    expected = exact_search(queried, vectors, 30, np.tile(keep, (20, 1)))
    assert_same_ranking(store.search(queried, 30, allowed=allowed), expected)
    assert_same_ranking(store.search(queried, 30, where=parse_where("camera = 'door'")), expected)


@pytest.mark.parametrize("name", INDEX_KINDS)
def test_rows_come_and_go_without_a_new_index(vectors, name, tmp_path):
    store = IndexedStore(32, name, recall=0.95)
    store.add(np.arange(1500), vectors[:1500])
    store.build_index()
    store.add(np.arange(1500, ROWS), vectors[1500:])
    queried = vectors[[3, 1999, 700]]
    assert store.search(queried, 1).rows.tolist() == [[3], [1999], [700]]
    nearest = exact_search(queried, vectors, 400).rows[0]
    assert store.remove(nearest) == 400
    found = store.search(queried, 5)
    assert not set(found.rows.reshape(-1).tolist()) & set(nearest.tolist())
    left = np.setdiff1d(np.arange(ROWS), nearest)
    expected = exact_search(queried[:1], vectors[left], 5)
    assert found.rows[0, 0] == left[expected.rows[0, 0]]
    assert name not in ("fp16", "sq8") or found.rows[0].tolist() == left[expected.rows[0]].tolist()
    store.remove(np.array([3, 1999]))
    store.add(np.array([3, 1999]), vectors[[1999, 3]])  # the numbers come back with other vectors
    assert store.search(queried[:2], 1).rows.tolist() == [[1999], [3]]
    store.write_index(tmp_path / "index")
    again = IndexedStore(32, name)
    again.add(np.arange(ROWS), vectors)
    again.read_index(tmp_path / "index", name)
    assert again.search(queried, 1).rows.tolist() == [[3], [1999], [700]]


def test_efforts_are_the_least_that_suffice(vectors):
    efforts = []
    for recall in (0.3, 0.999):
        store = IndexedStore(32, "ivf-flat", recall)
        store.add(np.arange(ROWS), vectors)
        report = store.build_index()
        assert report.recall >= recall
        efforts.append(report.effort)
    assert efforts[0] < efforts[1]


def test_a_recall_that_is_out_of_reach_is_said(vectors):
    store = IndexedStore(32, "ivf-pq", recall=1.0)
    random = random_rows(np.random.default_rng(3), ROWS, 32)
    store.add(np.arange(ROWS), random)
    report = store.build_index()
    assert report.recall < 1
    assert "does not reach" in report.line


def test_auto_chooses_by_size():
    sizes = (1_000, 10**6, 10**8)
    assert [choose_index_kind("auto", size) for size in sizes] == ["flat", "hnsw", "ivf-pq"]
    assert choose_index_kind("sq8", 10) == "sq8"
    with pytest.raises(ConfigError, match="hnsw"):
        IndexedStore(4, "hsnw")


def test_what_is_no_index_is_refused(tmp_path):
    store = IndexedStore(4, "auto")
    store.add(np.arange(3), np.eye(4, dtype=np.float32)[:3])
    assert store.build_index().index_kind == "flat"
    with pytest.raises(GalleryError):
        store.write_index(tmp_path / "index")
    (tmp_path / "index").write_bytes(b"something else")
    with pytest.raises(GalleryError, match="damaged"):
        store.read_index(tmp_path / "index", "hnsw")
    other = IndexedStore(8, "fp16")
    other.add(np.arange(3), np.eye(8, dtype=np.float32)[:3])
    other.build_index()
    other.write_index(tmp_path / "other")
    with pytest.raises(GalleryError, match="other vectors"):
        store.read_index(tmp_path / "other", "fp16")
