"""The cohort statistics of queries: those of all similarities, the same bits by every way that chooses the crops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_embeddings import random_rows, tied_rows
from reid.retrieval import query_cohorts
from reid.retrieval.cohort_rows import CohortRows, cohort_of
from reid.retrieval.cohorts import measure_cohorts
from reid.retrieval.faiss_index import pair_products
from reid.retrieval.query_cohorts import NearCrops, encode_cohort, measure_queries


@pytest.fixture(params=[True, False], ids=["bytes", "vectors"])
def byte_products(request, monkeypatch):
    """Both kinds of processors."""
    monkeypatch.setattr(query_cohorts, "has_byte_products", lambda: request.param)


def rows_of(random, count, cameras, make):
    """Rows of two categories, some of unknown cameras, some of one image."""
    names = [f"{'person' if i % 5 else 'vehicle'}/c{i % cameras if i % 7 else ''}" for i in range(count)]
    names = [name.removesuffix("c") if name.endswith("/c") else name for name in names]
    keys = random.integers(0, 2**63, count).astype(np.uint64)
    return CohortRows(make(random, count), np.array(names), keys, (np.arange(count) // 2 * 2).astype(np.uint64))


def mean_of_all(query, part, k):
    """The mean of the k largest of all similarities, pair by pair, without the image of the query itself."""
    count = len(part.vectors)
    scores = pair_products(query.vectors, part.vectors, np.zeros(count, np.int64), np.arange(count))
    scores = np.sort(scores[part.images != query.images[0]])[::-1][:k]
    return scores.astype(np.float64).sum() / len(scores) if len(scores) else np.nan


@given(st.integers(0, 2**16), st.sampled_from([1, 2, 3, 70]), st.integers(1, 4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_means_are_those_of_all_similarities_to_the_last_bit(seed, queries, cameras, tied):
    random = np.random.default_rng(seed)
    rows = rows_of(random, 240, cameras, tied_rows if tied else lambda r, n: random_rows(r, n, 24))
    asked, gallery = rows.select(random.permutation(240)[:queries]), rows.select(np.arange(0, 240, 2))
    cohort = cohort_of(gallery, limit=30)
    known = measure_cohorts(asked, cohort, "csls")
    near: list[NearCrops] = []
    for codes in ((), encode_cohort(cohort)):
        found = measure_queries(asked, cohort, codes, near)
        np.testing.assert_allclose(found.mean, known.mean, atol=1e-6)
        for query in range(min(queries, 9)):
            one = asked.select(np.array([query]))
            alone = measure_queries(one, cohort, codes)
            np.testing.assert_array_equal(alone.mean[0], found.mean[query])
            for pool, parts in cohort.parts.items():
                if one.cameras[0].startswith(pool):
                    for name, part in parts:
                        column = found.cameras.index(name)
                        if name != pool:
                            expected = np.float32(mean_of_all(one, part, int(found.k[column])))
                            np.testing.assert_array_equal(found.mean[query, column], expected)
    for crops in near:
        products = np.einsum("ed,ed->e", asked.vectors[crops.query], gallery.vectors[crops.row])
        np.testing.assert_allclose(crops.score, products, atol=1e-6)
        assert np.all(asked.images[crops.query] != gallery.images[crops.row])


@pytest.mark.usefixtures("byte_products")
@pytest.mark.parametrize("queries", [1, 40])
def test_codes_read_the_vectors_of_few_crops(queries, monkeypatch):
    random, read = np.random.default_rng(0), []
    rows = CohortRows.of_cameras(["door", "hall"] * 1000, random_rows(random, 2000, 64))
    cohort = cohort_of(rows)
    whole = query_cohorts._close_scores
    monkeypatch.setattr(
        query_cohorts, "_close_scores", lambda q, v, near, k: (read.append(len(near.crop)), whole(q, v, near, k))[1]
    )
    measure_queries(rows.select(np.arange(queries)), cohort, encode_cohort(cohort))
    assert 0 < sum(read) < queries * 400


@pytest.mark.usefixtures("byte_products")
def test_equal_crops_and_crops_of_the_same_image():
    vectors = np.tile(random_rows(np.random.default_rng(0), 1, 16), (90, 1))
    rows = CohortRows(
        vectors, np.array(["/door"] * 45 + ["/hall"] * 45), np.arange(90, dtype=np.uint64), np.zeros(90, np.uint64)
    )
    cohort = cohort_of(rows)
    for count in (1, 20):
        same = measure_queries(rows.select(np.arange(count)), cohort, encode_cohort(cohort))
        assert np.isnan(same.mean).all()
        other = CohortRows(rows.vectors, rows.cameras, rows.keys, np.ones(90, np.uint64)).select(np.arange(count))
        np.testing.assert_allclose(measure_queries(other, cohort, encode_cohort(cohort)).mean, 1, atol=1e-6)
