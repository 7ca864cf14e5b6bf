"""The contract of the vector stores: each gives the answers of the plain one, whatever is added, removed and asked."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from helpers.random_embeddings import random_rows, tied_rows
from helpers.store_contract import PlainStore, answers, columns_of
from reid.errors import DataError, GalleryError
from reid.retrieval.filters import parse_where
from reid.retrieval.stores.exact_store import ExactStore
from reid.retrieval.stores.flat_store import FlatStore
from reid.retrieval.stores.indexed_store import IndexedStore
from reid.retrieval.stores.milvus_store import MilvusStore
from reid.retrieval.stores.snapshot import read_snapshot

STORES = {
    "exact": lambda dimension, file: ExactStore(dimension),
    "flat": lambda dimension, file: FlatStore(dimension),
    "indexed": lambda dimension, file: IndexedStore(dimension, "auto"),
    "milvus-server": None,  # of a running server, see the fixture
    "milvus-lite": lambda dimension, file: MilvusStore.create(f"{file}.db", dimension),
}


@pytest.fixture(params=STORES)
def make_store(request, tmp_path):
    """A function that makes an empty store of a dimension."""
    opened = []
    server = request.getfixturevalue("milvus_server") if STORES[request.param] is None else None

    def make(dimension):
        if server is not None:
            opened.append(MilvusStore.create(server.uri(f"c{secrets.token_hex(6)}"), dimension))
        else:
            opened.append(STORES[request.param](dimension, tmp_path / f"store{len(opened)}"))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def filled(store, rows=60, make=random_rows, seed=0):
    """Add rows with shuffled numbers to a store, in two parts, and return the plain store with the same rows."""
    random = np.random.default_rng(seed)
    plain, numbers, vectors = PlainStore(), random.permutation(rows) + 5, make(random, rows, 16)
    for part in (slice(0, rows // 3), slice(rows // 3, rows)):
        store.add(numbers[part], vectors[part], columns_of(numbers[part]))
        plain.add(numbers[part], vectors[part])
    return plain


def tied(random, rows, dimension):
    return tied_rows(random, rows)


@pytest.mark.parametrize("queries", [1, 3, 20])
@pytest.mark.parametrize("k", [1, 7, 100])
@pytest.mark.parametrize("make", [random_rows, tied], ids=["random", "ties"])
def test_the_nearest_rows_come_first(make_store, make, k, queries):
    store = make_store(16)
    plain = filled(store, make=make)
    queried = make(np.random.default_rng(9), queries, 16)
    found = store.search(queried, k)
    assert found.rows.shape == (queries, min(k, 60))
    assert answers(found) == plain.search(queried, k)


@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
def test_only_allowed_rows_answer(make_store, kept, queries):
    store, random = make_store(16), np.random.default_rng(4)
    plain = filled(store, make=tied)
    queried, allowed = tied_rows(random, queries), np.flatnonzero(random.random(80) < kept)
    random.shuffle(allowed)
    assert answers(store.search(queried, 10, allowed=allowed)) == plain.search(queried, 10, allowed)
    assert answers(store.search(queried, 10, allowed=allowed, where=parse_where("camera = 'yard'"))) == plain.search(
        queried, 10, allowed, "camera = 'yard'"
    )


@pytest.mark.parametrize(
    "where",
    [
        "camera IN ('door', 'yard') AND NOT modality = 'infrared'",
        "time BETWEEN '2024-05-01T00:10' AND '2024-05-01T00:40'",
        "time < '2024-05-01T00:20' OR track LIKE 't1_'",
        "NOT (time < '2024-05-01T00:20')",
        "time IS NULL",
        "note = 'it''s 3' AND identity <> 'id1'",
        "path LIKE '%crops_1%' OR note > 'it''s 2'",
    ],
)
def test_expressions_select_what_the_table_says(make_store, where):
    store = make_store(16)
    plain = filled(store)
    queried = random_rows(np.random.default_rng(1), 2, 16)
    expected = plain.search(queried, 60, where=where)
    assert 0 < len(expected[0]) < 60
    assert answers(store.search(queried, 60, where=parse_where(where))) == expected


def test_a_condition_that_no_row_fulfils_has_no_answers(make_store):
    store = make_store(16)
    plain = filled(store)
    queried = random_rows(np.random.default_rng(1), 2, 16)
    assert answers(store.search(queried, 60, where=parse_where("camera = 'door'"))) == plain.search(
        queried, 60, where="camera = 'door'"
    )
    for nothing in (
        {"where": parse_where("camera = 'cellar'")},
        {"allowed": np.empty(0, np.int64)},
        {"allowed": np.array([4, 999])},
    ):
        found = store.search(queried, 3, **nothing)
        assert (found.rows.shape, found.counts.tolist()) == ((2, 0), [0, 0])


def test_removed_rows_do_not_answer_and_may_come_back(make_store):
    store = make_store(16)
    plain = filled(store)
    queried = random_rows(np.random.default_rng(1), 2, 16)
    gone = np.array([5, 6, 17, 64, 1000, 17])
    assert store.remove(gone) == 4
    assert store.remove(gone) == 0
    assert store.count() == 56
    for number in (5, 6, 17, 64):
        del plain.rows[number]
    assert answers(store.search(queried, 60)) == plain.search(queried, 60)
    assert answers(store.search(queried, 60, where=parse_where("camera = 'roof'"))) == plain.search(
        queried, 60, where="camera = 'roof'"
    )
    again = np.array([17, 5])
    store.add(again, queried, columns_of(again))
    plain.add(again, queried)
    assert answers(store.search(queried, 60)) == plain.search(queried, 60)


def test_an_empty_store_has_no_answers(make_store):
    store = make_store(4)
    assert (store.count(), store.dimension, list(store.batches())) == (0, 4, [])
    assert store.search(np.float32([[1, 0, 0, 0]]), 3).rows.shape == (1, 0)
    filled_store = make_store(16)
    plain = filled(filled_store)
    assert filled_store.search(np.empty((0, 16), np.float32), 3).rows.shape[0] == 0
    assert filled_store.remove(np.array(list(plain.rows))) == 60
    assert filled_store.search(random_rows(np.random.default_rng(1), 2, 16), 3).rows.shape == (2, 0)


def test_all_rows_can_be_read(make_store, tmp_path):
    store = make_store(16)
    plain = filled(store)
    store.remove(np.array([9]))
    del plain.rows[9]
    store.snapshot(tmp_path / "rows.parquet")
    for parts in (list(store.batches()), list(read_snapshot(tmp_path / "rows.parquet"))):
        numbers = np.concatenate([part.row_ids for part in parts])
        assert numbers.tolist() == sorted(plain.rows)
        vectors = np.concatenate([part.vectors for part in parts])
        np.testing.assert_array_equal(vectors, np.stack([plain.rows[i][0] for i in numbers.tolist()]))
        cameras = [name for part in parts for name in part.columns.column("camera").to_pylist()]
        assert cameras == [plain.rows[i][1] for i in numbers.tolist()]


def test_rows_without_metadata_cannot_be_filtered_by_it(make_store):
    store = make_store(2)
    store.add(np.array([3, 1]), np.float32([[1, 0], [0, 1]]))
    assert answers(store.search(np.float32([[1, 0]]), 1)) == [[(3, 1.0)]]
    with pytest.raises(GalleryError):
        store.search(np.float32([[1, 0]]), 1, where=parse_where("camera = 'door'"))


@pytest.mark.parametrize(
    ("numbers", "vectors"),
    [
        (np.array([1, 1]), np.zeros((2, 16), np.float32)),
        (np.array([5]), np.zeros((1, 16), np.float32)),  # is there already
        (np.array([-1]), np.zeros((1, 16), np.float32)),
        (np.array([100]), np.zeros((1, 15), np.float32)),
        (np.array([100]), np.zeros((1, 16))),
        (np.array([100, 101]), np.zeros((1, 16), np.float32)),
        (np.array([100], np.int32), np.zeros((1, 16), np.float32)),
    ],
)
def test_wrong_rows_are_refused_and_change_nothing(make_store, numbers, vectors):
    store = make_store(16)
    filled(store)
    with pytest.raises(DataError):
        store.add(numbers, vectors, columns_of(numbers))
    assert store.count() == 60


@pytest.mark.parametrize(
    ("queries", "k"),
    [
        (np.zeros((1, 15), np.float32), 3),
        (np.zeros((1, 16)), 3),
        (np.zeros(16, np.float32), 3),
        (np.full((1, 16), np.nan, np.float32), 3),
        (np.zeros((1, 16), np.float32), 0),
    ],
)
def test_wrong_queries_are_refused(make_store, queries, k):
    store = make_store(16)
    filled(store)
    with pytest.raises(DataError):
        store.search(queries, k)


def test_a_closed_store_cannot_be_used(make_store):
    store = make_store(16)
    filled(store)
    store.close()
    store.close()
    with pytest.raises(GalleryError):
        store.count()
    with pytest.raises(GalleryError):
        store.search(np.zeros((1, 16), np.float32), 1)
