"""Galleries in memory: exact answers, wrong queries, the table of samples and erasure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from helpers.random_embeddings import assert_same_ranking, embeddings_of, random_rows, tied_rows
from reid.errors import DataError, GalleryError
from reid.records import Embeddings
from reid.retrieval import faiss_index
from reid.retrieval.exact import exact_search
from reid.retrieval.gallery import Gallery
from reid.retrieval.stores import tile_search


@pytest.mark.parametrize("queries", [1, 5, 40])  # pair by pair, and with a matrix product
@pytest.mark.parametrize("k", [1, 10, 150, 1000])
@pytest.mark.parametrize("kept", [None, 0.9, 0.1])
@pytest.mark.parametrize("make", [lambda random, n: random_rows(random, n, 48), tied_rows], ids=["random", "ties"])
def test_equals_the_exact_search(make, queries, k, kept):
    random = np.random.default_rng(k + queries)
    vectors, queried = make(random, 700), make(random, queries)
    keep = None if kept is None else random.random(700) < kept
    ranking = Gallery.build(embeddings_of(vectors)).search(queried, k, keep=keep, fingerprint="f00d")
    expected = exact_search(queried, vectors, k, None if keep is None else np.tile(keep, (queries, 1)))
    ranks = min(k, 700 if keep is None else int(keep.sum()))
    assert ranking.rows.shape == (queries, ranks)
    assert ranking.counts.tolist() == [ranks] * queries
    np.testing.assert_array_equal(ranking.rows, expected.rows[:, :ranks])
    np.testing.assert_array_equal(ranking.scores, expected.scores[:, :ranks])


def test_a_gallery_of_equal_vectors_answers_with_its_first_rows():
    vectors = np.tile(random_rows(np.random.default_rng(0), 1, 100), (500, 1))
    ranking = Gallery.build(embeddings_of(vectors)).search(vectors[:3], 4, fingerprint="f00d")
    assert ranking.rows.tolist() == [[0, 1, 2, 3]] * 3


def test_tiles_of_picked_rows_are_merged(monkeypatch):
    random = np.random.default_rng(3)
    vectors, queried, keep = random_rows(random, 600, 16), random_rows(random, 30, 16), random.random(600) < 0.7
    monkeypatch.setattr(tile_search, "TILE_ROWS", 50)
    ranking = Gallery.build(embeddings_of(vectors)).search(queried, 20, keep=keep, fingerprint="f00d")
    assert_same_ranking(ranking, exact_search(queried, vectors, 20, np.tile(keep, (30, 1))))


def test_a_search_without_allowed_rows_has_no_answers():
    gallery = Gallery.build(embeddings_of(random_rows(np.random.default_rng(0), 9, 4)))
    ranking = gallery.search(np.float32([[1, 0, 0, 0]]), 3, keep=np.zeros(9, bool), fingerprint="f00d")
    assert (ranking.counts.tolist(), ranking.answers(0)) == ([0], [])


@pytest.mark.parametrize(
    ("vectors", "changes", "error", "value"),
    [
        (np.ones((1, 4), np.float32) / 2, {"fingerprint": "beef"}, GalleryError, '"beef".*"f00d"'),
        (np.ones((1, 5), np.float32), {}, DataError, r"\(1, 5\)"),
        (np.ones((1, 4)), {}, DataError, "float64"),
        (np.ones(4, np.float32), {}, DataError, r"\(4,\)"),
        (np.full((1, 4), np.nan, np.float32), {}, DataError, "NaN"),
        (np.ones((1, 4), np.float32), {"k": 0}, DataError, "got 0"),
        (np.ones((1, 4), np.float32), {"keep": np.ones(8, bool)}, DataError, r"\(8,\)"),
        (np.ones((1, 4), np.float32), {"keep": np.ones(9, int)}, DataError, "int64"),
    ],
)
def test_bad_queries_are_an_error(vectors, changes, error, value):
    gallery = Gallery.build(embeddings_of(random_rows(np.random.default_rng(0), 9, 4)))
    with pytest.raises(error, match=value):
        gallery.search(vectors, **{"k": 3, "fingerprint": "f00d", **changes})


def test_a_gallery_without_embeddings_is_an_error():
    with pytest.raises(GalleryError, match="no embeddings"):
        Gallery.build(Embeddings((), np.zeros((0, 4), np.float32), "f00d"))


def test_the_number_of_threads_is_restored():
    before = faiss_index.faiss.omp_get_max_threads()
    with faiss_index._faiss_threads(1):
        assert faiss_index.faiss.omp_get_max_threads() == 1
    assert faiss_index.faiss.omp_get_max_threads() == before


def test_the_table_of_samples_has_a_row_for_each_gallery_row():
    data = embeddings_of(random_rows(np.random.default_rng(0), 9, 4))
    frame = Gallery.build(data).to_frame()
    assert list(frame.columns) == ["path", "identity", "camera", "modality", "category", "split", "time", "track"]
    assert len(frame) == 9
    for row, sample in zip(frame.to_dict("records"), data.samples, strict=True):
        assert (row["path"], row["identity"], row["camera"]) == (str(sample.path), sample.identity, sample.camera)
        assert (row["modality"], row["category"], row["split"]) == (str(sample.modality), "vehicle", str(sample.split))
        assert row["time"] == sample.time or (sample.time is None and pd.isna(row["time"]))


def test_an_empty_gallery_has_an_empty_table():
    gallery = Gallery.build(embeddings_of(random_rows(np.random.default_rng(0), 2, 4), identities=1))
    gallery.erase("id0")
    assert gallery.to_frame().empty
    assert "identity" in gallery.to_frame().columns


def test_erasing_in_memory_only():
    gallery = Gallery.build(embeddings_of(random_rows(np.random.default_rng(0), 14, 4)))
    assert gallery.erase("id1") == 2
    assert len(gallery) == 12
    with pytest.raises(GalleryError, match="empty"):
        gallery.erase("")
