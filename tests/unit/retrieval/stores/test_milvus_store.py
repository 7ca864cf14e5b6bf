"""Stores in Milvus: addresses, restarts, lost connections, large requests, unusual labels."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from helpers.random_embeddings import assert_same_ranking, random_rows, tied_rows
from helpers.store_contract import PlainStore, answers, columns_of
from reid.errors import ConfigError, GalleryError
from reid.records import Sample
from reid.retrieval.exact import exact_search
from reid.retrieval.filters import parse_where
from reid.retrieval.row_table import RowTable
from reid.retrieval.stores import milvus_client, milvus_store
from reid.retrieval.stores.milvus_client import is_milvus_uri, parse_milvus_uri
from reid.retrieval.stores.milvus_store import MilvusStore


@pytest.fixture
def lite(tmp_path):
    return str(tmp_path / "gallery.db")


def fill(store, rows=200, seed=0):
    vectors = random_rows(np.random.default_rng(seed), rows, 16)
    store.add(np.arange(rows), vectors, columns_of(np.arange(rows)))
    return vectors


def test_addresses():
    address = parse_milvus_uri("milvus://ann:se%3Acret@db.example/street")
    assert (address.server, address.collection, address.token) == ("http://db.example:19530", "street", "ann:se:cret")
    assert parse_milvus_uri("milvus:///data/street.db").server == "/data/street.db"
    assert [is_milvus_uri(uri) for uri in ("a/b.db", "milvus://h/c", "galleries/street")] == [True, True, False]
    for wrong in ("milvus://host", "milvus://host/a-b", "milvus://host:port/a", "milvus:///folder"):
        with pytest.raises(ConfigError):
            parse_milvus_uri(wrong)


def test_a_file_keeps_its_rows_and_facts(lite):
    with pytest.raises(GalleryError, match="index create"):
        MilvusStore.open(lite)
    store = MilvusStore.create(lite, 16, {"fingerprint": "f00d"})
    vectors = fill(store)
    store.remove(np.arange(50, 60))
    store.close()
    with pytest.raises(GalleryError, match="already"):
        MilvusStore.create(lite, 16)
    again = MilvusStore.open(lite)
    assert (again.facts["fingerprint"], again.dimension, again.count()) == ("f00d", 16, 190)
    kept = np.setdiff1d(np.arange(200), np.arange(50, 60))
    expected = exact_search(vectors[:3], vectors[kept], 20)
    assert again.search(vectors[:3], 20).rows.tolist() == kept[expected.rows].tolist()
    table = next(iter(again.batches())).columns
    wanted = columns_of(kept)
    assert table.samples_at(np.arange(190)) == wanted.samples_at(np.arange(190))
    assert table.codes("note")[1] == wanted.codes("note")[1]
    again.close()


def test_many_requests_give_the_same_answers(lite, monkeypatch):
    monkeypatch.setattr(milvus_store, "BYTES_AT_ONCE", 4 * 16 * 37)
    monkeypatch.setattr(milvus_store, "NUMBERS_AT_ONCE", 41)
    monkeypatch.setattr(milvus_store, "HITS_AT_ONCE", 60)
    store = MilvusStore.create(lite, 16)
    vectors = fill(store)
    allowed = np.arange(0, 200, 2)
    keep = np.zeros(200, bool)
    keep[allowed] = True
    found = store.search(vectors[:7], 12, allowed=allowed, where=parse_where("camera <> 'door'"))
    keep &= np.arange(200) % 3 != 0
    assert_same_ranking(found, exact_search(vectors[:7], vectors, 12, np.tile(keep, (7, 1))))
    assert store.remove(np.arange(100)) == 100
    assert [row for part in store.batches() for row in part.row_ids.tolist()] == list(range(100, 200))
    store.close()


def test_more_equal_scores_than_milvus_returns_are_read(lite, monkeypatch):
    monkeypatch.setattr(milvus_store, "MOST_RESULTS", 64)
    store = MilvusStore.create(lite, 16)
    vectors = np.tile(tied_rows(np.random.default_rng(0), 1), (150, 1))
    store.add(np.arange(150)[::-1].copy(), vectors)
    assert store.search(vectors[:2], 3).rows.tolist() == [[0, 1, 2]] * 2
    assert store.search(vectors[:1], 100).rows.tolist() == [list(range(100))]
    store.close()


def test_labels_of_another_unicode_form_and_with_quotes(lite):
    names = [unicodedata.normalize("NFD", "Åsa"), "Åsa", 'say "hi"', "back\\slash", "new\nline", ""]
    table = RowTable.from_samples([Sample(Path(f"{i}.jpg"), name) for i, name in enumerate(names)])
    store = MilvusStore.create(lite, 16)
    vectors = random_rows(np.random.default_rng(0), 6, 16)
    store.add(np.arange(6), vectors, table)
    found = store.search(vectors[:1], 6, where=parse_where("identity = 'Åsa'"))
    assert sorted(found.rows[0].tolist()) == [0, 1]
    for i, name in enumerate(names[2:5], 2):
        assert store.search(vectors[:1], 6, where=parse_where(f"identity = '{name}'")).rows.tolist() == [[i]]
    samples = next(iter(store.batches())).columns.samples_at(np.arange(6))
    assert [sample.identity for sample in samples] == names
    store.close()


def test_a_collection_of_another_program_is_refused(lite):
    from pymilvus import MilvusClient

    client = MilvusClient(lite)
    client.create_collection("reid", dimension=4)
    client.close()
    with pytest.raises(GalleryError, match="no gallery"):
        MilvusStore.open(lite)


def test_a_server_that_does_not_answer_is_one_error(monkeypatch):
    monkeypatch.setattr(milvus_client, "PAUSES", (0.0,))
    monkeypatch.setattr(milvus_client, "TIMEOUT", 1)
    with pytest.raises(GalleryError, match=r"127\.0\.0\.1:1"):
        MilvusStore.open("milvus://127.0.0.1:1/street")


class Flaky:
    """A client whose calls fail some times with a message."""

    def __init__(self, client, failures, message):
        self.client, self.failures, self.message = client, failures, message

    def __getattr__(self, name):
        def call(*arguments, **options):
            if self.failures:
                self.failures -= 1
                from pymilvus import MilvusException

                raise MilvusException(2, self.message)
            return getattr(self.client, name)(*arguments, **options)

        return call if name != "close" else lambda: None


@pytest.mark.parametrize(("message", "failures"), [("server unavailable", 2), ("Fail connecting to server", 1)])
def test_calls_are_repeated_after_the_connection_was_lost(lite, monkeypatch, message, failures):
    monkeypatch.setattr(milvus_client, "PAUSES", (0.0, 0.0, 0.0))
    store = MilvusStore.create(lite, 16)
    connection = store._connection
    flaky = Flaky(connection._client, failures, message)
    monkeypatch.setattr(connection._library, "MilvusClient", lambda *arguments, **options: flaky)
    connection._client = flaky
    vectors = fill(store)
    assert flaky.failures == 0
    assert store.count() == 200
    flaky.failures = 99
    with pytest.raises(GalleryError):
        store.search(vectors[:1], 1)
    flaky.failures, flaky.message = 1, "the field does not exist"
    with pytest.raises(GalleryError, match="field"):
        store.count()
    store.close()


def test_rows_that_cannot_all_be_written_are_removed_again(lite, monkeypatch):
    monkeypatch.setattr(milvus_store, "BYTES_AT_ONCE", 4 * 16 * 50)
    store = MilvusStore.create(lite, 16)
    upsert, calls = store._connection.upsert, []

    def fail_third(rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise GalleryError("disk full")
        upsert(rows)

    monkeypatch.setattr(store._connection, "upsert", fail_third)
    with pytest.raises(GalleryError, match="disk full"):
        fill(store)
    assert (calls, store.count()) == ([50, 50, 50], 0)
    store.close()


def test_a_milvus_server_keeps_its_rows_when_it_is_killed(milvus_server, monkeypatch):
    """Also: a search that is asked while the server is down answers when it is back."""
    monkeypatch.setattr(milvus_client, "PAUSES", (2.0,) * 60)
    uri = milvus_server.uri("killed")
    store, plain = MilvusStore.create(uri, 16, {"fingerprint": "f00d"}), PlainStore()
    vectors = fill(store, 3000)
    plain.add(np.arange(3000), vectors)
    assert store.remove(np.arange(10, 400)) == 390
    for number in range(10, 400):
        del plain.rows[number]
    other = MilvusStore.open(uri)
    expected = plain.search(vectors[:5], 30)
    assert answers(other.search(vectors[:5], 30)) == expected
    milvus_server.kill()
    milvus_server.start()
    assert answers(store.search(vectors[:5], 30)) == expected
    again = MilvusStore.open(uri)
    assert (again.count(), again.facts["fingerprint"]) == (2610, "f00d")
    where = "camera = 'yard' AND time >= '2024-05-01T10:00'"
    assert answers(again.search(vectors[:5], 30, where=parse_where(where))) == plain.search(
        vectors[:5], 30, where=where
    )
    again.compact()
    assert answers(other.search(vectors[:5], 30)) == expected
    again.drop()
