"""Metrics by counting equal slow, obvious ones: a double loop over the lists, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from reid.evaluation import market_metrics


def loop_metrics(scores, query_identities, gallery_identities, query_cameras, gallery_cameras, ranks=50):
    """Evaluate ``scores`` (Q, G) as textbooks do; wrong rows stand before right ones of equal score."""
    precisions, penalties, firsts = [], [], []
    for q in range(len(scores)):
        listed = []
        for g in range(len(scores[q])):
            right = bool(query_identities[q] == gallery_identities[g])
            if right and query_cameras[q] == gallery_cameras[g]:
                continue
            listed.append((-float(scores[q][g]), right))
        listed.sort()
        right_ranks = [rank for rank, (_, right) in enumerate(listed, start=1) if right]
        if right_ranks:
            precisions.append(sum(i / rank for i, rank in enumerate(right_ranks, start=1)) / len(right_ranks))
            penalties.append(len(right_ranks) / right_ranks[-1])
            firsts.append(right_ranks[0])
    cmc = [sum(first <= k for first in firsts) / len(firsts) for k in range(1, ranks + 1)]
    return np.mean(precisions), np.mean(penalties), cmc, len(scores) - len(firsts)


def random_case(seed, queries, gallery, dimension, identities=12, cameras=3, lattice=False):
    random = np.random.default_rng(seed)
    if lattice:  # entries of +-1/4 in 16 dimensions: unit length, exact inner products, ties everywhere
        query_vectors, gallery_vectors = (
            random.choice(np.float32([-0.25, 0.25]), size=(rows, 16)) for rows in (queries, gallery)
        )
    else:
        query_vectors, gallery_vectors = (random.standard_normal((rows, dimension)) for rows in (queries, gallery))
        query_vectors /= np.linalg.norm(query_vectors, axis=1, keepdims=True)
        gallery_vectors /= np.linalg.norm(gallery_vectors, axis=1, keepdims=True)
    labels = {
        "query_identities": random.integers(0, identities + 2, queries),  # some identities are not in the gallery
        "gallery_identities": random.integers(0, identities, gallery),
        "query_cameras": random.integers(0, cameras, queries),
        "gallery_cameras": random.integers(0, cameras, gallery),
    }
    return query_vectors, gallery_vectors, labels


@pytest.mark.parametrize("lattice", [False, True])
@pytest.mark.parametrize(("seed", "queries", "gallery", "block"), [(0, 40, 300, 7), (1, 25, 900, None), (2, 3, 30, 1)])
def test_equals_the_double_loop(seed, queries, gallery, block, lattice):
    query_vectors, gallery_vectors, labels = random_case(seed, queries, gallery, 32, lattice=lattice)
    metrics = market_metrics(query_vectors, gallery_vectors, **labels, block=block)
    mean_precision, mean_penalty, cmc, unmatched = loop_metrics(query_vectors @ gallery_vectors.T, *labels.values())
    assert metrics.mAP == pytest.approx(mean_precision, abs=1e-12)
    assert metrics.mINP == pytest.approx(mean_penalty, abs=1e-12)
    np.testing.assert_allclose(metrics.cmc, cmc, atol=1e-12)
    assert metrics.queries_without_match == unmatched
    assert (metrics.queries, metrics.gallery) == (queries, gallery)


def test_the_lattice_really_ties_right_with_wrong():
    """The best case differs from the worst; otherwise the tie rule above would not be tested."""
    query_vectors, gallery_vectors, labels = random_case(0, 40, 300, 16, lattice=True)
    scores = query_vectors @ gallery_vectors.T
    right = labels["query_identities"][:, None] == labels["gallery_identities"]
    best_case = loop_metrics(scores + 1e-3 * right, *labels.values())
    assert best_case[0] > loop_metrics(scores, *labels.values())[0] + 0.01


def test_average_precision_equals_scikit_learn():
    query_vectors, gallery_vectors, labels = random_case(5, 30, 400, 24)
    metrics = market_metrics(query_vectors, gallery_vectors, **labels)
    scores = query_vectors @ gallery_vectors.T
    compared = 0
    for q in range(30):
        right = labels["query_identities"][q] == labels["gallery_identities"]
        valid = ~(right & (labels["query_cameras"][q] == labels["gallery_cameras"]))
        if right[valid].any():
            expected = average_precision_score(right[valid], scores[q][valid])
            assert metrics.average_precision[q] == pytest.approx(expected, abs=1e-12)
            compared += 1
        else:
            assert np.isnan(metrics.average_precision[q])
    assert compared > 20


def test_a_hand_worked_example():
    """The gallery by score is wrong, right, left out, wrong, right, a distractor; the right rows are 2nd and 4th."""
    angles = np.radians([1, 2, 3, 4, 5, 6])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    metrics = market_metrics(
        np.float32([[1, 0]]),
        gallery,
        query_identities=["a"],
        gallery_identities=["b", "a", "a", "c", "a", "d"],
        query_cameras=["c1"],
        gallery_cameras=["c2", "c2", "c1", "c1", "c3", "c1"],
    )
    assert metrics.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics.mINP == pytest.approx(2 / 4)
    assert metrics.cmc[:3].tolist() == [0, 1, 1]
    assert metrics.first_match.tolist() == [2]
