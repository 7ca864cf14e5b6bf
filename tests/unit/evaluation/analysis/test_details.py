"""What lies behind a report, against loops over its samples.

Wrong variants that the oracles tell apart: rows of the query's own camera shown as answers, ties broken
for the right row, the worst queries in the place of the best, queries of another direction's modality.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation import Reranking, details_of, evaluate
from reid.evaluation.analysis.details import ANSWERS, FEWEST_BINS, THUMBNAIL, thumbnail
from reid.evaluation.reports.detail_text import details_table
from reid.records import Embeddings, Modality, Sample, Split

CAMERAS = {"1": Modality.VISIBLE, "2": Modality.VISIBLE, "10": Modality.INFRARED}


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "large.png"
    Image.new("RGB", (400, 300), (200, 30, 30)).save(path)
    return path


def street(picture: Path, seed: int = 0, gallery: int = 120, queries: int = 24) -> Embeddings:
    """Twelve people, of whom two are strangers to the gallery, seen by cameras of two modalities; some rows twice."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((12, 16))
    samples, who = [], []
    for split, count, first in ((Split.QUERY, queries, 0), (Split.GALLERY, gallery, 2)):
        for number in range(count):
            person, camera = int(random.integers(first, 12)), str(random.choice(list(CAMERAS)))
            path = picture.with_name(f"{split}-{number}.png")
            samples.append(Sample(path, f"p{person}", camera, CAMERAS[camera], split=split))
            who.append(person)
    vectors = centres[who] + 0.9 * random.standard_normal((len(who), 16))
    vectors[-10:] = vectors[-20:-10]  # ties
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(tuple(samples), vectors.astype(np.float32), "f00d")


@pytest.fixture(autouse=True)
def one_picture(monkeypatch, picture):
    """Every path shows the same picture; the tests count how often one is read."""
    read: list[Path] = []

    def shown(path: Path) -> str:
        read.append(path)
        return thumbnail(picture)

    monkeypatch.setattr("reid.evaluation.analysis.details.thumbnail", shown)
    return read


def ranking(embeddings: Embeddings, query: int, modality: Modality, junk=False, generous=False) -> list[int]:
    """Gallery rows from best to worst by a loop; of equal scores the wrong ones first."""
    asked = embeddings.samples[query]
    entries = []
    for row, sample in enumerate(embeddings.samples):
        same = sample.identity == asked.identity
        if sample.split is Split.GALLERY and sample.modality is modality:
            if same and sample.camera == asked.camera and not junk:
                continue
            score = float(embeddings.vectors[query] @ embeddings.vectors[row])
            entries.append((-round(score, 6), same != generous, row))
    return [row for _, _, row in sorted(entries)]


def check_strips(embeddings, details, **wrong) -> None:
    positions = {sample.path: row for row, sample in enumerate(embeddings.samples)}
    for part in details.parts:
        target = Modality(part.result.direction.partition("->")[2])
        for strip in (*part.best, *part.worst):
            rows = ranking(embeddings, positions[strip.query.path], target, **wrong)
            right = [embeddings.samples[row].identity == strip.query.identity for row in rows]
            first = right.index(True)
            places = [*range(ANSWERS), *([first] if first >= ANSWERS else [])]
            assert [answer.place for answer in strip.answers] == [place + 1 for place in places]
            assert [answer.right for answer in strip.answers] == [right[place] for place in places]
            query = embeddings.vectors[positions[strip.query.path]]
            scores = [float(query @ embeddings.vectors[rows[place]]) for place in places]
            assert [answer.score for answer in strip.answers] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_strips_show_the_ranking_that_was_scored(picture, seed):
    embeddings = street(picture, seed)
    details = details_of(evaluate(embeddings), embeddings, query_examples=50)
    check_strips(embeddings, details)


def test_wrong_rankings_are_noticed(picture):
    embeddings = street(picture)
    details = details_of(evaluate(embeddings), embeddings, query_examples=50)
    with pytest.raises(AssertionError):
        check_strips(embeddings, details, junk=True)


def test_ties_stand_against_the_query():
    """Two rows with the query's own vector; the wrong one takes place 1, as in the metrics."""
    samples = [Sample(Path("q"), "a", "1", split=Split.QUERY), Sample(Path("right"), "a", "2")]
    samples += [Sample(Path("wrong"), "b", "2"), Sample(Path("far"), "b", "2")]
    embeddings = Embeddings(tuple(samples), np.eye(3, dtype=np.float32)[[0, 0, 0, 1]], "f00d")
    report = evaluate(embeddings)
    (part,) = details_of(report, embeddings, query_examples=1).parts
    assert part.worst == ()
    assert [answer.sample.path.name for answer in part.best[0].answers] == ["wrong", "right", "far"]
    assert report.results[0].metrics.first_match[0] == 2


def test_best_and_worst_and_never_more_than_asked(picture, one_picture):
    embeddings = street(picture, queries=60)
    report = evaluate(embeddings)
    for part in details_of(report, embeddings, query_examples=2).parts:
        values = np.sort(part.result.metrics.average_precision)
        values = values[~np.isnan(values)]
        assert [strip.average_precision for strip in part.best] == pytest.approx(values[::-1][:2])
        assert [strip.average_precision for strip in part.worst] == pytest.approx(values[:2])
        assert values[0] < values[-1]
    queries = {path for path in one_picture if path.name.startswith("query")}
    assert 0 < len(queries) <= 4 * len(report.results)
    assert len(one_picture) <= 4 * len(report.results) * (ANSWERS + 2)
    one_picture.clear()
    assert all(not part.best and not part.worst for part in details_of(report, embeddings).parts)
    assert one_picture == []


def test_a_query_is_not_shown_twice(picture):
    embeddings = street(picture)
    for part in details_of(evaluate(embeddings), embeddings, query_examples=1000).parts:
        shown = [strip.query.path for strip in (*part.best, *part.worst)]
        metrics = part.result.metrics
        assert len(shown) == len(set(shown)) == metrics.queries - metrics.queries_without_match


def test_numbers_of_a_part(picture):
    embeddings = street(picture, queries=60)
    report = evaluate(embeddings)
    details = details_of(report, embeddings)
    assert [part.result for part in details.parts] == list(report.results)
    for part in details.parts:
        pairs = [
            (sample.identity == asked.identity)
            for asked in part.result.asked
            for sample in embeddings.samples
            if sample.split is Split.GALLERY
            and str(sample.modality) == part.result.direction.partition("->")[2]
            and not (sample.identity == asked.identity and sample.camera == asked.camera)
        ]
        found = part.verification
        assert (found.same.sum(), found.different.sum()) == (sum(pairs), len(pairs) - sum(pairs))
        assert len(found.edges) == len(found.same) + 1 >= FEWEST_BINS + 1
        assert found.same[0] + found.different[0] > 0 < found.same[-1] + found.different[-1]
        assert all(point.wished * found.different.sum() >= 1 for point in found.points)
        assert part.strangers == part.result.metrics.queries_without_match > 0
        assert [one.strangers for one in part.identification] == [part.strangers] * 2
        across = part.result.direction in ("visible->infrared", "infrared->visible")
        assert (part.bias is None) == (across or part.result.direction == "infrared->infrared")
        assert part.cameras is None or part.cameras.matched.max() > 0


@pytest.mark.parametrize("rule", [Rule(), Rule(modalities="mixed")])
def test_modalities(picture, rule):
    """The table by modality is that of the directions, whether they are scored apart or in one gallery."""
    embeddings = street(picture, queries=60)
    apart = evaluate(embeddings)
    scoring = Scoring(rule)
    ((domain, table),) = details_of(evaluate(embeddings, scoring=scoring), embeddings, scoring).modalities
    assert (domain, table.query_groups, table.gallery_groups) == ("person", *[("visible", "infrared")] * 2)
    for i, source in enumerate(table.query_groups):
        for j, target in enumerate(table.gallery_groups):
            results = [r for r in apart.results if r.direction == f"{source}->{target}"]
            expected = results[0].metrics.mAP if results else np.nan
            assert table.mAP[i, j] == pytest.approx(expected, nan_ok=True)


def test_reranked_results_and_leave_one_out(picture):
    embeddings = street(picture)
    both = evaluate(embeddings, reranking=Reranking((5, 2, 0.3)))
    assert len(details_of(both, embeddings).parts) * 2 == len(both.results)
    alone = Scoring(Rule(ignore="itself"))
    one = embeddings.select(np.flatnonzero([sample.modality is Modality.VISIBLE for sample in embeddings.samples]))
    (part,) = details_of(evaluate(one, scoring=alone), one, alone).parts
    assert (part.gallery, part.result.metrics.queries) == (len(one), len(one))


def test_other_vectors_are_refused(picture):
    embeddings = street(picture)
    report = evaluate(embeddings)
    with pytest.raises(DataError, match="pass the embeddings it was made of"):
        details_of(report, street(picture, seed=1))
    with pytest.raises(DataError, match="not the"):
        details_of(report, embeddings.select(np.arange(1, len(embeddings))))


def test_what_the_data_cannot_say_is_left_out():
    """One query, one right row: no wrong pair, no stranger, no other camera."""
    samples = (Sample(Path("q"), "a", "1", split=Split.QUERY), Sample(Path("g"), "a", "2"))
    embeddings = Embeddings(samples, np.eye(2, dtype=np.float32)[[0, 0]], "f00d")
    details = details_of(evaluate(embeddings), embeddings)
    (part,) = details.parts
    assert (part.verification, part.identification, part.cameras, part.bias) == (None, (), None, None)
    assert "strangers: 0 of 1 queries" in details_table(details)


def test_text_fits_and_says_the_numbers(picture):
    embeddings = street(picture, queries=60)
    wide = tuple(replace(s, camera=f"a-camera-with-a-long-name-{i % 23}") for i, s in enumerate(embeddings.samples))
    for rows in (embeddings, Embeddings(wide, embeddings.vectors, "f00d")):
        report = evaluate(rows)
        details = details_of(report, rows)
        text = details_table(details)
        assert max(map(len, text.splitlines())) <= 80
        point = details.parts[0].verification.points[0]
        assert f"{point.threshold:.4f}" in text
        assert f"{100 * point.true_match_rate.value:.1f}" in text
        assert "identified" in text
    assert details_table(replace(details, parts=(), modalities=())) == ""


def test_thumbnails_are_small_jpegs(picture):
    uri = thumbnail(picture)
    prefix = "data:image/jpeg;base64,"
    assert uri.startswith(prefix)
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix))))
    assert image.format == "JPEG"
    assert image.size == (THUMBNAIL[0], THUMBNAIL[0] * 300 // 400)
