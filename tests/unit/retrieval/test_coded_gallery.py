"""Searches by CSLS with short codes: the answers, and every bit of their scores, are those of scoring every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_embeddings import random_rows, tied_rows
from reid.records import Embeddings, Sample
from reid.retrieval import normalized_ranking, query_cohorts
from reid.retrieval.coded_gallery import CodedGallery, _NormalizedScorer, codes_fit
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.exact import score_rows
from reid.retrieval.gallery import Gallery
from reid.retrieval.normalized_ranking import NormalizedGallery
from reid.retrieval.normalized_search import normalized_gallery, search_normalized
from reid.retrieval.stores import code_scan, code_search
from reid.retrieval.stores.row_codes import CodedQueries

NO_CODES = {"FEWEST_CODED": 2**40}
ALWAYS = {"FEWEST_CODED": 1, "ROWS_PER_RANK": 0}


@pytest.fixture(params=[True, False], ids=["bytes", "vectors"])
def always(request, monkeypatch):
    """Codes are used for the smallest gallery, in tiles and scans of a few rows; both kinds of processors."""
    for name, value in ALWAYS.items():
        monkeypatch.setattr(normalized_ranking, name, value)
    for name, value in (("TILE_ROWS", 64), ("SHORTEST_RUN", 8), ("QUERIES_AT_ONCE", 7)):
        monkeypatch.setattr(code_search, name, value)
    for name, value in (("MOST_RUNS", 2), ("SCANNED_AT_LEAST", 1), ("SCANNED_PER_RANK", 1), ("LARGEST_SHARE", 1)):
        monkeypatch.setattr(code_scan, name, value)
    for module in (code_search, query_cohorts):
        monkeypatch.setattr(module, "has_byte_products", lambda: request.param)


def site(seed, count, cameras, make=lambda random, count: random_rows(random, count, 24)):
    """Rows of people and vehicles, of known and unknown cameras; the last 30 are queries."""
    random = np.random.default_rng(seed)
    vectors = make(random, count)
    offsets = random_rows(random, cameras, vectors.shape[1])
    vectors = vectors + 0.6 * offsets[np.arange(count) % cameras]  # the cameras have different scores
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    samples = tuple(
        Sample(Path(f"{seed}/{i}.jpg"), f"p{i % 90}", f"c{i % cameras}" if i % 13 else "") for i in range(count)
    )
    rows = CohortRows.of_samples(samples, vectors)
    return samples, rows.select(np.arange(count - 30)), rows.select(np.arange(count - 30, count))


def every_row_scored(prepared, queries, k, keep):
    """The k best of all rows: every pair is scored exactly and normalized; of equal scores, lower rows first."""
    asked, answers = prepared.query_terms(queries), []
    for query, vector in enumerate(queries.vectors):
        plain = score_rows(vector, prepared.rows.vectors)
        scores = np.float32(2) * plain - asked.terms.mean[query, prepared.columns]
        scores -= prepared.toward(int(asked.own[query])).mean
        allowed = np.flatnonzero(keep)
        order = allowed[np.lexsort((allowed, -scores[allowed]))][:k]
        answers.append((order, scores[order], plain[order]))
    return [np.array(part) for part in zip(*answers, strict=True)]


def assert_every_bit(found, expected):
    rows, scores, plain = expected
    np.testing.assert_array_equal(found.ranking.rows, rows)
    np.testing.assert_array_equal(found.ranking.scores, scores)
    np.testing.assert_array_equal(found.similarities, plain)
    assert (found.ranking.counts == rows.shape[1]).all()


def keep_of(name, random, rows):
    keep = np.ones(rows, np.bool_)
    if name == "scattered":
        keep = random.random(rows) < 0.2
    if name == "runs":
        keep[rows // 4 : rows // 2] = False
    return keep


@pytest.mark.parametrize(
    "make", [lambda random, rows: random_rows(random, rows, 24), tied_rows], ids=["random", "ties"]
)
@pytest.mark.parametrize("kept", ["all", "scattered", "runs"])
@pytest.mark.usefixtures("always")
def test_answers_are_those_of_scoring_every_row(make, kept):
    _, gallery, queries = site(1, 730, 3, make)
    keep = keep_of(kept, np.random.default_rng(2), 700)
    prepared = NormalizedGallery.measure(gallery)
    for count in (1, 2, 9, 30):
        some = queries.select(np.arange(count))
        expected = every_row_scored(prepared, some, 13, keep)
        for _ in range(3):  # the first search has no codes yet
            assert_every_bit(prepared.search(some, 13, None if kept == "all" else keep), expected)
    assert prepared._codes.encoded is not None


@given(st.integers(0, 2**16), st.integers(1, 9), st.integers(1, 40), st.sampled_from([1, 3, 30]))
@settings(max_examples=20, deadline=None)
def test_any_gallery_gives_the_same_bits_with_and_without_codes(seed, cameras, k, count):
    _, gallery, queries = site(seed, 330, cameras)
    some = queries.select(np.arange(count))
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        for settings_ in (NO_CODES, ALWAYS):
            for name, value in settings_.items():
                patch.setattr(normalized_ranking, name, value)
            prepared = NormalizedGallery.prepare(gallery)
            answers.append([prepared.search(some, k) for _ in range(2)][1])
    assert_every_bit(answers[1], (answers[0].ranking.rows, answers[0].ranking.scores, answers[0].similarities))
    assert prepared._codes.encoded is not None or not codes_fit(24, len(prepared.statistics.cameras))


@given(st.integers(0, 2**16), st.sampled_from([24, 64]), st.sampled_from([0.0, 1e-3, 0.4]))
@settings(max_examples=30, deadline=None)
def test_bounds_hold_for_every_row(seed, dimension, spread):
    random = np.random.default_rng(seed)
    vectors, queries = random_rows(random, 90, dimension), random_rows(random, 5, dimension)
    columns, own = random.integers(0, 3, 90), random.integers(0, 4, 5)
    table = (0.5 + spread * random.standard_normal((90, 4))).astype(np.float32)
    means = random.standard_normal((5, 4)).astype(np.float32)
    coded = CodedGallery.of(vectors, columns, 4, lambda column: table[:, column])
    subtracted = {column: coded._subtracted_toward(column) for column in np.unique(own).tolist()}
    scorer = _NormalizedScorer(coded, queries, means, own, subtracted)
    exact = 2 * queries.astype(np.float64) @ vectors.astype(np.float64).T - means[:, columns] - table[:, own].T
    for number, segment in enumerate(coded.segments):
        whole = scorer.coded(number)
        assert np.abs(whole.whole).max() <= 127
        sums = whole.whole.astype(np.float64) @ (segment.codes.codes.astype(np.float64) - 128).T
        rows = coded.order[segment.offset : segment.offset + len(segment.codes.codes)]
        for query in range(5):
            assert np.all(np.abs(whole.scores(query, sums[query]) - exact[query, rows]) <= whole.errors[query])
    assert sorted(coded.order.tolist()) == list(range(90))


@pytest.mark.usefixtures("always")
def test_a_search_that_trusts_codes_is_wrong(monkeypatch):
    whole = _NormalizedScorer.coded

    def trusting(self, number):
        coded = whole(self, number)
        return CodedQueries(coded.whole, coded.units, coded.constants, np.zeros_like(coded.errors))

    _, gallery, queries = site(3, 1530, 3, lambda random, rows: 0.1 * random_rows(random, rows, 64))
    prepared = NormalizedGallery.measure(gallery)
    expected = every_row_scored(prepared, queries, 20, np.ones(1500, np.bool_))[0]
    assert [answers_of(prepared, queries, query) for query in range(30)] == expected.tolist()
    monkeypatch.setattr(_NormalizedScorer, "coded", trusting)
    monkeypatch.setattr(_NormalizedScorer, "floor", lambda self, *_: np.full(len(self.queries), -np.inf, np.float32))
    assert [answers_of(prepared, queries, query) for query in range(30)] != expected.tolist()


def answers_of(prepared, queries, query):
    """The 20 answers of one query; none where too few rows reach the bounds."""
    try:
        return prepared.search(queries.select(np.array([query])), 20).ranking.rows[0].tolist()
    except ValueError:
        return []


@pytest.mark.usefixtures("always")
def test_codes_answer_without_the_vectors_of_most_rows(monkeypatch):
    _, gallery, queries = site(4, 2030, 3, lambda random, rows: random_rows(random, rows, 64))
    prepared, read = NormalizedGallery.measure(gallery), []
    close = _NormalizedScorer.close_scores
    monkeypatch.setattr(
        _NormalizedScorer, "close_scores", lambda self, query, at: (read.append(len(at)), close(self, query, at))[1]
    )
    for count in (1, 9):
        some = queries.select(np.arange(count))
        found = [prepared.search(some, 5) for _ in range(2)][1]
        assert_every_bit(found, every_row_scored(prepared, some, 5, np.ones(2000, np.bool_)))
    assert 0 < sum(read) < 20 * 300


@pytest.mark.usefixtures("always")
def test_rows_that_are_erased_or_added_after_codes_were_made(tmp_path):
    samples, rows, queries = site(5, 400, 3)
    gallery = Gallery.build(Embeddings(samples[:370], rows.vectors, "f00d"))
    gallery.save(tmp_path / "gallery")
    opened = Gallery.open(tmp_path / "gallery")
    asked = {"queries": samples[370:372], "k": 7, "fingerprint": "f00d"}
    before = [search_normalized(opened, queries.vectors[:2], **asked) for _ in range(3)]
    assert normalized_gallery(opened)._codes.encoded is not None
    assert before[0] is not None
    assert before[2] is not None
    np.testing.assert_array_equal(before[0].ranking.scores, before[2].ranking.scores)
    gone = samples[int(before[2].ranking.rows[0, 0])].identity
    Gallery.open(tmp_path / "gallery").erase(gone)
    after = search_normalized(opened, queries.vectors[:2], **asked)
    assert after is not None
    assert all(samples[row].identity != gone for row in after.ranking.rows.reshape(-1).tolist())
    opened = Gallery.open(tmp_path / "gallery")
    opened.add(Embeddings((Sample(Path("new.jpg"), "new", "c1"),), queries.vectors[:1], "f00d"))
    again = [search_normalized(opened, queries.vectors[:1], samples[370:371], 1, fingerprint="f00d") for _ in range(3)]
    assert all(one is not None and one.similarities[0, 0] > 0.99 for one in again)


def test_many_cameras_leave_no_room_for_codes(monkeypatch):
    for name, value in ALWAYS.items():
        monkeypatch.setattr(normalized_ranking, name, value)
    _, gallery, queries = site(6, 630, 20)
    prepared = NormalizedGallery.measure(gallery)
    for _ in range(2):
        found = prepared.search(queries, 4)
    assert prepared._codes.encoded is None
    assert_every_bit(found, every_row_scored(prepared, queries, 4, np.ones(600, np.bool_)))
