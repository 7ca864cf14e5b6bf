"""Every value of the metrics equals that of a textbook on lists, with ties tried in every order.

The oracles refuse these wrong variants: ties at their best or in gallery order in place of the mean, middle ranks in
place of the mean over orders, AP by rectangles for trapezoids, means over matched queries for all queries, a CMC over
rows for one over identities, R-precision at a fixed length, a location that is left out for its own identity only.
"""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reid.errors import DataError
from reid.evaluation.labels import Labels
from reid.evaluation.metrics import MetricOptions, NoMatchError, market_metrics, score_metrics, vector_metrics
from reid.evaluation.ranks import TIES

RANKS = 6


def textbook(right, trapezoid=False):
    """Compute the values of one list, where ``right[i]`` is whether the answer at rank i + 1 is right."""
    ranks = [rank for rank, is_right in enumerate(right, start=1) if is_right]
    total = len(ranks)
    precisions = []
    for hits, rank in enumerate(ranks, start=1):
        precision = hits / rank
        if trapezoid:
            precision = (precision + ((hits - 1) / (rank - 1) if rank > 1 else 1.0)) / 2
        precisions.append(precision)
    early = [hits / rank for hits, rank in enumerate(ranks, start=1) if rank <= total]
    return {
        "mAP": sum(precisions) / total,
        "mINP": total / ranks[-1],
        "r_precision": len(early) / total,
        "map_at_r": sum(early) / total,
        "cmc": np.array([float(ranks[0] <= k) for k in range(1, RANKS + 1)]),
        "rank1": float(ranks[0] == 1),
    }


def orders(scores, ties):
    """The orders of rows (best first) that ``ties`` allows; for "worst" see :func:`lists`."""
    groups = [[i for i, score in enumerate(scores) if score == value] for value in sorted(set(scores), reverse=True)]
    for parts in product(*(permutations(group) for group in groups)):
        yield [row for part in parts for row in part]


def lists(scores, right, ties):
    if ties == "worst":
        yield [right[i] for i in sorted(range(len(scores)), key=lambda i: (-scores[i], right[i]))]
    else:
        yield from ([right[i] for i in order] for order in orders(scores, ties))


def mean_of(values):
    values = list(values)
    return {name: np.mean([value[name] for value in values], axis=0) for name in values[0]}


def of_lists(table, labels, *, trapezoid=False, all_queries=False):
    """Oracle: the metrics of ``table`` (Q, G) for each tie rule, without cameras in common."""
    results = {}
    for ties in TIES:
        by_query = []
        for scores, identity in zip(table, labels["query_identities"], strict=True):
            right = [identity == other for other in labels["gallery_identities"]]
            if any(right):
                by_query.append(mean_of(textbook(listed, trapezoid) for listed in lists(list(scores), right, ties)))
            elif all_queries:
                by_query.append({**dict.fromkeys(("mAP", "mINP", "r_precision", "map_at_r", "rank1"), 0.0),
                                 "cmc": np.zeros(RANKS)})  # fmt: skip
        results[ties] = mean_of(by_query)
    return results


def of_table(table):
    return lambda start, stop: np.array(table[start:stop], dtype=np.float64)


def check(metrics, expected):
    for name in ("mAP", "mINP", "r_precision", "map_at_r"):
        assert getattr(metrics, name) == pytest.approx(expected[name], abs=1e-12), name
    np.testing.assert_allclose(metrics.cmc, expected["cmc"], atol=1e-12)
    assert np.nanmean(metrics.averaged(metrics.rank1)) == pytest.approx(expected["rank1"])


@st.composite
def tables(draw):
    """Scores (Q, G) of few values, so that most tie, and labels without cameras in common."""
    queries, gallery = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    table = random.integers(0, draw(st.integers(1, 4)), (queries, gallery)) / 4
    labels = {
        "query_identities": random.integers(0, 3, queries),
        "gallery_identities": random.integers(0, 3, gallery),
        "query_cameras": np.zeros(queries, int),
        "gallery_cameras": np.ones(gallery, int),
    }
    assume(np.isin(labels["query_identities"], labels["gallery_identities"]).any())
    return table, labels


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from(["worst", "mean"]), st.booleans(), st.booleans(), st.integers(1, 3))
def test_equals_the_textbook_in_every_variant(case, ties, trapezoid, all_queries, block):
    table, labels = case
    variants = [name for name, on in (("trapezoid", trapezoid), ("all_queries", all_queries)) if on]
    metrics = score_metrics(
        of_table(table), Labels(**labels), MetricOptions(ties, tuple(variants), max_rank=RANKS), block=block
    )
    check(metrics, of_lists(table, labels, trapezoid=trapezoid, all_queries=all_queries)[ties])
    assert (metrics.ties, metrics.variants, metrics.cmc_over) == (ties, tuple(variants), "rows")


TABLE = np.array([[0.5, 0.5, 0.5, 0.25, 0.75], [0.5, 0.25, 0.25, 0.25, 0.0], [1.0, 0.5, 0.25, 0.0, 0.0]])
LABELS = {
    "query_identities": ["a", "b", "nobody"],
    "gallery_identities": ["x", "a", "a", "b", "x"],
    "query_cameras": [0, 0, 0],
    "gallery_cameras": [1, 1, 1, 1, 1],
}


def test_wrong_variants_differ():
    truth = of_lists(TABLE, LABELS)["mean"]
    for options in ({"ties": "worst"}, {"variants": ("trapezoid",)}, {"variants": ("all_queries",)}):
        wrong = score_metrics(
            of_table(TABLE), Labels(**LABELS), MetricOptions(**{"ties": "mean", "max_rank": RANKS, **options})
        )
        with pytest.raises(AssertionError):
            check(wrong, truth)
    best = of_lists(TABLE + 1e-3 * (np.array(LABELS["query_identities"])[:, None] == LABELS["gallery_identities"]),
                    LABELS)["mean"]  # fmt: skip
    assert best["mAP"] > truth["mAP"] + 0.01
    by_row = of_lists(TABLE - 1e-3 * np.arange(5), LABELS)["mean"]
    assert abs(by_row["mAP"] - truth["mAP"]) > 0.01


def test_the_middle_rank_is_not_the_mean():
    """One right row among three of one score: the mean of 1, 1/2, 1/3 is 11/18, not 1/2 as of the middle rank."""
    labels = {name: column[:1] if name.startswith("query") else column[:3] for name, column in LABELS.items()}
    labels["gallery_identities"] = ["x", "a", "y"]
    metrics = score_metrics(of_table(np.zeros((1, 3))), Labels(**labels), MetricOptions("mean", max_rank=3))
    assert metrics.mAP == pytest.approx(11 / 18)
    assert metrics.mINP == pytest.approx(11 / 18)
    np.testing.assert_allclose(metrics.cmc, [1 / 3, 2 / 3, 1])
    assert metrics.rank1.tolist() == pytest.approx([1 / 3])
    assert metrics.first_match.tolist() == [3]


def test_a_collapsed_embedding_scores_by_chance_at_the_mean_and_the_least_at_worst():
    """5 right among 2,000 equal rows: the mean of AP over all orders, by drawing orders."""
    random = np.random.default_rng(0)
    right = np.zeros(2000, bool)
    right[:5] = True
    vectors = np.tile(np.float32([[0.6, 0.8]]), (2000, 1))
    labels = {"query_identities": [1], "gallery_identities": right.astype(int), "query_cameras": [0],
              "gallery_cameras": np.ones(2000, int)}  # fmt: skip
    mean, worst = (market_metrics(vectors[:1], vectors, **labels, ties=ties) for ties in ("mean", "worst"))
    drawn = mean_of(textbook(random.permutation(right)) for _ in range(4000))
    assert mean.mAP == pytest.approx(drawn["mAP"], rel=0.15)
    assert mean.mINP == pytest.approx(drawn["mINP"], rel=0.05)
    assert mean.rank(1) == pytest.approx(5 / 2000)
    assert worst.mAP == pytest.approx(np.mean([i / (1995 + i) for i in range(1, 6)]))
    assert worst.rank(50) == 0


def identity_list(scores, identities):
    """Find the best score of each identity, in the order in which each first appears."""
    best = {}
    for score, identity in zip(scores, identities, strict=True):
        if score > -np.inf:
            best[identity] = max(score, best.get(identity, -np.inf))
    return best


def of_identities(table, labels, ties):
    """Oracle of the CMC over identities; every row of the query's identity and camera is left out."""
    hits = []
    for q, scores in enumerate(table):
        own = labels["query_identities"][q]
        scores = [
            -np.inf if identity == own and camera == labels["query_cameras"][q] else score
            for score, identity, camera in zip(
                scores, labels["gallery_identities"], labels["gallery_cameras"], strict=True
            )
        ]
        best = identity_list(scores, labels["gallery_identities"])
        if own in best:
            names = list(best)
            options = lists([best[name] for name in names], [name == own for name in names], ties)
            hits.append(mean_of(textbook(listed) for listed in options)["cmc"])
    return np.mean(hits, axis=0)


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from(["worst", "mean"]), st.integers(0, 2**32 - 1))
def test_a_cmc_over_identities(case, ties, seed):
    table, labels = case
    cameras = np.random.default_rng(seed).integers(0, 2, len(labels["gallery_identities"]))
    labels = {**labels, "gallery_cameras": cameras}
    options = {"ties": ties, "max_rank": RANKS}
    try:
        metrics = score_metrics(of_table(table), Labels(**labels), MetricOptions(**options, cmc_over="identities"))
    except NoMatchError:
        assume(False)
    np.testing.assert_allclose(metrics.cmc, of_identities(table, labels, ties), atol=1e-12)
    rows = score_metrics(of_table(table), Labels(**labels), MetricOptions(**options))
    assert (metrics.mAP, metrics.mINP, metrics.map_at_r) == (rows.mAP, rows.mINP, rows.map_at_r)
    if ties == "worst":
        assert np.all(metrics.cmc >= rows.cmc)  # identities in front are at most rows in front
    assert metrics.queries_without_match == rows.queries_without_match


def test_identities_and_rows_really_differ():
    """Two images of x stand before a, so a is third of the rows and second of the identities."""
    labels = {**{name: column[:1] for name, column in LABELS.items()}, "gallery_identities": ["x", "x", "a"],
              "gallery_cameras": [1, 1, 1]}  # fmt: skip
    scores = of_table([[0.9, 0.8, 0.7]])
    assert score_metrics(scores, Labels(**labels)).cmc[:3].tolist() == [0, 0, 1]
    over = score_metrics(scores, Labels(**labels), MetricOptions(cmc_over="identities"))
    assert (over.cmc[:3].tolist(), over.first_match.tolist()) == ([0, 1, 1], [2])


def test_a_location_is_left_out_whoever_it_shows():
    """Camera 3 shares the location of camera 2, so its query is not compared with b's better image there."""
    labels = {
        "query_identities": ["a", "a"],
        "gallery_identities": ["b", "a", "a"],
        "query_cameras": ["3", "6"],
        "gallery_cameras": ["2", "2", "1"],
    }
    locations = {"query_locations": ["room", "hall"], "gallery_locations": ["room", "room", "yard"]}
    table = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    with_locations = score_metrics(of_table(table), Labels(**labels, **locations))
    assert with_locations.first_match.tolist() == [1, 2]
    assert with_locations.average_precision.tolist() == [1, (1 / 2 + 2 / 3) / 2]
    without = score_metrics(of_table(table), Labels(**labels))
    assert without.first_match.tolist() == [2, 2]
    over = score_metrics(of_table(table), Labels(**labels, **locations), MetricOptions(cmc_over="identities"))
    assert over.first_match.tolist() == [1, 2]


def test_a_score_of_minus_infinity_is_left_out():
    table = TABLE.copy()
    table[:, 2] = -np.inf
    keep = [0, 1, 3, 4]
    fewer = {name: np.array(column)[keep] if name.startswith("gallery") else column for name, column in LABELS.items()}
    one = score_metrics(of_table(table), Labels(**LABELS))
    other = score_metrics(of_table(table[:, keep]), Labels(**fewer))
    np.testing.assert_array_equal(one.average_precision, other.average_precision)
    assert (one.map_at_r, one.cmc.tolist()) == (other.map_at_r, other.cmc.tolist())


def test_memory_limits_the_block_and_changes_nothing(monkeypatch):
    random = np.random.default_rng(1)
    query, gallery = (random.standard_normal((rows, 8)).astype(np.float32) for rows in (50, 300))
    labels = {
        "query_identities": random.integers(0, 9, 50),
        "gallery_identities": random.integers(0, 9, 300),
        "query_cameras": random.integers(0, 2, 50),
        "gallery_cameras": random.integers(0, 2, 300),
    }
    sizes, matmul = [], np.matmul

    def watched(a, b, out):
        sizes.append(out.nbytes)
        return matmul(a, b, out=out)

    whole = market_metrics(query, gallery, **labels)
    monkeypatch.setattr("reid.evaluation.score_blocks.np.matmul", watched)
    parts = market_metrics(query, gallery, **labels, memory=5000)
    assert max(sizes) <= 5000
    assert len(sizes) == 13  # 4 queries of 1,200 bytes at a time
    np.testing.assert_array_equal(whole.first_match, parts.first_match)
    assert whole.mAP == pytest.approx(parts.mAP)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ties": "best"}, ('"best"', "worst, mean")),
        ({"variants": ["trapezium"]}, ('"trapezium"', '"trapezoid"')),
        ({"cmc_over": "images"}, ('"images"', "rows, identities")),
        ({"block": 0}, ("block", "got 0")),
        ({"max_rank": 0}, ("max_rank", "got 0")),
    ],
)
def test_bad_options_are_one_clear_line(changes, words):
    vectors = np.eye(5, dtype=np.float32)
    with pytest.raises(DataError) as caught:
        market_metrics(vectors[:3], vectors, **LABELS, **changes)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_locations": [1, 2, 3]}, ("only one of them",)),
        ({"query_locations": ["a"] * 3, "gallery_locations": [1] * 5}, ("locations:", "int64")),
        ({"query_identities": ["a"]}, ("query_cameras", "(1,)")),
    ],
)
def test_bad_labels_are_one_clear_line(changes, words):
    with pytest.raises(DataError) as caught:
        Labels(**{**LABELS, **changes})
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.full((3, 5), np.nan), "queries 0 to 2"),
        (np.full((3, 5), np.inf), "queries 0 to 2"),
        (np.zeros((3, 4)), r"\(3, 4\)"),
    ],
)
def test_bad_scores_are_one_clear_line(table, message):
    with pytest.raises(DataError, match=message):
        score_metrics(of_table(table), Labels(**LABELS))


def test_labels_of_other_rows_are_refused():
    vectors = np.eye(5, dtype=np.float32)
    with pytest.raises(DataError) as caught:
        vector_metrics(vectors[:2], vectors, Labels(**LABELS))
    assert "2 queries and 5 gallery rows, got 3 and 5" in str(caught.value)


def test_the_names_of_version_0_1_0_for_locations_are_accepted():
    vectors = np.float32([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [1, 0]])
    new = {"query_locations": [1, 2, 3], "gallery_locations": [1, 9, 9, 9, 1]}
    old = {name.replace("locations", "places"): column for name, column in new.items()}
    one, other = (market_metrics(vectors[:3], vectors, **LABELS, **names) for names in (new, old))
    np.testing.assert_array_equal(one.average_precision, other.average_precision)
    assert one.mAP != market_metrics(vectors[:3], vectors, **LABELS).mAP
    with pytest.raises(DataError, match="query_places"):
        market_metrics(vectors[:3], vectors, **LABELS, **new, **old)
