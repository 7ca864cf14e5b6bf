"""Clusters of a group: density over Jaccard distances, settings that follow the data, figures, and bridges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.adaptation.agreement import mutual_share
from reid.adaptation.bridges import join_groups, matches_beyond_chance, mutual_matches
from reid.adaptation.clusters import (
    ClusterSettings,
    centered_by_camera,
    cluster_group,
    fitting_clusters,
    share_of_repeats,
)
from reid.adaptation.stop_rule import figures_of
from reid.retrieval.camera_jaccard import camera_jaccard
from reid.retrieval.score_normalization import normalize_among


def people(count: int, sizes: np.ndarray, noise: float = 0.15, width: int = 32, seed: int = 0):
    """Vectors of people whose numbers of crops in each camera are ``sizes`` (count, cameras); identities, cameras."""
    random = np.random.default_rng(seed)
    shifts = random.normal(size=(sizes.shape[1], width)) * 0.3
    looks = random.normal(size=(count, width))
    identities = np.repeat(np.arange(count), sizes.sum(1))
    cameras = np.concatenate([np.repeat(np.arange(sizes.shape[1]), row) for row in sizes])
    vectors = looks[identities] + shifts[cameras] + random.normal(size=(len(cameras), width)) * noise
    vectors = centered_by_camera(vectors.astype(np.float32), cameras)
    return vectors, identities, cameras


def dense_density(distance: np.ndarray, radius: float, fewest: int) -> np.ndarray:
    """DBSCAN by its definition: cores, the components of cores, borders to the first component that reaches them."""
    near = distance <= radius
    core = near.sum(1) >= fewest
    labels = np.full(len(distance), -1)
    count = 0
    for seed in range(len(distance)):
        if not core[seed] or labels[seed] >= 0:
            continue
        labels[seed], waiting = count, [seed]
        while waiting:
            here = waiting.pop()
            for other in np.flatnonzero(near[here] & (labels < 0)):
                labels[other] = count
                waiting += [other] if core[other] else []
        count += 1
    return labels


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels[labels >= 0])}


@pytest.mark.parametrize("k", [4, 8])
def test_clusters_are_those_of_density_over_the_jaccard_distance(k: int) -> None:
    vectors, _, cameras = people(12, np.full((12, 2), 5), noise=0.6)
    chosen = ClusterSettings((k, k), (k // 2, k // 2))
    distance = 1 - camera_jaccard(normalize_among(vectors, cameras), cameras, k1=chosen.k1, k2=chosen.k2).toarray()
    expected = dense_density(distance, chosen.radius, chosen.fewest)
    found = cluster_group(vectors, cameras, chosen)
    cores = (distance <= chosen.radius).sum(1) >= chosen.fewest  # a border between two clusters may be in either
    assert partition(np.where(cores, found, -1)) == partition(np.where(cores, expected, -1))
    assert np.array_equal(found < 0, expected < 0)


def test_even_people_are_found_with_as_many_neighbours_as_they_have_crops() -> None:
    vectors, identities, cameras = people(40, np.full((40, 2), 8))
    labels, chosen = fitting_clusters(vectors, cameras)
    assert chosen == ClusterSettings((8, 8), (4, 4))
    assert partition(labels) == partition(identities)


def test_few_and_unequal_crops_keep_small_neighbourhoods() -> None:
    sizes = np.random.default_rng(2).integers(1, 6, (40, 2))
    sizes[:14, 1] = 0  # people in one camera only
    vectors, _, cameras = people(40, sizes)
    assert fitting_clusters(vectors, cameras)[1] == ClusterSettings((4, 4), (2, 2))


def test_repeats_tell_several_crops_of_a_person_from_one() -> None:
    several, _, of = people(40, np.full((40, 2), 6), noise=0.4)
    single, _, alone = people(100, np.full((100, 2), 1), noise=0.4)
    assert share_of_repeats(several, of) > 0.5 > share_of_repeats(single, alone)
    assert share_of_repeats(several, np.zeros(len(several), np.int64)) == 1


def test_figures_count_clusters_and_cameras() -> None:
    labels = np.array([3, 3, 3, 3, 9, 9, -1, -1])
    cameras = np.array([0, 0, 0, 2, 1, 1, 1, 2])
    found = figures_of(labels, cameras, "person visible", 0.7)
    assert (found.clusters, found.clustered, found.spanning) == (2, 0.75, 0.5)
    assert found.coverage == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.crops_a_camera == 2  # of 3, 1 and 2
    assert found.quality == pytest.approx(0.75 * 0.5)
    assert figures_of(np.full(4, -1), np.zeros(4, np.int64), "x").quality == 0


def test_a_row_at_the_mean_of_its_camera_stays() -> None:
    vectors = np.float32([[1, 0], [1, 0], [0, 1]])
    assert np.array_equal(centered_by_camera(vectors, np.array([0, 0, 1])), vectors)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_mutual_matches_are_the_best_both_ways(rows: int, columns: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    expected = [
        [i, j] for i in range(rows) for j in range(columns)
        if scores[i, j] == scores[i].max() and scores[i, j] == scores[:, j].max()
    ]  # fmt: skip
    assert mutual_matches(scores).tolist() == expected


def test_groups_are_joined_where_matches_are_beyond_chance_only() -> None:
    random = np.random.default_rng(5)
    looks = random.normal(size=(30, 64)).astype(np.float32)
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    like = looks + 0.05 * random.normal(size=looks.shape).astype(np.float32)
    unlike = random.normal(size=looks.shape).astype(np.float32)
    assert matches_beyond_chance(looks, like).tolist() == [[i, i] for i in range(30)]
    assert len(matches_beyond_chance(looks, unlike / np.linalg.norm(unlike, axis=1, keepdims=True))) == 0
    labels, groups = np.arange(60), np.repeat([0, 1], 30)
    assert np.array_equal(
        join_groups(np.concatenate([looks, like]), labels, groups, [(0, 1)]), np.tile(np.arange(30), 2)
    )
    assert np.array_equal(join_groups(np.concatenate([looks, like]), labels, groups, []), np.arange(60))


def test_the_mutual_share_is_that_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reid.retrieval.normalization_choice.ROWS_AT_ONCE", 7)
    vectors, _, cameras = people(20, np.full((20, 3), 2), noise=1.0)
    groups = (np.arange(len(cameras)) % 2).astype(np.int64)
    shares = []
    for group in range(2):
        for one in range(3):
            for two in range(one + 1, 3):
                a, b = (np.flatnonzero((groups == group) & (cameras == camera)) for camera in (one, two))
                scores = vectors[a] @ vectors[b].T
                shares.append(np.mean([scores[:, scores[i].argmax()].argmax() == i for i in range(len(a))]))
    assert mutual_share(vectors, cameras, groups) == pytest.approx(np.mean(shares))
    assert np.isnan(mutual_share(vectors, np.zeros(len(vectors), np.int64), groups))
