"""evaluate gives one result for each category and direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reid.errors import DataError
from reid.evaluation import evaluate, report_table
from reid.records import Embeddings, Modality, Sample, Split

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED
Q, G = Split.QUERY, Split.GALLERY


def embeddings(*rows, seed=0):
    """Make embeddings of rows (identity, camera, modality, category, split[, number of the vector])."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((100, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    samples, chosen = [], []
    for i, (identity, camera, modality, category, split, *vector) in enumerate(rows):
        samples.append(Sample(Path(f"{i}.jpg"), identity, camera, modality, category, split))
        chosen.append(vectors[vector[0] if vector else i])
    return Embeddings(tuple(samples), np.array(chosen), "f00d")


def street(*extra):
    return embeddings(
        ("a", "1", VISIBLE, "person", Q, 0),
        ("a", "2", VISIBLE, "person", G, 0),
        ("b", "2", VISIBLE, "person", G, 1),
        ("a", "3", INFRARED, "person", Q, 2),
        ("a", "4", INFRARED, "person", G, 3),
        ("c", "4", INFRARED, "person", G, 2),
        ("v", "1", VISIBLE, "vehicle", Q, 5),
        ("v", "2", VISIBLE, "vehicle", G, 5),
        *extra,
    )


def test_one_result_for_each_category_and_direction():
    report = evaluate(street(), protocol="street")
    assert [(r.category, r.direction) for r in report.results] == [
        ("person", "visible->visible"),
        ("person", "visible->infrared"),
        ("person", "infrared->visible"),
        ("person", "infrared->infrared"),
        ("vehicle", "visible->visible"),
    ]
    assert (report.protocol, report.fingerprint, report.notes) == ("street", "f00d", ())
    easy = report["person", "visible->visible"]
    assert (easy.metrics.rank(1), easy.metrics.queries, easy.metrics.gallery) == (1, 1, 2)
    hard = report["person", "infrared->infrared"].metrics  # the other one has the query's own vector
    assert (hard.rank(1), hard.mAP) == (0, 0.5)
    assert report["vehicle", "visible->visible"].metrics.gallery == 1  # people are not in its gallery
    with pytest.raises(DataError, match=r"person all.*person visible->visible"):
        report["person", "all"]


def test_one_modality_has_the_direction_all():
    report = evaluate(embeddings(("a", "1", INFRARED, "person", Q), ("a", "2", INFRARED, "person", G)))
    assert [(r.category, r.direction) for r in report.results] == [("person", "all")]


def test_the_modality_of_training_rows_does_not_count():
    report = evaluate(
        embeddings(
            ("a", "1", VISIBLE, "person", Q),
            ("a", "2", VISIBLE, "person", G),
            ("a", "2", INFRARED, "person", Split.TRAIN),
        )
    )
    assert [r.direction for r in report.results] == ["all"]
    assert report.results[0].metrics.gallery == 1


def test_queries_all_of_one_and_gallery_of_the_other_modality():
    report = evaluate(embeddings(("a", "1", INFRARED, "person", Q), ("a", "2", VISIBLE, "person", G)))
    assert [r.direction for r in report.results] == ["infrared->visible"]


def test_unmatched_queries_are_named():
    report = evaluate(street(("lonely", "1", VISIBLE, "vehicle", Q), ("", "1", VISIBLE, "vehicle", Q)))
    vehicles = report["vehicle", "visible->visible"]
    assert [str(s.path) for s in vehicles.unmatched] == ["8.jpg", "9.jpg"]
    assert vehicles.metrics.queries_without_match == 2
    assert (vehicles.metrics.queries, vehicles.query_identities, vehicles.gallery_identities) == (3, 2, 1)


def test_what_cannot_be_scored_is_noted_and_the_rest_is():
    report = evaluate(
        street(("x", "1", VISIBLE, "bicycle", Q), ("y", "1", VISIBLE, "boat", Q), ("z", "2", VISIBLE, "boat", G))
    )
    assert len(report.results) == 5
    assert [note.split(":")[0] for note in report.notes] == ["bicycle", "boat visible->visible"]
    assert "no gallery row" in report.notes[0]
    assert "bicycle" in report_table(report)


def test_the_same_image_may_be_query_and_gallery():
    vectors = np.eye(3, dtype=np.float32)
    same = [Sample(Path("1.jpg"), "a", "", split=split) for split in (Q, G)]
    rows = (*same, Sample(Path("2.jpg"), "a", "", split=G))
    result = evaluate(Embeddings(rows, vectors[[0, 0, 1]], "f")).results[0]
    assert (result.metrics.mAP, result.metrics.gallery) == (1, 2)
    with pytest.raises(DataError, match=r"person all.*1 queries"):
        evaluate(Embeddings(tuple(same), vectors[[0, 0]], "f"))


@pytest.mark.parametrize(("split", "missing"), [(Q, "gallery"), (G, "query")])
def test_a_missing_split_is_one_clear_line(split, missing):
    with pytest.raises(DataError, match=f'"{missing}"'):
        evaluate(embeddings(("a", "1", VISIBLE, "person", split)))
