"""The sparse camera-aware Jaccard similarity against the recipe with whole matrices and Python lists.

The dense recipe refuses these wrong variants: lists that are blind to the camera, lists that are one too short, a crop
that is not in its own list, neighbours in one direction, equal weights, and averages over a blind list.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.errors import DataError
from reid.retrieval import camera_jaccard as module
from reid.retrieval import camera_neighbours
from reid.retrieval.camera_jaccard import camera_jaccard
from reid.retrieval.camera_neighbours import cosine_blocks, neighbours_in_each_camera, own_and_other_neighbours


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def crops(seed, identities=8, cameras=3, each=4, noise=0.5, shift=0.8):
    """Return vectors (N, 16) in random order, and their cameras; every camera shifts its crops."""
    random = np.random.default_rng(seed)
    identity, camera = (random.permutation(identities * cameras * each) % n for n in (identities, cameras))
    vectors = random.standard_normal((identities, 16))[identity] + shift * random.standard_normal((cameras, 16))[camera]
    return unit(vectors + noise * random.standard_normal(vectors.shape)), camera


def ranking(scores, i, candidates):
    """Return the candidates in the order of row i: the crop itself, then larger scores, then lower rows."""
    return sorted(candidates, key=lambda j: (j != i, -scores[i, j], j))


def dense(scores, cameras, k1, k2, *, blind=False, longer=1, itself=True, mutual=True, weighted=True, blind_mean=False):
    """Compute the Jaccard similarities (N, N) as the recipe is written."""
    scores = scores.astype(np.float64)
    rows = range(len(cameras))
    everyone = [ranking(scores, i, rows) for i in rows]
    own = [ranking(scores, i, [j for j in rows if cameras[j] == cameras[i] and (itself or i != j)]) for i in rows]
    other = [ranking(scores, i, [j for j in rows if cameras[j] != cameras[i]]) for i in rows]

    def reciprocal(lists, k):
        return [{j for j in lists[i][: k + longer] if not mutual or i in lists[j][: k + longer]} for i in rows]

    sets = [a | b for a, b in zip(reciprocal(own, k1[0]), reciprocal(other, k1[1]), strict=True)]
    if blind:
        sets = reciprocal(everyone, sum(k1))
    distance = scores.max() - scores
    weights = np.zeros(scores.shape)
    for i in rows:
        for j in sets[i]:
            weights[i, j] = np.exp(-distance[i, j]) if weighted else 1
        weights[i] /= max(weights[i].sum(), 1e-30)
    lists = [everyone[i][: sum(k2)] if blind_mean else own[i][: k2[0]] + other[i][: k2[1]] for i in rows]
    weights = np.array([weights[members].mean(axis=0) for members in lists])
    minima = np.array([[np.minimum(weights[i], weights[j]).sum() for j in rows] for i in rows])
    return minima / (2 - minima)


def blocks(scores):
    return lambda start, stop: scores[start:stop].copy()


SIZES = [((8, 8), (4, 4)), ((4, 4), (2, 2)), ((5, 20), (3, 3)), ((1, 3), (1, 0)), ((100, 100), (1, 5))]


@pytest.mark.parametrize(("k1", "k2"), SIZES)
def test_equals_the_dense_recipe(k1, k2):
    vectors, cameras = crops(0)
    found = camera_jaccard(cosine_blocks(vectors), cameras, k1=k1, k2=k2)
    np.testing.assert_allclose(found.toarray(), dense(vectors @ vectors.T, cameras, k1, k2), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6),
    st.integers(1, 4), st.integers(0, 4), st.booleans(),
)  # fmt: skip
def test_equals_the_dense_recipe_at_any_size(seed, count, groups, own, other, mean_own, mean_other, tied):
    """Scores that are not symmetric and have many ties are allowed, as are cameras with one crop."""
    random = np.random.default_rng(seed)
    scores = (random.integers(0, 4, (count, count)) if tied else random.standard_normal((count, count))).astype("f4")
    cameras = random.integers(-1, groups, count)
    found = camera_jaccard(blocks(scores), cameras, k1=(own, other), k2=(mean_own, mean_other))
    np.testing.assert_allclose(found.toarray(), dense(scores, cameras, (own, other), (mean_own, mean_other)), atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"blind": True}, {"longer": 0}, {"longer": 2}, {"itself": False}, {"mutual": False}, {"weighted": False},
     {"blind_mean": True}],
    ids=str,
)  # fmt: skip
def test_wrong_variants_differ(wrong):
    vectors, cameras = crops(1)
    found = camera_jaccard(cosine_blocks(vectors), cameras, k1=(4, 4), k2=(2, 2)).toarray()
    expected = dense(vectors @ vectors.T, cameras, (4, 4), (2, 2), **wrong)
    assert np.abs(found - expected).max() > 0.01


def test_scores_of_one_camera_use_the_lists_of_the_own_camera_only():
    vectors, cameras = crops(2)
    same = np.zeros_like(cameras)
    found = camera_jaccard(cosine_blocks(vectors), same, k1=(6, 1), k2=(3, 9))
    np.testing.assert_allclose(found.toarray(), dense(vectors @ vectors.T, same, (6, 50), (3, 1)), atol=1e-5)


def test_blocks_and_a_constant_change_nothing(monkeypatch):
    vectors, cameras = crops(3)
    scores = vectors @ vectors.T
    whole = camera_jaccard(blocks(scores), cameras).toarray()
    monkeypatch.setattr(camera_neighbours, "SMALLEST_BLOCK", 1)
    monkeypatch.setattr(camera_neighbours, "LARGEST_BLOCK", 7)
    monkeypatch.setattr(module, "CELLS_AT_ONCE", 1)
    found = camera_jaccard(blocks(scores - 300), cameras)
    np.testing.assert_allclose(found.toarray(), whole, atol=1e-4)
    np.testing.assert_array_equal(camera_jaccard(blocks(scores), cameras).toarray(), whole)


def test_similarities_are_symmetric_with_one_on_the_diagonal():
    vectors, cameras = crops(4)
    found = camera_jaccard(cosine_blocks(vectors), cameras)
    assert abs(found - found.T).max() < 1e-6
    np.testing.assert_allclose(found.diagonal(), 1, atol=1e-6)
    assert found.dtype == np.float32
    assert found.data.min() > 0


def test_it_finds_the_identity_across_cameras_better_than_the_cosine():
    random = np.random.default_rng(5)
    identity, camera = np.repeat(np.arange(30), 8), np.tile(np.arange(2), 120)
    vectors = random.standard_normal((30, 32))[identity] + 2 * random.standard_normal((2, 32))[camera]
    vectors = unit(vectors + 1.2 * random.standard_normal(vectors.shape))
    across = camera[:, None] != camera

    def share_right(scores):
        return np.mean(identity[np.where(across, scores, -np.inf).argmax(axis=1)] == identity)

    jaccard = camera_jaccard(cosine_blocks(vectors), camera, k1=(4, 4), k2=(2, 2)).toarray()
    assert share_right(jaccard) > share_right(vectors @ vectors.T) + 0.05


def test_neighbours_in_each_camera_are_those_of_a_sort():
    vectors, cameras = crops(6)
    scores = np.round(vectors @ vectors.T, 1)
    rows, values = neighbours_in_each_camera(blocks(scores), cameras, 40)
    for i in range(len(cameras)):
        for camera in range(3):
            members = ranking(scores, i, [j for j in np.flatnonzero(cameras == camera) if j != i])
            assert rows[i, camera].tolist() == members + [-1] * (40 - len(members))
            np.testing.assert_array_equal(values[i, camera][: len(members)], scores[i, members])


def test_a_crop_is_its_own_first_neighbour_even_where_others_are_more_similar():
    scores = np.float32([[0, 1, 2], [1, 0, 3], [2, 3, 0]])
    found = own_and_other_neighbours(blocks(scores), np.array([0, 0, 1]), own=2, others=2)
    assert found.own.tolist() == [[0, 1], [1, 0], [2, -1]]
    assert found.own_scores.tolist() == [[0, 1], [0, 1], [0, -np.inf]]
    assert found.others.tolist() == [[2, -1], [2, -1], [1, 0]]


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"k1": (0, 8)}, r"\(0, 8\)"),
        ({"k2": (0, 1)}, r"\(0, 1\)"),
        ({"k1": (1, 2, 3)}, r"\(1, 2, 3\)"),
        ({"cameras": np.zeros(3, int)}, r"\(3, 3\)"),
        ({"cameras": np.zeros(96)}, "float64"),
        ({"similarity": lambda start, stop: np.full((stop - start, 96), np.nan, "f4")}, "row 0"),
    ],
)
def test_bad_input_is_one_clear_line(change, value):
    vectors, cameras = crops(7)
    given_arguments = {"similarity": cosine_blocks(vectors), "cameras": cameras} | change
    with pytest.raises(DataError, match=value) as caught:
        camera_jaccard(**given_arguments)
    assert "\n" not in str(caught.value)
