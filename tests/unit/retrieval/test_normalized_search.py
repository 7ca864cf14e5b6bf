"""Search by normalized scores against scoring every row, under every filter, and through other indexes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_embeddings import random_rows, tied_rows
from reid.errors import DataError, GalleryError
from reid.records import Embeddings, Sample
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.extended_vectors import extended_gallery, extended_queries
from reid.retrieval.gallery import Gallery
from reid.retrieval.normalized_ranking import NormalizedGallery
from reid.retrieval.normalized_search import search_normalized
from reid.retrieval.score_normalization import normalize_scores


def site(seed, count=160, cameras=3, tied=False, dimension=16):
    """Rows of people and a few vehicles; the last 8 are queries."""
    random = np.random.default_rng(seed)
    vectors = tied_rows(random, count) if tied else random_rows(random, count, dimension)
    samples = [Sample(Path(f"{seed}/{i}.jpg"), f"p{i % 9}", f"c{i % cameras}" if i % 13 else "") for i in range(count)]
    rows = CohortRows.of_samples(samples, vectors)
    return tuple(samples), rows.select(np.arange(count - 8)), rows.select(np.arange(count - 8, count))


def scored_one_by_one(gallery, queries, method, keep, k):
    """The k best of all rows that may answer: normalized in whole, sorted, lower rows first."""
    table = normalize_scores(queries, gallery, method)(0, len(queries.vectors)).astype(np.float64)
    table[:, ~keep] = -np.inf
    order = np.argsort(-np.round(table, 5), axis=1, kind="stable")[:, : min(k, int(keep.sum()))]
    return order, np.take_along_axis(table, order, axis=1)


@given(st.integers(0, 2**16), st.sampled_from(["csls", "snorm"]), st.integers(1, 30), st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_answers_are_those_of_scoring_every_row(seed, method, k, tied):
    _, gallery, queries = site(seed, tied=tied)
    keep = np.random.default_rng(seed).random(152) < 0.5
    keep[:3] = True
    prepared = NormalizedGallery.measure(gallery, method)
    for mask in (None, keep):
        allowed = np.ones(152, np.bool_) if mask is None else mask
        found = prepared.search(queries, k, mask)
        _, scores = scored_one_by_one(gallery, queries, method, allowed, k)
        np.testing.assert_allclose(found.ranking.scores, scores, atol=2e-4)
        table = normalize_scores(queries, gallery, method)(0, 8)
        near = np.take_along_axis(table, found.ranking.rows, axis=1)  # rounding may swap nearly equal rows
        np.testing.assert_allclose(near, scores, atol=2e-4)
        assert allowed[found.ranking.rows].all()
        answers = gallery.vectors[found.ranking.rows]
        np.testing.assert_allclose(
            found.similarities, np.einsum("qd,qkd->qk", queries.vectors, answers), atol=1e-5
        )  # fmt: skip


@pytest.mark.parametrize("method", ["csls", "snorm"])
def test_a_gallery_that_is_measured_when_queries_come_gives_the_same_answers(method):
    _, gallery, queries = site(7)
    whole, lazy = (make(gallery, method) for make in (NormalizedGallery.measure, NormalizedGallery.prepare))
    for query in range(8):
        one = queries.select(np.array([query]))
        expected, found = (prepared.search(one, 5) for prepared in (whole, lazy))
        np.testing.assert_array_equal(found.ranking.rows, expected.ranking.rows)
        np.testing.assert_allclose(found.ranking.scores, expected.ranking.scores, atol=1e-5)
    one = NormalizedGallery.prepare(gallery, method)
    one.search(queries.select(np.array([0])), 3)
    assert 0 < np.isnan(one.statistics.mean).all(axis=0).sum() < len(one.statistics.cameras)
    np.testing.assert_array_equal(lazy.search(gallery, 1).ranking.rows, whole.search(gallery, 1).ranking.rows)


def test_extended_vectors_have_the_normalized_scores_as_inner_products():
    _, gallery, queries = site(1)
    prepared = NormalizedGallery.measure(gallery)
    products = extended_queries(prepared, queries) @ extended_gallery(prepared).T
    np.testing.assert_allclose(products, normalize_scores(queries, gallery)(0, 8), atol=1e-5)
    with pytest.raises(DataError, match="snorm"):
        extended_gallery(NormalizedGallery.measure(gallery, "snorm"))


def test_rescoring_ranks_the_candidates_of_any_index():
    _, gallery, queries = site(2)
    prepared = NormalizedGallery.measure(gallery)
    random = np.random.default_rng(3)
    candidates = [np.sort(random.permutation(152)[:40]) for _ in range(8)]
    found = prepared.rescore(queries, candidates, 5).ranking
    for query, rows in enumerate(candidates):
        keep = np.zeros(152, np.bool_)
        keep[rows] = True
        expected = prepared.search(queries.select(np.array([query])), 5, keep).ranking
        np.testing.assert_array_equal(found.rows[query], expected.rows[0])
    assert prepared.rescore(queries, [rows[:2] for rows in candidates], 5).ranking.counts.tolist() == [2] * 8


def test_a_gallery_is_searched_and_a_row_that_another_program_erases_answers_no_more(tmp_path):
    samples, gallery_rows, queries = site(4)
    gallery = Gallery.build(Embeddings(samples[:152], gallery_rows.vectors, "f00d"))
    gallery.save(tmp_path / "gallery")
    asked = {"queries": samples[152:], "k": 4, "fingerprint": "f00d"}
    found = search_normalized(gallery, queries.vectors, **asked)
    assert found is not None
    expected, _ = scored_one_by_one(gallery_rows, queries, "csls", np.ones(152, np.bool_), 4)
    np.testing.assert_array_equal(found.ranking.rows, expected)
    gone = samples[int(expected[0, 0])].identity
    Gallery.open(tmp_path / "gallery").erase(gone)
    again = search_normalized(gallery, queries.vectors, **asked)
    assert again is not None
    kept = np.array([sample.identity != gone for sample in samples[:152]])
    assert kept[again.ranking.rows].all()
    reopened = Gallery.open(tmp_path / "gallery")
    rebuilt = Gallery.build(Embeddings(samples[:152], gallery_rows.vectors, "f00d").select(kept))
    after, fresh = (search_normalized(one, queries.vectors, **asked) for one in (reopened, rebuilt))
    assert after is not None
    assert fresh is not None
    np.testing.assert_array_equal(after.ranking.rows, fresh.ranking.rows)


def test_what_cannot_be_searched():
    samples, gallery_rows, queries = site(5)
    gallery = Gallery.build(Embeddings(samples[:152], gallery_rows.vectors, "f00d"))
    with pytest.raises(GalleryError):
        search_normalized(gallery, queries.vectors, samples[152:], 4, fingerprint="beef")
    small = Gallery.build(Embeddings(samples[:20], gallery_rows.vectors[:20], "f00d"))
    assert search_normalized(small, queries.vectors, samples[152:], 4, fingerprint="f00d") is None
    prepared = NormalizedGallery.measure(gallery_rows)
    with pytest.raises(DataError, match="0"):
        prepared.search(queries, 0)
    vehicle = CohortRows.of_samples([Sample(Path("v.jpg"), camera="c0", category="vehicle")], queries.vectors[:1])
    assert not prepared.can_rank(vehicle)
    with pytest.raises(DataError):
        prepared.search(vehicle, 3)
