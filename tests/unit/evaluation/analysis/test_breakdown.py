"""Tables by pairs of groups and the camera bias equal those of loops.

The oracles refuse these wrong variants: chance over all rows in place of those of other identities, the nearest of all
rows in place of those of other identities, tied rows counted whole.
"""

from __future__ import annotations

import numpy as np
import pytest

from reid.errors import DataError
from reid.evaluation.analysis.breakdown import camera_bias, pair_table
from reid.evaluation.labels import Labels
from reid.evaluation.metrics import vector_metrics


def case(seed=0, queries=40, gallery=150, pull=0.0):
    """Make vectors of people, plus ``pull`` times a direction of the camera."""
    random = np.random.default_rng(seed)
    labels = Labels(
        random.integers(0, 12, queries), random.integers(0, 10, gallery),
        random.integers(0, 4, queries), random.integers(0, 3, gallery),
    )  # fmt: skip
    people, cameras = random.standard_normal((12, 16)), random.standard_normal((4, 16))
    vectors = [
        people[who] + pull * cameras[where] + 0.8 * random.standard_normal((len(who), 16))
        for who, where in ((labels.query_identities, labels.query_cameras),
                           (labels.gallery_identities, labels.gallery_cameras))
    ]  # fmt: skip
    return *((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in vectors), labels


def slow_pair(query, gallery, labels, source, target):
    """Compute AP and first hits of the queries of one camera, without the rows of all other cameras."""
    precisions, firsts = [], []
    for q in np.flatnonzero(labels.query_cameras == source):
        order = sorted(np.flatnonzero(labels.gallery_cameras == target), key=lambda g: -float(query[q] @ gallery[g]))
        same = [labels.gallery_identities[g] == labels.query_identities[q] for g in order]
        if source == target:
            same = [False for right in same if not right]
        ranks = [rank for rank, right in enumerate(same, start=1) if right]
        if ranks:
            precisions.append(np.mean([hits / rank for hits, rank in enumerate(ranks, start=1)]))
            firsts.append(ranks[0] == 1)
    return (np.mean(precisions), np.mean(firsts), len(firsts)) if firsts else (np.nan, np.nan, 0)


def test_pairs_equal_the_loop():
    query, gallery, labels = case()
    table = pair_table(query, gallery, labels, query_groups=labels.query_cameras, gallery_groups=labels.gallery_cameras)
    assert (table.query_groups, table.gallery_groups) == (("0", "1", "2", "3"), ("0", "1", "2"))
    for i in range(4):
        for j in range(3):
            expected = slow_pair(query, gallery, labels, i, j)
            assert (table.mAP[i, j], table.rank1[i, j], table.matched[i, j]) == pytest.approx(expected, nan_ok=True)
    assert np.isnan(table.mAP[[0, 1, 2], [0, 1, 2]]).all()  # the query's own camera is left out
    assert table.matched.max() > 3


def test_one_group_each_is_the_whole_evaluation():
    query, gallery, labels = case(1)
    table = pair_table(query, gallery, labels, query_groups=["v"] * 40, gallery_groups=["i"] * 150)
    whole = vector_metrics(query, gallery, labels)
    assert (table.mAP.item(), table.rank1.item()) == (whole.mAP, whole.rank(1))
    assert (table.query_groups, table.gallery_groups) == (("v",), ("i",))


def test_locations_hold_within_a_pair():
    query, gallery, labels = case(2)
    cameras = (labels.query_cameras, labels.gallery_cameras)
    located = Labels(labels.query_identities, labels.gallery_identities, *cameras, *cameras)
    groups = {"query_groups": labels.query_cameras % 2, "gallery_groups": labels.gallery_cameras % 2}
    assert not np.array_equal(
        pair_table(query, gallery, located, **groups).mAP, pair_table(query, gallery, labels, **groups).mAP
    )


def slow_bias(query, gallery, labels, others=True):
    shared, chance = [], []
    for q in range(len(query)):
        rows = [
            g for g in range(len(gallery)) if not others or labels.gallery_identities[g] != labels.query_identities[q]
        ]
        own = [labels.gallery_cameras[g] == labels.query_cameras[q] for g in rows]
        scores = [float(np.float32(query[q] @ gallery[g])) for g in rows]
        nearest = [mine for mine, score in zip(own, scores, strict=True) if score == max(scores)]
        shared.append(np.mean(nearest))
        chance.append(np.mean(own))
    return np.array(shared), np.array(chance)


@pytest.mark.parametrize("pull", [0.0, 2.0])
def test_bias_equals_the_loop(pull):
    query, gallery, labels = case(3, pull=pull)
    bias = camera_bias(query, gallery, labels)
    shared, chance = slow_bias(query, gallery, labels)
    np.testing.assert_allclose(bias.shared, shared)
    np.testing.assert_allclose(bias.chance, chance)
    assert bias.factor == pytest.approx(shared.sum() / chance.sum())
    for i, camera in enumerate(bias.cameras):
        rows = labels.query_cameras == int(camera)
        assert (bias.queries[i], bias.observed[i], bias.expected[i]) == pytest.approx(
            (rows.sum(), shared[rows].mean(), chance[rows].mean())
        )


def test_looking_at_all_rows_differs():
    query, gallery, labels = case(3)
    bias = camera_bias(query, gallery, labels)
    shared, chance = slow_bias(query, gallery, labels, others=False)
    assert not np.allclose(bias.chance, chance)
    assert not np.allclose(bias.shared, shared)


def test_a_pull_shows_and_none_is_fair():
    fair = camera_bias(*case(4, queries=400, gallery=600))
    pulled = camera_bias(*case(4, queries=400, gallery=600, pull=2.0))
    assert fair.factor == pytest.approx(1, abs=0.25)
    assert pulled.factor > 2


def test_tied_rows_count_by_their_share():
    """Two copies of the nearest row, one from each camera, count one half each."""
    vectors = np.float32([[1, 0], [1, 0], [0, 1], [1, 0]])
    labels = Labels(np.array([0]), np.array([1, 2, 3, 0]), np.array([7]), np.array([7, 8, 7, 7]))
    bias = camera_bias(vectors[:1], vectors, labels)
    assert bias.shared.tolist() == [0.5]  # the fourth row shows the query's identity and is not looked at
    assert bias.chance.tolist() == pytest.approx([2 / 3])
    assert bias.factor == pytest.approx(0.75)


def test_a_camera_that_the_gallery_lacks():
    vectors = np.eye(2, dtype=np.float32)
    labels = Labels(np.array([0]), np.array([1, 2]), np.array([7]), np.array([8, 9]))
    bias = camera_bias(vectors[:1], vectors, labels)
    assert np.isnan(bias.factor)
    assert (bias.cameras, bias.expected.tolist()) == (("7",), [0])


def test_bad_input_is_one_clear_line():
    query, gallery, labels = case()
    with pytest.raises(DataError, match=r"gallery_groups.*\(150,\)"):
        pair_table(query, gallery, labels, query_groups=["v"] * 40, gallery_groups=["i"])
    same = Labels(np.zeros(40, int), np.zeros(150, int), labels.query_cameras, labels.gallery_cameras)
    with pytest.raises(DataError, match="camera bias"):
        camera_bias(query, gallery, same)
