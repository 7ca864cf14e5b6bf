"""The estimate of how many crops an identity has in a camera, on crops whose number is known."""

from __future__ import annotations

import numpy as np
import pytest

from reid.retrieval.camera_jaccard import jaccard_of_lists
from reid.retrieval.identity_size import (
    FIRST_LISTS,
    SAME,
    IdentitySize,
    _measure_groups,
    estimate_identity_size,
    lists_for_estimate,
)
from reid.retrieval.score_normalization import normalize_among


def crops(seed, each, identities=60, cameras=3, noise=0.35):
    """Return vectors and cameras of identities with ``each`` crops in every camera, or 1 to -each at random."""
    random = np.random.default_rng(seed)
    numbers = np.full((identities, cameras), each) if each > 0 else random.integers(1, 1 - each, (identities, cameras))
    identity = np.repeat(np.arange(identities), numbers.sum(axis=1))
    camera = np.concatenate([np.repeat(np.arange(cameras), row) for row in numbers])
    vectors = random.standard_normal((identities, 24))[identity] + random.standard_normal((cameras, 24))[camera]
    vectors = vectors + 0.3 * random.standard_normal((identities, cameras, 24))[identity, camera]
    vectors = vectors + noise * random.standard_normal(vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), camera


def estimate(vectors, cameras):
    near = lists_for_estimate(normalize_among(vectors, cameras), cameras)
    return estimate_identity_size(near, cameras), near


@pytest.mark.parametrize("cameras", [2, 3])
@pytest.mark.parametrize(("each", "low", "high"), [(1, 1, 1), (2, 2, 2), (3, 2, 3), (4, 3, 4), (8, 6, 8), (-5, 2, 4)])
def test_the_estimate_is_close_to_the_truth(each, low, high, cameras):
    size, _ = estimate(*crops(each + 10, each, cameras=cameras))
    assert low <= size.crops <= high


def test_crops_without_identities_count_as_single():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    size, _ = estimate(vectors, np.arange(300) % 3)
    assert size.crops == 1


def test_few_crops_count_as_single():
    size, _ = estimate(*crops(1, 4, identities=8, cameras=3))
    assert size.crops == 1


def test_groups_are_connected_crops_and_singles_are_none():
    vectors, cameras = crops(2, 2, identities=30)
    _, near = estimate(vectors, cameras)
    jaccard = jaccard_of_lists(near, *FIRST_LISTS)
    size, mean = _measure_groups(jaccard_of_lists(near, *FIRST_LISTS, SAME), cameras)
    close = jaccard.toarray() >= SAME
    groups, seen = [], set()
    for start in range(len(cameras)):
        if start not in seen:
            members, todo = set(), [start]
            while todo:
                i = todo.pop()
                if i not in members:
                    members.add(i)
                    todo += np.flatnonzero(close[i]).tolist()
            seen |= members
            groups += [sorted(members)] if len(members) > 1 else []
    own = [np.count_nonzero(cameras[group] == cameras[i]) for group in groups for i in group]
    others = [np.count_nonzero(cameras[group] != cameras[i]) for group in groups for i in group]
    in_cameras = [count for group in groups for count in np.unique(cameras[group], return_counts=True)[1]]
    assert size == IdentitySize(
        int(np.median(own)), int(np.median(others)), len(groups), pytest.approx(len(own) / len(cameras))
    )
    assert mean == pytest.approx(np.mean(in_cameras))


@pytest.mark.parametrize(
    ("crops_each", "others", "k1", "k2"),
    [(1, 3, (4, 4), (1, 1)), (2, 5, (4, 5), (2, 2)), (4, 12, (4, 12), (2, 6)), (8, 8, (8, 8), (4, 4)),
     (8, 40, (8, 20), (4, 10))],
)  # fmt: skip
def test_lists_follow_from_the_size(crops_each, others, k1, k2):
    size = IdentitySize(crops_each, others, 5, 0.5)
    assert (size.k1, size.k2) == (k1, k2)
