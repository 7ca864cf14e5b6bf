"""Normalized results stand beside the plain ones, and equal those of scoring by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation import details_of, evaluate, report_json, report_table
from reid.evaluation.labels import market_labels
from reid.evaluation.metrics import score_metrics
from reid.evaluation.reports.detail_text import details_table
from reid.evaluation.trial_scores import Reranking
from reid.records import Embeddings, Modality, Sample, Split
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.rerank import k_reciprocal
from reid.retrieval.rerank_normalized import expand_normalized, k_reciprocal_normalized
from reid.retrieval.score_normalization import normalize_scores

PEOPLE, CAMERAS = 45, ("c0", "c1", "c2")


def site(seed=0, people=PEOPLE, light=False, absent=0, track=""):
    """Two gallery crops and one query of each person and camera; the cameras have offsets of different lengths."""
    random = np.random.default_rng(seed)
    centres, offsets = random.standard_normal((people, 24)), random.standard_normal((3, 24))
    samples, vectors = [], []
    for person in range(people):
        for number, camera in enumerate(CAMERAS):
            modality = Modality.INFRARED if light and number == 2 else Modality.VISIBLE
            for crop, split in enumerate((Split.QUERY, Split.GALLERY, Split.GALLERY)):
                if split is Split.GALLERY and person < absent:
                    continue
                path = Path(f"{person}-{camera}-{crop}.jpg")
                samples.append(Sample(path, f"p{person}", camera, modality, split=split, track=track and f"t{person}"))
                noise = 0.9 * random.standard_normal(24)
                vectors.append(centres[person] + (0.3 + number) * offsets[number] + noise)
    table = np.array(vectors)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return Embeddings(tuple(samples), table.astype(np.float32), "f00d")


def split_of(embeddings, split):
    return embeddings.select(np.array([sample.split is split for sample in embeddings.samples]))


def by_hand(embeddings, method):
    queries, gallery = split_of(embeddings, Split.QUERY), split_of(embeddings, Split.GALLERY)
    rows = [CohortRows.of_samples(side.samples, side.vectors) for side in (queries, gallery)]
    return normalize_scores(rows[0], rows[1], method), market_labels(queries.samples, gallery.samples)


@pytest.mark.parametrize("method", ["csls", "snorm"])
def test_a_normalized_result_beside_the_plain_one(method):
    embeddings = site()
    report = evaluate(embeddings, score_norm=method)
    plain, normalized = report.results
    assert (plain.score_norm, plain.is_plain, normalized.score_norm, normalized.is_plain) == (
        "none", True, method, False,
    )  # fmt: skip
    assert plain.metrics.mAP == evaluate(embeddings).results[0].metrics.mAP
    scores, labels = by_hand(embeddings, method)
    expected = score_metrics(scores, labels)
    assert (normalized.metrics.mAP, normalized.metrics.rank(1)) == (expected.mAP, expected.rank(1))
    assert normalized.metrics.mAP > plain.metrics.mAP + 0.03
    assert normalized.score_norm_stamp.startswith(f"{method} per camera pair, k ")
    assert report["person", "all"] is plain
    entries = report_json(report)["results"]
    assert [(entry["score_norm"], entry["reranking"]) for entry in entries] == [("none", ""), (method, "")]
    assert f"  {method} " in report_table(report)
    assert f"{method}: {normalized.score_norm_stamp}" in " ".join(report_table(report).split())
    assert list(report.to_frame().score_norm) == ["none", method]


def test_blocks_and_memory_change_nothing():
    embeddings = site(1)
    one, other = (evaluate(embeddings, score_norm="csls", memory=memory).results[1] for memory in (None, 4 * 270 * 7))
    assert one.metrics.mAP == pytest.approx(other.metrics.mAP, abs=1e-9)


def test_every_crop_as_query_and_in_the_gallery():
    """The rule that leaves out only the query, and the Market rule with every crop in both splits, are scored."""
    embeddings = split_of(site(2), Split.GALLERY)
    itself = evaluate(embeddings, scoring=Scoring(Rule(ignore="itself")), score_norm="csls")
    assert [result.score_norm for result in itself.results] == ["none", "csls"]
    queries = [
        Sample(s.path, s.identity, s.camera, s.modality, s.category, Split.QUERY) for s in embeddings.samples
    ]  # fmt: skip
    both = Embeddings((*queries, *embeddings.samples), np.concatenate([embeddings.vectors, embeddings.vectors]), "f00d")
    report = evaluate(both, score_norm="csls")
    rows = CohortRows.of_samples(embeddings.samples, embeddings.vectors)
    among = normalize_scores(rows, rows, "csls")  # a crop is not in its own cohort, on either side
    expected = score_metrics(among, market_labels(embeddings.samples, embeddings.samples))
    assert report.results[1].metrics.mAP == pytest.approx(expected.mAP, abs=1e-9)


def test_the_cohort_holds_the_gallery_of_every_direction():
    report = evaluate(site(3, light=True), score_norm="csls")
    directions = [result.direction for result in report.results]
    assert directions == [name for name in dict.fromkeys(directions) for _ in range(2)]
    for result in report.results[1::2]:
        assert "all cameras" not in result.score_norm_stamp


def test_tracks_and_drawn_images_have_normalized_scores():
    tracks = evaluate(site(4, track="t"), scoring=Scoring(Rule(ranked="track")), score_norm="csls").results
    assert tracks[1].metrics.gallery == 3 * PEOPLE
    assert tracks[1].metrics.mAP > tracks[0].metrics.mAP
    drawn = evaluate(site(4), scoring=Scoring(Rule(cmc="single-shot", repeats=5)), score_norm="csls").results
    assert drawn[1].metrics.rank(1) > drawn[0].metrics.rank(1)


def test_reranking_of_normalized_scores_stands_last():
    embeddings = site(5)
    report = evaluate(embeddings, score_norm="csls", reranking=Reranking((6, 3, 0.3)))
    assert [(result.score_norm, bool(result.reranking)) for result in report.results] == [
        ("none", False), ("csls", False), ("none", True), ("csls", True),
    ]  # fmt: skip
    scores, labels = by_hand(embeddings, "csls")
    expected = score_metrics(k_reciprocal_normalized(scores, k1=6, k2=3), labels)
    assert report.results[3].metrics.mAP == expected.mAP
    expanded = evaluate(embeddings, score_norm="csls", reranking=Reranking(neighbours=2)).results[3]
    assert expanded.metrics.mAP == score_metrics(expand_normalized(scores, 2), labels).mAP


def test_reranking_of_scores_that_are_not_normalized_is_that_of_the_vectors():
    """Too few crops for a cohort: the distances are 1 - s instead of 2 - 2 s, which re-ranking does not notice."""
    embeddings = site(6, people=3)
    scores, labels = by_hand(embeddings, "csls")
    assert not scores.is_applied
    plain = k_reciprocal(scores.queries.vectors, scores.gallery.vectors, k1=5, k2=2)
    np.testing.assert_allclose(
        k_reciprocal_normalized(scores, k1=5, k2=2)(0, 9), plain(0, 9), atol=1e-4
    )  # fmt: skip
    assert evaluate(embeddings, score_norm="csls").results[1].score_norm_stamp.startswith("too few crops")
    assert labels.queries == 9


def test_the_open_set_before_and_after():
    embeddings = site(7, absent=15)
    report = evaluate(embeddings, score_norm="csls")
    plain, normalized = (result.identification for result in report.results)
    assert [one.wished for one in plain] == [0.1, 0.01]
    assert (normalized[0].known, normalized[0].unmatched) == (90, 45)
    assert normalized[0].rate.value > plain[0].rate.value
    entry = report_json(report)["results"][1]["identification"][0]
    assert entry["rate"] == normalized[0].rate.value
    assert json.dumps(entry)
    details = details_of(report, embeddings)
    assert [one.result.score_norm for one in details.results] == ["none", "csls"]
    for one, result in zip(details.results, report.results, strict=True):
        assert one.identification[0].rate.value == pytest.approx(result.identification[0].rate.value, abs=0.02)
    text = details_table(details)
    assert text.count("same identity or not") == 2
    assert "person all csls" in text
    rates = [one.verification.points[1].true_match_rate.value for one in details.results]
    assert rates[1] > rates[0]


def test_an_unknown_name():
    with pytest.raises(DataError, match="snorm"):
        evaluate(site(8, people=3), score_norm="zscore")
