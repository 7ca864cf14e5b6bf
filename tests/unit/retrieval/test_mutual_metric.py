"""The mutual-neighbour metric and camera-balanced expansion against double loops of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.errors import DataError
from reid.retrieval.camera_expansion import expand_by_camera
from reid.retrieval.camera_neighbours import cosine_blocks
from reid.retrieval.mutual_metric import Declined, MutualMetric, mutual_neighbour_metric, mutual_pairs


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def crops(seed, identities=30, cameras=3, each=2, dimension=12, noise=0.3):
    """Return vectors, cameras and identities; the first three directions differ from camera to camera at random."""
    random = np.random.default_rng(seed)
    identity = np.repeat(np.arange(identities), cameras * each)
    camera = np.tile(np.repeat(np.arange(cameras), each), identities)
    changes = np.zeros((identities, cameras, dimension))
    changes[:, :, :3] = random.standard_normal((identities, cameras, 3))
    vectors = random.standard_normal((identities, dimension))[identity] + 1.5 * changes[identity, camera]
    return unit(vectors + noise * random.standard_normal(vectors.shape)), camera, identity


def nearest(scores, i, members, k):
    return sorted((j for j in members if j != i), key=lambda j: (-scores[i, j], j))[:k]


def dense_pairs(scores, cameras, k):
    """List the pairs of two cameras that are among each other's k nearest of the other's camera."""
    rows = range(len(cameras))

    def in_list(i, j):
        return j in nearest(scores, i, np.flatnonzero(cameras == cameras[j]).tolist(), k)

    return [
        (i, j) for i in rows for j in rows if i < j and cameras[i] != cameras[j] and in_list(i, j) and in_list(j, i)
    ]


def dense_metric(vectors, pairs, shrink, *, unshrunk_share=1.0, power=-0.5):
    vectors = vectors.astype(np.float64)
    scatter = sum(np.outer(vectors[i] - vectors[j], vectors[i] - vectors[j]) for i, j in pairs) / len(pairs) / 2
    size = len(scatter)
    scatter = (1 - shrink * unshrunk_share) * scatter + shrink * np.trace(scatter) / size * np.eye(size)
    values, directions = np.linalg.eigh(scatter)
    return directions @ np.diag(values**power) @ directions.T


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_pairs_are_mutual_in_two_cameras(seed, count, groups, k, tied):
    random = np.random.default_rng(seed)
    scores = (random.integers(0, 3, (count, count)) if tied else random.standard_normal((count, count))).astype("f4")
    cameras = random.integers(0, groups, count)
    found = mutual_pairs(lambda start, stop: scores[start:stop].copy(), cameras, k)
    assert list(zip(*(rows.tolist() for rows in found), strict=True)) == dense_pairs(scores, cameras, k)


@pytest.mark.parametrize(("k", "shrink"), [(1, 0.3), (3, 0.3), (3, 0.0), (2, 1.0)])
def test_the_metric_equals_the_formula(k, shrink):
    vectors, cameras, _ = crops(0)
    found = mutual_neighbour_metric(vectors, cosine_blocks(vectors), cameras, k=k, shrink=shrink)
    pairs = dense_pairs(vectors @ vectors.T, cameras, k)
    expected = dense_metric(vectors, pairs, shrink)
    assert isinstance(found, MutualMetric)
    assert found.pairs == len(pairs)
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.apply(vectors), unit(vectors @ expected), atol=1e-5)


@pytest.mark.parametrize("wrong", [{"power": -1}, {"power": 0.5}, {"unshrunk_share": 0}], ids=str)
def test_wrong_variants_of_the_metric_differ(wrong):
    vectors, cameras, _ = crops(1)
    found = mutual_neighbour_metric(vectors, cosine_blocks(vectors), cameras, k=1)
    expected = dense_metric(vectors, dense_pairs(vectors @ vectors.T, cameras, 1), 0.3, **wrong)
    assert np.abs(found.apply(vectors) - unit(vectors @ expected)).max() > 1e-3


def test_the_metric_finds_more_identities_across_cameras():
    vectors, cameras, identity = crops(2, identities=60, each=1)
    metric = mutual_neighbour_metric(vectors, cosine_blocks(vectors), cameras, k=1)

    def share_right(rows):
        scores = np.where(cameras[:, None] != cameras, rows @ rows.T, -np.inf)
        return np.mean(identity[scores.argmax(axis=1)] == identity)

    assert share_right(metric.apply(vectors)) > share_right(vectors) + 0.05


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda v, c: (v, np.zeros_like(c), 0.3), "one camera"),
        (lambda v, c: (v[:12], c[:12], 0.3), "pairs"),
        (lambda v, c: (np.pad(v, ((0, 0), (0, 4))), c, 0.0), "larger shrink"),
    ],
)
def test_the_metric_declines_with_one_line(change, value):
    vectors, cameras, _ = crops(3)
    rows, groups, shrink = change(vectors, cameras)
    found = mutual_neighbour_metric(rows, cosine_blocks(rows), groups, k=1, shrink=shrink)
    assert isinstance(found, Declined)
    assert value in found.reason
    assert "\n" not in found.reason


def dense_expansion(vectors, scores, cameras, own, others):
    expanded = []
    for i in range(len(vectors)):
        chosen = [i]
        for camera in set(cameras.tolist()):
            k = own if camera == cameras[i] else others
            chosen += nearest(scores, i, np.flatnonzero(cameras == camera).tolist(), k)
        expanded.append(vectors[chosen].astype(np.float64).mean(axis=0))
    return unit(np.array(expanded))


@pytest.mark.parametrize(("own", "others"), [(5, 5), (1, 0), (0, 1), (1, 2), (100, 1)])
def test_expansion_equals_the_double_loop(own, others):
    vectors, cameras, _ = crops(4, cameras=4)
    guide = (vectors @ vectors.T + np.random.default_rng(0).standard_normal((len(vectors),) * 2)).astype(np.float32)
    found = expand_by_camera(vectors, lambda a, b: guide[a:b].copy(), cameras, own=own, others=others)
    np.testing.assert_allclose(found, dense_expansion(vectors, guide, cameras, own, others), atol=1e-6)


def test_wrong_variants_of_expansion_differ():
    """Neighbours by the inner product instead of the given scores, the row itself left out, numbers exchanged."""
    vectors, cameras, _ = crops(5, cameras=4)
    guide = (vectors @ vectors.T + np.random.default_rng(1).standard_normal((len(vectors),) * 2)).astype(np.float32)
    found = expand_by_camera(vectors, lambda a, b: guide[a:b].copy(), cameras, own=1, others=2)
    itself = unit(dense_expansion(vectors, guide, cameras, 1, 2) * 8 - vectors)
    for wrong in (
        dense_expansion(vectors, vectors @ vectors.T, cameras, 1, 2),
        dense_expansion(vectors, guide, cameras, 2, 1),
        itself,
    ):
        assert np.abs(found - wrong).max() > 0.01


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (lambda v, s, c: expand_by_camera(v, s, c, own=0, others=0), "0 and 0"),
        (lambda v, s, c: expand_by_camera(v, s, c, own=-1, others=2), "-1 and 2"),
        (lambda v, s, c: expand_by_camera(v[:5], s, c, own=1, others=1), r"\(5, 12\)"),
        (lambda v, s, c: mutual_neighbour_metric(v, s, c, k=0), "got 0"),
        (lambda v, s, c: mutual_neighbour_metric(v, s, c, k=1, shrink=1.5), r"1\.5"),
        (lambda v, s, c: mutual_neighbour_metric(v[:5], s, c, k=1), r"\(5, 12\)"),
        (lambda v, s, c: mutual_neighbour_metric(v, s, c, k=1).apply(v[:, :3]), r", 3\)"),
        (lambda v, s, c: mutual_neighbour_metric(v, s, c, k=1).apply(0 * v), "row 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, value):
    vectors, cameras, _ = crops(6)
    with pytest.raises(DataError, match=value) as caught:
        call(vectors, cosine_blocks(vectors), cameras)
    assert "\n" not in str(caught.value)


def test_expansion_refuses_a_mean_of_zero():
    vectors = np.float32([[1, 0], [-1, 0]])
    with pytest.raises(DataError, match="row 0"):
        expand_by_camera(vectors, cosine_blocks(vectors), np.array([0, 1]), own=0, others=1)
