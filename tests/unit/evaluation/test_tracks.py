"""Tracks ranked instead of images have the numbers worked out by hand, and those of a loop.

Refused wrong variants: the mean over a track's images, or its first image, instead of the nearest; tracks
of the query's own camera left in; images ranked and only counted as tracks; tracks of two cameras that share a name
taken for one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from helpers import published_layouts
from helpers.angles import at, embeddings, rows
from reid.data.protocols.data_sets import Scoring, open_data
from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation import Reranking, evaluate, report_table
from reid.evaluation.analysis.details import details_of
from reid.evaluation.metrics import Metrics
from reid.evaluation.trial_scores import score_trial
from reid.records import Embeddings, Sample, Split
from reid.retrieval.rerank import k_reciprocal

Q, G = Split.QUERY, Split.GALLERY
BY_TRACK = Scoring(Rule(ranked="track"))


def test_veri776_by_tracks(tmp_path: Path) -> None:
    """Vehicle 2 asks at 0, vehicle 5 at 90 degrees, both from camera 4.  Tracks and the angles of their images:

    2 in c001: 80 and 20.   2 in c019: 50.   5 in c001: 10.   5 in c019: 95.
    Vehicle 2, tracks by their nearest image: x10 P20 P50 x95: AP = (1/2 + 2/3) / 2 = 7/12.
    Vehicle 5: P95 (5 away), x at 80 (10 away), x at 50 (40), P10 (80): AP = (1/1 + 2/4) / 2 = 3/4.
    Images instead: 2: x10 P20 P50 P80 x95: AP = (1/2 + 2/3 + 3/4) / 3 = 23/36; 5 has another wrong row: P x x x P,
    AP = (1 + 2/5) / 2 = 7/10.
    """
    published_layouts.veri776(tmp_path)
    where = {
        "0002_c001_00016450_0": 80, "0002_c001_00016455_0": 20, "0002_c019_00016450_0": 50,
        "0005_c001_00016450_0": 10, "0005_c019_00016450_0": 95,
    }  # fmt: skip

    def metrics(spec: str) -> Metrics:
        data = open_data(spec, tmp_path)
        kept = [sample for sample in data.samples if sample.split is not Split.TRAIN]
        degrees = [where[s.path.stem] if s.split is G else {"0002": 0, "0005": 90}[s.identity] for s in kept]
        report = evaluate(Embeddings(tuple(kept), at(degrees), "f"), protocol=spec, scoring=data.scoring)
        text = report_table(report)
        assert ("as tracks: each as near as" in " ".join(text.split())) == ("track" in spec)
        assert f"search {'track' if 'track' in spec else 'image'}" in text
        return report.results[0].metrics

    tracks, images = metrics("veri776:search=track"), metrics("veri776")
    assert tracks.mAP == pytest.approx(float((Fraction(7, 12) + Fraction(3, 4)) / 2))
    assert images.mAP == pytest.approx(float((Fraction(23, 36) + Fraction(7, 10)) / 2))
    assert (tracks.gallery, images.gallery) == (4, 5)
    assert (tracks.rank(1), tracks.rank(2)) == (0.5, 1)


def textbook(given: Embeddings, of_track: Callable[[list[float]], float] = max, own: bool = False) -> float:
    """Compute mAP by loops over queries and tracks; ``own`` keeps the tracks of the query's camera."""
    precisions = []
    for q, query in enumerate(given.samples):
        if query.split is not Q:
            continue
        scores: dict[tuple[str, str, str], list[float]] = {}
        for g, row in enumerate(given.samples):
            if row.split is G:
                name = (row.identity, row.camera, row.track)
                scores.setdefault(name, []).append(float(given.vectors[q] @ given.vectors[g]))
        kept = {
            name: of_track(values)
            for name, values in scores.items()
            if own or name[:2] != (query.identity, query.camera)
        }
        ranking = sorted(kept, key=lambda name: -kept[name])
        right = [rank for rank, name in enumerate(ranking, start=1) if name[0] == query.identity]
        if right:
            precisions.append(np.mean([found / rank for found, rank in enumerate(right, start=1)]))
    return float(np.mean(precisions))


def passers_by(seed: int) -> Embeddings:
    """12 people in 3 cameras; tracks of 1 to 4 images, with the same names in every camera; rows are shuffled."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((12, 6))
    samples, vectors = [], []
    for person in range(12):
        for camera in ("1", "2", "3"):
            for track in ("t1", "t2"):
                for image in range(int(random.integers(1, 5))):
                    name = Path(f"{person}-{camera}-{track}-{image}")
                    samples.append(Sample(name, str(person), camera, split=G, track=track))
                    vectors.append(centres[person] + 1.3 * random.standard_normal(6))
        samples.append(Sample(Path(f"{person}-q"), str(person), "1", split=Q))
        vectors.append(centres[person] + 1.3 * random.standard_normal(6))
    order = random.permutation(len(samples))
    table = np.array(vectors, np.float32)[order]
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return Embeddings(tuple(samples[i] for i in order), table, "f")


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loop(seed: int) -> None:
    given = passers_by(seed)
    found = evaluate(given, scoring=BY_TRACK).results[0].metrics
    assert found.mAP == pytest.approx(textbook(given))
    assert found.gallery == 72
    assert evaluate(given, scoring=BY_TRACK, memory=1).results[0].metrics.mAP == found.mAP
    wrong = [
        textbook(given, lambda values: float(np.mean(values))),
        textbook(given, lambda values: values[0]),
        textbook(given, own=True),
        evaluate(given).results[0].metrics.mAP,
    ]
    for value in wrong:
        assert value != pytest.approx(found.mAP)


def test_tracks_of_one_image_are_images() -> None:
    given = passers_by(7)
    single = tuple(replace(sample, track=str(sample.path)) for sample in given.samples)
    given = replace(given, samples=single)
    tracks, images = (evaluate(given, scoring=how).results[0].metrics for how in (BY_TRACK, Scoring()))
    np.testing.assert_array_equal(tracks.average_precision, images.average_precision)
    np.testing.assert_array_equal(tracks.cmc, images.cmc)


def test_reranking_ranks_images_and_then_tracks() -> None:
    given = passers_by(3)
    plain, reranked = evaluate(given, scoring=BY_TRACK, reranking=Reranking((6, 3, 0.3))).results
    queries = given.select(np.array([sample.split is Q for sample in given.samples]))
    gallery = given.select(np.array([sample.split is G for sample in given.samples]))
    scores = k_reciprocal(queries.vectors, gallery.vectors, k1=6, k2=3, weight=0.3)(0, len(queries)).copy()
    names = [(s.identity, s.camera, s.track) for s in gallery.samples]
    best = {name: scores[:, [other == name for other in names]].max(axis=1) for name in set(names)}
    tracks = [Sample(Path(str(name)), name[0], name[1], split=G, track=name[2]) for name in best]
    values = np.stack([best[s.identity, s.camera, s.track] for s in tracks], axis=1)
    precisions = []
    for i, query in enumerate(queries.samples):
        kept = [j for j, s in enumerate(tracks) if (s.identity, s.camera) != (query.identity, query.camera)]
        ranking = sorted(kept, key=lambda j: -values[i, j])
        right = [rank for rank, j in enumerate(ranking, start=1) if tracks[j].identity == query.identity]
        precisions.append(np.mean([found / rank for found, rank in enumerate(right, start=1)]))
    assert reranked.metrics.mAP == pytest.approx(float(np.mean(precisions)), abs=1e-3)  # ties of scores
    assert reranked.metrics.mAP != plain.metrics.mAP
    assert reranked.metrics.gallery == 72


def test_details_are_over_images() -> None:
    given = passers_by(1)
    report = evaluate(given, scoring=BY_TRACK)
    (part,) = details_of(report, given, BY_TRACK).results
    assert part.gallery == sum(sample.split is G for sample in given.samples) > report.results[0].metrics.gallery


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"cmc": "single-shot"}, "ranked=track.*cmc=single-shot"),
        ({"ignore": "itself"}, "ranked=track.*ignore=itself"),
    ],
)
def test_settings_that_do_not_go_together(rule: dict[str, object], message: str) -> None:
    given = passers_by(0)
    with pytest.raises(DataError, match=message):
        score_trial(given, given, Rule().changed({"ranked": "track", **rule}))


def test_rows_without_track_or_camera_are_an_error() -> None:
    pairs = rows(Q, ("a", "1", 0)) + rows(G, ("a", "2", 10), ("b", "2", 30))
    with pytest.raises(DataError, match=r"track.*2 of 2.*gallery/a"):
        evaluate(embeddings(pairs), scoring=BY_TRACK)
    blind = [(replace(sample, track="t", camera=""), degrees) for sample, degrees in pairs]
    with pytest.raises(DataError, match=r"camera.*2 of 2"):
        evaluate(embeddings(blind), scoring=BY_TRACK)


def test_a_track_that_holds_the_query_is_the_query_itself() -> None:
    """The query's file is the second image of track t, under another camera and name; u is the right answer.

    The wrong variant compares only the first image of a track: t would answer first.
    """

    def image(name: str, identity: str, camera: str, track: str, split: Split = G) -> Sample:
        return Sample(Path(name), identity, camera, split=split, track=track)

    gallery = (
        image("1.jpg", "a", "2", "t"), image("2.jpg", "a", "2", "t"), image("3.jpg", "b", "2", "w"),
        image("4.jpg", "a", "3", "u"),
    )  # fmt: skip
    query = Embeddings((image("sub/../2.jpg", "a", "1", "", Q),), at([0]), "f")
    metrics, labels, _ = score_trial(query, Embeddings(gallery, at([40, 0, 10, 20]), "f"), Rule(ranked="track"))
    assert labels.count_left_out() == 1
    assert (metrics.rank(1), metrics.mAP) == (0, 0.5)
