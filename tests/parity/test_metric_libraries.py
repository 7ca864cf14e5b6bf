"""Metrics equal those of scikit-learn, torchmetrics and pytorch-metric-learning where the conventions coincide.

Where they differ, the difference itself is asserted, so that a reader of two numbers knows what lies between them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalMRR, RetrievalRPrecision

from reid.evaluation.metrics import market_metrics

QUERIES, GALLERY = 40, 250


def case(seed=0, same_cameras=False, offset=0.0):
    """Make unit vectors with positive scores only (``offset`` 3) or of both signs; some queries are unmatched."""
    random = np.random.default_rng(seed)
    identities = [random.integers(0, 14, QUERIES), random.integers(0, 11, GALLERY)]
    centres = random.standard_normal((14, 24))
    vectors = [
        centres[who] + offset + 1.5 * random.standard_normal((len(who), 24)) for who in identities
    ]  # fmt: skip
    query, gallery = ((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in vectors)
    cameras = [np.zeros(QUERIES, int), random.integers(0, 3, GALLERY) if same_cameras else np.ones(GALLERY, int)]
    names = ("query_identities", "gallery_identities", "query_cameras", "gallery_cameras")
    return query, gallery, dict(zip(names, [*identities, *cameras], strict=True))


def with_torchmetrics(metric, query, gallery, labels, valid=None):
    scores = torch.from_numpy(query @ gallery.T)
    right = torch.from_numpy(labels["query_identities"][:, None] == labels["gallery_identities"])
    which = torch.arange(len(query))[:, None].expand_as(scores)
    keep = torch.ones_like(right) if valid is None else torch.from_numpy(valid)
    return float(metric(scores[keep], right[keep], indexes=which[keep]))


def with_metric_learning(query, gallery, labels):
    calculator = AccuracyCalculator(
        include=("mean_average_precision", "mean_average_precision_at_r", "r_precision", "precision_at_1"),
        k=None,
        knn_func=CustomKNN(CosineSimilarity()),
    )
    return calculator.get_accuracy(
        torch.from_numpy(query),
        torch.from_numpy(labels["query_identities"]),
        torch.from_numpy(gallery),
        torch.from_numpy(labels["gallery_identities"]),
        ref_includes_query=False,
    )


def test_scikit_learn_has_the_same_average_precision():
    query, gallery, labels = case(same_cameras=True)
    metrics = market_metrics(query, gallery, **labels)
    for q in np.flatnonzero(metrics.first_match):
        right = labels["query_identities"][q] == labels["gallery_identities"]
        valid = ~right | (labels["query_cameras"][q] != labels["gallery_cameras"])
        expected = average_precision_score(right[valid], (query[q] @ gallery.T)[valid])
        assert metrics.average_precision[q] == pytest.approx(expected, abs=1e-12)


def test_scikit_learn_puts_the_rows_of_one_score_on_one_place():
    """Two right and two wrong rows of one score: 1/2; over all orders 0.66, with the wrong ones first 0.42."""
    vectors = np.tile(np.float32([[1, 0]]), (4, 1))
    labels = {"query_identities": [1], "gallery_identities": [1, 1, 0, 0], "query_cameras": [0],
              "gallery_cameras": [1] * 4}  # fmt: skip
    assert average_precision_score([1, 1, 0, 0], np.ones(4)) == 0.5
    # the right ones stand on 12, 13, 14, 23, 24 or 34
    orders = [1, (1 + 2 / 3) / 2, (1 + 2 / 4) / 2, (1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2]
    assert market_metrics(vectors[:1], vectors, **labels, ties="mean").mAP == pytest.approx(np.mean(orders))
    assert market_metrics(vectors[:1], vectors, **labels).mAP == pytest.approx(orders[-1])


@pytest.mark.parametrize("same_cameras", [False, True])
def test_torchmetrics_is_equal_on_positive_scores(same_cameras):
    query, gallery, labels = case(1, same_cameras, offset=3.0)
    assert (query @ gallery.T).min() > 0
    metrics = market_metrics(query, gallery, **labels)
    same = labels["query_identities"][:, None] == labels["gallery_identities"]
    valid = ~(same & (labels["query_cameras"][:, None] == labels["gallery_cameras"]))
    assert metrics.queries_without_match > 0
    expected = {
        "mAP": RetrievalMAP(empty_target_action="skip"),
        "r_precision": RetrievalRPrecision(empty_target_action="skip"),
    }
    for name, metric in expected.items():
        assert getattr(metrics, name) == pytest.approx(
            with_torchmetrics(metric, query, gallery, labels, valid), abs=1e-6
        )
    for k in (1, 5, 10):
        metric = RetrievalHitRate(empty_target_action="skip", top_k=k)
        assert metrics.rank(k) == pytest.approx(with_torchmetrics(metric, query, gallery, labels, valid), abs=1e-6)
    first = metrics.first_match[metrics.first_match > 0]
    reciprocal = with_torchmetrics(RetrievalMRR(empty_target_action="skip"), query, gallery, labels, valid)
    assert np.mean(1 / first) == pytest.approx(reciprocal, abs=1e-6)


def test_torchmetrics_counts_all_queries_unless_told_to_skip():
    query, gallery, labels = case(2, offset=3.0)
    theirs = with_torchmetrics(RetrievalMAP(), query, gallery, labels)
    assert theirs == pytest.approx(market_metrics(query, gallery, **labels, variants=["all_queries"]).mAP, abs=1e-6)
    assert theirs < market_metrics(query, gallery, **labels).mAP - 0.01


def test_torchmetrics_does_not_see_right_rows_of_score_zero_or_less():
    query, gallery, labels = case(3)
    theirs = with_torchmetrics(RetrievalMAP(empty_target_action="skip"), query, gallery, labels)
    ours = market_metrics(query, gallery, **labels).mAP
    assert theirs > ours + 0.01  # the right rows at the bottom are not looked for
    away = np.concatenate([gallery, -5 * np.ones((GALLERY, 1), np.float32)], axis=1)
    ahead = np.concatenate([query, np.ones((QUERIES, 1), np.float32)], axis=1)
    assert with_torchmetrics(RetrievalMAP(empty_target_action="skip"), ahead, away, labels) == 0
    assert market_metrics(ahead, away, **labels).mAP == pytest.approx(ours, abs=1e-6)


@pytest.mark.parametrize("seed", [4, 5])
def test_pytorch_metric_learning_is_equal_without_cameras(seed):
    query, gallery, labels = case(seed)
    theirs = with_metric_learning(query, gallery, labels)
    ours = market_metrics(query, gallery, **labels)
    assert ours.queries_without_match > 0  # both leave these out of the mean
    assert ours.mAP == pytest.approx(theirs["mean_average_precision"], abs=1e-6)
    assert ours.map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)
    assert ours.r_precision == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert ours.rank(1) == pytest.approx(theirs["precision_at_1"], abs=1e-6)


def test_pytorch_metric_learning_knows_no_cameras():
    query, gallery, labels = case(6, same_cameras=True)
    theirs = with_metric_learning(query, gallery, labels)
    assert abs(market_metrics(query, gallery, **labels).mAP - theirs["mean_average_precision"]) > 1e-3
    other_cameras = {**labels, "gallery_cameras": labels["gallery_cameras"] + 9}
    assert market_metrics(query, gallery, **other_cameras).mAP == pytest.approx(
        theirs["mean_average_precision"], abs=1e-6
    )


def test_a_collapsed_embedding_scores_in_pytorch_metric_learning_by_the_order_of_rows():
    vectors = np.tile(np.float32([[0.6, 0.8]]), (100, 1))
    right_first = {"query_identities": np.zeros(1, int), "gallery_identities": (np.arange(100) >= 50).astype(int),
                   "query_cameras": [0], "gallery_cameras": [1] * 100}  # fmt: skip
    right_last = {**right_first, "gallery_identities": right_first["gallery_identities"][::-1].copy()}
    theirs = [with_metric_learning(vectors[:1], vectors, labels)["precision_at_1"] for labels in
              (right_first, right_last)]  # fmt: skip
    assert sorted(theirs) == [0, 1]
    ours = [market_metrics(vectors[:1], vectors, **labels).rank(1) for labels in (right_first, right_last)]
    assert ours == [0, 0]
