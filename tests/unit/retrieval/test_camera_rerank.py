"""Camera-aware re-ranking and expansion of queries and gallery against whole matrices."""

from __future__ import annotations

import numpy as np
import pytest

from reid.retrieval.camera_expansion import expand_by_camera
from reid.retrieval.camera_jaccard import camera_jaccard
from reid.retrieval.camera_rerank import CameraLists, expand_crops, find_camera_lists, join_crops, rerank_by_camera
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.identity_size import IdentitySize
from reid.retrieval.mutual_metric import Declined
from reid.retrieval.score_normalization import normalize_scores


def crops(seed, each=3, identities=40, cameras=2):
    """Return rows of identities with ``each`` crops in every camera, in random order."""
    random = np.random.default_rng(seed)
    count = identities * cameras * each
    identity, camera = np.divmod(random.permutation(count) // each, cameras)
    vectors = random.standard_normal((identities, 24))[identity] + random.standard_normal((cameras, 24))[camera]
    vectors = vectors + 0.4 * random.standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return CohortRows.of_cameras([f"c{number}" for number in camera], vectors)


def sides(seed=0):
    """Return 30 queries and a gallery that holds ten of them too, in another order."""
    rows = crops(seed)
    return rows.select(np.arange(30)), rows.select(np.r_[np.arange(239, 29, -1), np.arange(10)])


def dense(queries, gallery, lists):
    """Return the scores (Q, G) from the matrices of all images, and the normalized ones."""
    joined = {int(image): None for image in [*queries.images, *gallery.images]}
    every = CohortRows.joined(queries, gallery)
    rows = every.select(np.array([every.images.tolist().index(image) for image in joined]))
    normalized = normalize_scores(rows, rows)(0, len(joined)).copy()
    cameras = np.unique(rows.cameras, return_inverse=True)[1]
    jaccard = camera_jaccard(
        lambda start, stop: normalized[start:stop].copy(), cameras, k1=lists.size.k1, k2=lists.size.k2
    ).toarray()
    order = {image: row for row, image in enumerate(joined)}
    of_queries, of_gallery = ([order[int(image)] for image in side.images] for side in (queries, gallery))
    return jaccard[np.ix_(of_queries, of_gallery)], normalized[np.ix_(of_queries, of_gallery)]


def test_scores_are_jaccard_similarities_and_then_normalized_scores():
    queries, gallery = sides()
    lists = find_camera_lists(queries, gallery)
    assert isinstance(lists, CameraLists)
    assert len(lists.crops.rows.vectors) == 240
    found = rerank_by_camera(lists)(0, 30)
    jaccard, normalized = dense(queries, gallery, lists)
    near = jaccard > 0
    assert 0.02 < near.mean() < 0.98
    np.testing.assert_allclose(found[near], jaccard[near], atol=1e-5)
    np.testing.assert_allclose(found[~near], (normalized[~near] - 4) / 8, atol=1e-5)
    assert found[~near].max() < 0 < found[near].min()


def test_blocks_of_queries_change_nothing():
    queries, gallery = sides(1)
    reranked = rerank_by_camera(find_camera_lists(queries, gallery))
    whole = reranked(0, 30)
    parts = [reranked(start, min(start + 7, 30)) for start in range(0, 30, 7)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_all_crops_may_be_queries_and_gallery():
    """A query is one image with its gallery row, so it is not its own neighbour twice."""
    rows = crops(2)
    lists = find_camera_lists(rows, rows)
    assert len(lists.near.own) == len(rows.vectors)
    np.testing.assert_allclose(np.diag(rerank_by_camera(lists)(0, len(rows.vectors))), 1, atol=1e-6)
    np.testing.assert_array_equal(lists.crops.queries, lists.crops.gallery)


def test_joined_crops_keep_the_order_of_their_first_appearance():
    queries, gallery = sides(3)
    joined = join_crops(queries, gallery)
    np.testing.assert_array_equal(joined.rows.vectors[joined.queries], queries.vectors)
    np.testing.assert_array_equal(joined.rows.vectors[joined.gallery], gallery.vectors)
    assert joined.queries.tolist() == list(range(30))
    assert joined.gallery.tolist() == [*range(30, 240), *range(10)]


def test_the_stamp_has_the_lengths_of_the_lists():
    lists = find_camera_lists(*sides(4))
    (own, others), (mean_own, mean_others) = lists.size.k1, lists.size.k2
    expected = f"camera-aware Jaccard on csls (k1 {own}+{others}, k2 {mean_own}+{mean_others})"
    assert rerank_by_camera(lists).stamp == expected


def test_expansion_uses_both_sides_and_as_many_crops_as_an_identity_has():
    queries, gallery = sides(5)
    lists = find_camera_lists(queries, gallery)
    assert lists.size.crops == 3
    (of_queries, of_gallery), stamp = expand_crops(lists)
    rows = lists.crops.rows
    expected = expand_by_camera(rows.vectors, normalize_scores(rows, rows), lists.crops.cameras, own=2, others=3)
    np.testing.assert_allclose(of_queries, expected[lists.crops.queries], atol=1e-6)
    np.testing.assert_allclose(of_gallery, expected[lists.crops.gallery], atol=1e-6)
    assert stamp == "camera-balanced expansion by csls (2 of the own, 3 of each other camera)"
    moved = lists.of_vectors(CohortRows(of_queries, *fields(queries)), CohortRows(of_gallery, *fields(gallery)))
    assert moved.size == lists.size
    np.testing.assert_array_equal(moved.crops.rows.vectors, expected)


def fields(rows):
    return rows.cameras, rows.keys, rows.images


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda: crops(6, each=1, identities=100), "about 1 crop in a camera"),
        (lambda: crops(6, each=3, identities=10), "60 crops are too few"),
        (lambda: crops(6, cameras=1, each=6), "one camera"),
        (lambda: partly_random(6), "of 880 crops are similar enough"),
    ],
)
def test_it_declines_with_one_line(change, value):
    rows = change()
    found = find_camera_lists(rows.select(np.arange(20)), rows)
    assert isinstance(found, Declined)
    assert value in found.reason
    assert "\n" not in found.reason


def partly_random(seed):
    """Return identities with several crops, and many crops of nobody else."""
    random = np.random.default_rng(seed)
    several = crops(seed)
    single = random.standard_normal((640, 24)).astype(np.float32)
    single /= np.linalg.norm(single, axis=1, keepdims=True)
    names = [*several.cameras.tolist(), *(f"/c{number % 2}" for number in range(640))]
    return CohortRows.of_cameras([name[1:] for name in names], np.concatenate([several.vectors, single]))


def test_it_declines_where_groups_are_of_one_camera(monkeypatch):
    size = IdentitySize(3, 0, 40, 0.7)
    monkeypatch.setattr("reid.retrieval.camera_rerank.estimate_identity_size", lambda *_: size)
    found = find_camera_lists(*sides(7))
    assert isinstance(found, Declined)
    assert "40 groups of similar crops are of one camera" in found.reason
