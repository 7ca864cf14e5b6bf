"""Galleries in Milvus answer like galleries in a folder."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.random_embeddings import embeddings_of, random_rows
from reid.errors import ConfigError, DataError, GalleryError
from reid.records import Embeddings
from reid.retrieval.gallery import Gallery


@pytest.fixture
def pair(tmp_path):
    """A gallery in a file of Milvus Lite, and one in memory, with the same rows."""
    data = embeddings_of(random_rows(np.random.default_rng(0), 90, 16))
    more = {"note": [f"n{i % 4}" for i in range(90)]}
    remote = Gallery.create(tmp_path / "g.db", "f00d", 16)
    assert remote.add(data, more).added == 90
    yield remote, Gallery.build(data, more)
    remote.close()


def answers(gallery, ranking):
    return [[(gallery.samples[row], score) for row, score in ranking.answers(i)] for i in range(len(ranking.rows))]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"where": "camera = 'c1' AND note <> 'n2'"},
        {"where": "path LIKE '%1.jpg'"},
        {"one_per": "identity"},
        {"one_per": "camera", "where": "modality = 'infrared'"},
        {"keep": np.arange(90) % 4 == 1},
    ],
)
def test_the_same_answers_as_in_memory(pair, asked):
    remote, local = pair
    queries = random_rows(np.random.default_rng(1), 3, 16)
    found, expected = (gallery.search(queries, 5, fingerprint="f00d", **asked) for gallery in pair)
    assert answers(remote, found) == answers(local, expected)


def test_what_it_holds(pair):
    remote, local = pair
    assert len(remote) == 90
    assert list(remote.samples) == list(local.samples)
    np.testing.assert_array_equal(remote.embeddings.vectors, local.embeddings.vectors)
    assert remote.to_frame().equals(local.to_frame())
    facts, expected = remote.info(), local.info()
    assert {name: facts[name] for name in expected} == expected
    remote.verify()


def test_rows_come_and_go(pair, tmp_path):
    remote, local = pair
    assert remote.add(local.embeddings).known == 90
    assert remote.remove("camera = 'c2'") == 30
    assert remote.erase("id3") == local.erase("id3") - sum(
        sample.camera == "c2" and sample.identity == "id3"
        for sample in embeddings_of(random_rows(np.random.default_rng(0), 90, 16)).samples
    )
    local.remove("camera = 'c2'")
    remote.save(tmp_path / "folder")
    again = Gallery.open(tmp_path / "folder")
    assert list(again.samples) == list(local.samples)
    assert again.table.codes("note")[1] == local.table.codes("note")[1]
    remote.close()
    reopened = Gallery.open(tmp_path / "g.db")
    assert len(reopened) == len(local)
    reopened.close()


def test_mistakes_are_errors(pair, tmp_path):
    remote, _ = pair
    query = np.eye(16, dtype=np.float32)[:1]
    with pytest.raises(GalleryError, match="beef"):
        remote.search(query, 1, fingerprint="beef")
    with pytest.raises(DataError, match="89"):
        remote.search(query, 1, fingerprint="f00d", keep=np.ones(89, bool))
    with pytest.raises(GalleryError, match="added again"):
        remote.remove("camera = 'c1'", forget=True)
    with pytest.raises(GalleryError):
        remote.add(Embeddings((), np.zeros((0, 16), np.float32), "beef"))
    with pytest.raises(GalleryError, match="network"):
        Gallery.create(tmp_path / "other.db", "f00d", 16, {"network": lambda path: None})
    with pytest.raises(ConfigError):
        Gallery.open("milvus://host")
