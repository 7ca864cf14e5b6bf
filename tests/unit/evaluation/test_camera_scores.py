"""Evaluation with steps by camera: a result beside the plain one, or a note that says why there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.protocol_table import Rule
from reid.errors import ConfigError, DataError
from reid.evaluation import Labels, Reranking, evaluate, mean_report, score_metrics, write_reports
from reid.evaluation.reports.result_diff import compare_files, unpaired_rerankings
from reid.records import Embeddings, Sample, Split
from reid.retrieval.camera_rerank import find_camera_lists, rerank_by_camera
from reid.retrieval.cohort_rows import CohortRows

BY_CAMERA = Reranking(by_camera=True)


def people(seed=0, each=4, identities=30, cameras=2, noise=0.9):
    """Return embeddings of people with ``each`` crops in every camera, whose first crop is a query."""
    random = np.random.default_rng(seed)
    changes = random.standard_normal((cameras, 24))
    samples, vectors = [], []
    for identity in range(identities):
        centre = random.standard_normal(24)
        for camera in range(cameras):
            for number in range(each):
                split = Split.QUERY if number == 0 else Split.GALLERY
                path = Path(f"crops/{identity}-{camera}-{number}.jpg")
                samples.append(Sample(path, f"p{identity}", f"c{camera}", split=split))
                vectors.append(centre + 1.5 * changes[camera] + noise * random.standard_normal(24))
    table = np.array(vectors)
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    return Embeddings(tuple(samples), table, "f00d")


def test_a_result_by_camera_stands_after_the_plain_one():
    embeddings = people()
    plain, changed = evaluate(embeddings, reranking=BY_CAMERA).results
    assert (plain.reranking, plain.score_norm) == ("", "none")
    assert changed.reranking.startswith("camera-aware Jaccard on csls (k1 4+4, k2 2+2)")
    assert (changed.score_norm, changed.score_norm_stamp.partition(" ")[0]) == ("csls", "csls")
    assert changed.metrics.mAP > plain.metrics.mAP + 0.05
    assert evaluate(embeddings).results[0].metrics.mAP == plain.metrics.mAP


def test_the_numbers_are_those_of_the_scores():
    embeddings = people(1)
    queries, gallery = (
        embeddings.select(np.array([sample.split is split for sample in embeddings.samples]))
        for split in (Split.QUERY, Split.GALLERY)
    )
    rows = [CohortRows.of_samples(side.samples, side.vectors) for side in (queries, gallery)]
    labels = Labels(
        *(np.array([getattr(sample, name) for sample in side.samples]) for name in ("identity", "camera")
          for side in (queries, gallery)),
    )  # fmt: skip
    expected = score_metrics(rerank_by_camera(find_camera_lists(*rows)), labels)
    found = evaluate(embeddings, reranking=BY_CAMERA).results[1].metrics
    np.testing.assert_allclose(found.average_precision, expected.average_precision, atol=1e-9)


def test_normalized_and_plain_results_come_first_and_steps_by_camera_once():
    results = evaluate(people(2), reranking=BY_CAMERA, score_norm="csls").results
    assert [(result.score_norm, bool(result.reranking)) for result in results] == [
        ("none", False), ("csls", False), ("csls", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reranking", "steps"),
    [
        (Reranking(expand_by_camera=True), ["camera-balanced expansion by csls"]),
        (Reranking(by_camera=True, expand_by_camera=True),
         ["camera-balanced expansion by csls", "camera-aware Jaccard on csls"]),
        (Reranking(learn_metric=True), ["mutual-neighbour metric"]),
        (Reranking(by_camera=True, learn_metric=True), ["mutual-neighbour metric", "camera-aware Jaccard on csls"]),
        (Reranking((6, 2, 0.3), expand_by_camera=True),
         ["camera-balanced expansion by csls", "k-reciprocal, k1 6, k2 2, lambda 0.3"]),
    ],
)  # fmt: skip
def test_steps_by_camera_go_together(reranking, steps):
    plain, changed = evaluate(people(3), reranking=reranking).results
    assert changed.reranking_method == "; ".join(steps)
    assert changed.metrics.mAP > plain.metrics.mAP


def test_too_few_crops_leave_the_plain_result_and_a_note():
    report = evaluate(people(4, each=2, identities=10), reranking=BY_CAMERA)
    (result,) = report.results
    assert result.reranking == ""
    (note,) = report.notes
    assert note.startswith("person all: camera-aware Jaccard: not used, because 40 crops")


def test_the_metric_helps_identities_with_one_crop_in_a_camera():
    """Its single condition is enough pairs of two cameras."""
    embeddings = people(9, each=1, identities=120, noise=0.5)
    moved = tuple(
        replace(sample, split=Split.QUERY if sample.camera == "c0" else Split.GALLERY) for sample in embeddings.samples
    )
    shifted = embeddings.vectors.copy()
    shifted[:, :4] += np.random.default_rng(0).standard_normal((240, 4)) * 0.3
    shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
    embeddings = Embeddings(moved, shifted.astype(np.float32), "f00d")
    _, normalized, changed = evaluate(embeddings, reranking=Reranking(learn_metric=True), score_norm="csls").results
    assert changed.reranking.startswith("mutual-neighbour metric (k 1, shrink 0.3, ")
    assert changed.metrics.mAP > normalized.metrics.mAP
    one_camera = tuple(replace(sample, camera="c0") for sample in moved)
    everything = Scoring(Rule(ignore="itself"))
    report = evaluate(
        replace(embeddings, samples=one_camera), reranking=Reranking(learn_metric=True), scoring=everything
    )
    assert "one camera" in report.notes[0]


def test_all_crops_may_be_queries_and_gallery_where_the_rule_leaves_out_the_query_itself():
    _, changed = evaluate(people(5), reranking=BY_CAMERA, scoring=Scoring(Rule(ignore="itself"))).results
    assert changed.metrics.queries == 240
    with pytest.raises(DataError, match="re-ranking"):
        evaluate(people(5), reranking=BY_CAMERA, scoring=Scoring(Rule(cmc="single-shot")))


def test_tracks_are_ranked_by_their_best_image():
    embeddings = people(6)
    tracks = tuple(replace(sample, track=f"{sample.identity}-{sample.camera}") for sample in embeddings.samples)
    as_tracks = Scoring(Rule(ranked="track"))
    plain, changed = evaluate(replace(embeddings, samples=tracks), reranking=BY_CAMERA, scoring=as_tracks).results
    assert (plain.metrics.gallery, changed.metrics.gallery) == (60, 60)
    assert changed.metrics.mAP > plain.metrics.mAP


def test_steps_that_replace_each_other_are_refused():
    for wrong in ({"k_reciprocal": (2, 2, 0.3), "by_camera": True}, {"neighbours": 3, "by_camera": True},
                  {"neighbours": 3, "expand_by_camera": True}):  # fmt: skip
        with pytest.raises(ConfigError, match="by camera"):
            Reranking(**wrong)


def test_the_mean_of_splits_joins_stamps_and_leaves_out_what_one_split_declined():
    several = [evaluate(people(7, each=each), protocol="p", reranking=BY_CAMERA) for each in (4, 8)]
    mean = mean_report(several, {})
    stamps = [report.results[1].reranking for report in several]
    assert stamps[0] != stamps[1]
    assert mean.results[1].reranking == " | ".join(stamps)
    few = evaluate(people(7, identities=10), protocol="p", reranking=BY_CAMERA)
    mean = mean_report([several[0], few], {})
    assert [result.reranking for result in mean.results] == [""]
    assert "no mean" in mean.notes[-1]
    other = evaluate(people(8), protocol="p")
    moved = replace(other, results=(replace(other.results[0], category="vehicle"),))
    with pytest.raises(DataError, match="same results"):
        mean_report([other, moved], {})


def test_a_step_by_camera_is_compared_whatever_lists_the_data_lead_to(tmp_path: Path):
    report = evaluate(people(10), protocol="p", reranking=BY_CAMERA)
    plain, changed = report.results
    longer = replace(changed, reranking="camera-aware Jaccard on csls (k1 8+8, k2 4+4)")
    write_reports([report], tmp_path / "a.json")
    write_reports([replace(report, results=(plain, longer))], tmp_path / "b.json")
    pairs = compare_files(tmp_path / "a.json", tmp_path / "b.json")
    assert [pair.after["reranking"] for pair in pairs] == ["", longer.reranking]
    assert unpaired_rerankings(tmp_path / "a.json", tmp_path / "b.json") == []
