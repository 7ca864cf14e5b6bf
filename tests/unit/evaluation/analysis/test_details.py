"""Details of a report equal loops over its samples.

The oracles refuse these wrong variants: rows of the query's own camera shown as answers, ties broken for the right row,
the worst queries in place of the best, queries of another direction's modality.
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
from reid.evaluation.analysis.details import FEWEST_BINS
from reid.evaluation.analysis.query_examples import ANSWERS, THUMBNAIL, thumbnail
from reid.evaluation.reports.detail_text import details_table
from reid.records import Embeddings, Modality, Sample, Split

CAMERAS = {"1": Modality.VISIBLE, "2": Modality.VISIBLE, "10": Modality.INFRARED}


@pytest.fixture(scope="module")
def image_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "large.png"
    Image.new("RGB", (400, 300), (200, 30, 30)).save(path)
    return path


def street(image_file: Path, seed: int = 0, gallery: int = 120, queries: int = 24) -> Embeddings:
    """Twelve people, two of them not in the gallery, in cameras of two modalities; some rows twice."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((12, 16))
    samples, who = [], []
    for split, count, first in ((Split.QUERY, queries, 0), (Split.GALLERY, gallery, 2)):
        for number in range(count):
            person, camera = int(random.integers(first, 12)), str(random.choice(list(CAMERAS)))
            path = image_file.with_name(f"{split}-{number}.png")
            samples.append(Sample(path, f"p{person}", camera, CAMERAS[camera], split=split))
            who.append(person)
    vectors = centres[who] + 0.9 * random.standard_normal((len(who), 16))
    vectors[-10:] = vectors[-20:-10]  # ties
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(tuple(samples), vectors.astype(np.float32), "f00d")


@pytest.fixture(autouse=True)
def one_image_for_all(monkeypatch, image_file):
    """Every path shows the same image; the tests count how often one is read."""
    read: list[Path] = []

    def count_and_read(path: Path) -> str:
        read.append(path)
        return thumbnail(image_file)

    monkeypatch.setattr("reid.evaluation.analysis.query_examples.thumbnail", count_and_read)
    return read


def ranking(embeddings: Embeddings, query: int, modality: Modality, junk=False, generous=False) -> list[int]:
    """Rank the gallery rows by a loop; of equal scores the wrong ones stand first."""
    its_sample = embeddings.samples[query]
    entries = []
    for row, sample in enumerate(embeddings.samples):
        same = sample.identity == its_sample.identity
        if sample.split is Split.GALLERY and sample.modality is modality:
            if same and sample.camera == its_sample.camera and not junk:
                continue
            score = float(embeddings.vectors[query] @ embeddings.vectors[row])
            entries.append((-round(score, 6), same != generous, row))
    return [row for _, _, row in sorted(entries)]


def check_examples(embeddings, details, **wrong) -> None:
    positions = {sample.path: row for row, sample in enumerate(embeddings.samples)}
    for one in details.results:
        target = Modality(one.result.direction.partition("->")[2])
        for example in (*one.best, *one.worst):
            rows = ranking(embeddings, positions[example.query.path], target, **wrong)
            right = [embeddings.samples[row].identity == example.query.identity for row in rows]
            first = right.index(True)
            shown = [*range(ANSWERS), *([first] if first >= ANSWERS else [])]
            assert [answer.rank for answer in example.answers] == [position + 1 for position in shown]
            assert [answer.right for answer in example.answers] == [right[position] for position in shown]
            query = embeddings.vectors[positions[example.query.path]]
            scores = [float(query @ embeddings.vectors[rows[position]]) for position in shown]
            assert [answer.score for answer in example.answers] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_examples_show_the_ranking_that_was_scored(image_file, seed):
    embeddings = street(image_file, seed)
    details = details_of(evaluate(embeddings), embeddings, query_examples=50)
    check_examples(embeddings, details)


def test_wrong_rankings_are_noticed(image_file):
    embeddings = street(image_file)
    details = details_of(evaluate(embeddings), embeddings, query_examples=50)
    with pytest.raises(AssertionError):
        check_examples(embeddings, details, junk=True)


def test_ties_stand_against_the_query():
    """Two rows with the query's own vector; the wrong one takes rank 1, as in the metrics."""
    samples = [Sample(Path("q"), "a", "1", split=Split.QUERY), Sample(Path("right"), "a", "2")]
    samples += [Sample(Path("wrong"), "b", "2"), Sample(Path("far"), "b", "2")]
    embeddings = Embeddings(tuple(samples), np.eye(3, dtype=np.float32)[[0, 0, 0, 1]], "f00d")
    report = evaluate(embeddings)
    (one,) = details_of(report, embeddings, query_examples=1).results
    assert one.worst == ()
    assert [answer.sample.path.name for answer in one.best[0].answers] == ["wrong", "right", "far"]
    assert report.results[0].metrics.first_match[0] == 2


def test_best_and_worst_and_never_more_than_asked(image_file, one_image_for_all):
    embeddings = street(image_file, queries=60)
    report = evaluate(embeddings)
    for one in details_of(report, embeddings, query_examples=2).results:
        values = np.sort(one.result.metrics.average_precision)
        values = values[~np.isnan(values)]
        assert [example.average_precision for example in one.best] == pytest.approx(values[::-1][:2])
        assert [example.average_precision for example in one.worst] == pytest.approx(values[:2])
        assert values[0] < values[-1]
    queries = {path for path in one_image_for_all if path.name.startswith("query")}
    assert 0 < len(queries) <= 4 * len(report.results)
    assert len(one_image_for_all) <= 4 * len(report.results) * (ANSWERS + 2)
    one_image_for_all.clear()
    assert all(not one.best and not one.worst for one in details_of(report, embeddings).results)
    assert one_image_for_all == []


def test_a_query_is_not_shown_twice(image_file):
    embeddings = street(image_file)
    for one in details_of(evaluate(embeddings), embeddings, query_examples=1000).results:
        shown = [example.query.path for example in (*one.best, *one.worst)]
        metrics = one.result.metrics
        assert len(shown) == len(set(shown)) == metrics.queries - metrics.queries_without_match


def test_numbers_of_a_result(image_file):
    embeddings = street(image_file, queries=60)
    report = evaluate(embeddings)
    details = details_of(report, embeddings)
    assert [one.result for one in details.results] == list(report.results)
    for one in details.results:
        pairs = [
            (sample.identity == query.identity)
            for query in one.result.query_samples
            for sample in embeddings.samples
            if sample.split is Split.GALLERY
            and str(sample.modality) == one.result.direction.partition("->")[2]
            and not (sample.identity == query.identity and sample.camera == query.camera)
        ]
        found = one.verification
        assert (found.same.sum(), found.different.sum()) == (sum(pairs), len(pairs) - sum(pairs))
        assert len(found.edges) == len(found.same) + 1 >= FEWEST_BINS + 1
        assert found.same[0] + found.different[0] > 0 < found.same[-1] + found.different[-1]
        assert all(point.wished * found.different.sum() >= 1 for point in found.points)
        assert one.unmatched == one.result.metrics.queries_without_match > 0
        assert [rate.unmatched for rate in one.identification] == [one.unmatched] * 2
        across = one.result.direction in ("visible->infrared", "infrared->visible")
        assert (one.bias is None) == (across or one.result.direction == "infrared->infrared")
        assert one.cameras is None or one.cameras.matched.max() > 0


@pytest.mark.parametrize("rule", [Rule(), Rule(modalities="mixed")])
def test_modalities(image_file, rule):
    """The table by modality is that of the directions, whether they are scored in separate galleries or in one."""
    embeddings = street(image_file, queries=60)
    separate = evaluate(embeddings)
    scoring = Scoring(rule)
    ((category, table),) = details_of(evaluate(embeddings, scoring=scoring), embeddings, scoring).modalities
    assert (category, table.query_groups, table.gallery_groups) == ("person", *[("visible", "infrared")] * 2)
    for i, source in enumerate(table.query_groups):
        for j, target in enumerate(table.gallery_groups):
            results = [r for r in separate.results if r.direction == f"{source}->{target}"]
            expected = results[0].metrics.mAP if results else np.nan
            assert table.mAP[i, j] == pytest.approx(expected, nan_ok=True)


def test_reranked_results_and_leave_one_out(image_file):
    embeddings = street(image_file)
    both = evaluate(embeddings, reranking=Reranking((5, 2, 0.3)))
    assert len(details_of(both, embeddings).results) * 2 == len(both.results)
    leave_one_out = Scoring(Rule(ignore="itself"))
    visible = embeddings.select(np.flatnonzero([sample.modality is Modality.VISIBLE for sample in embeddings.samples]))
    (one,) = details_of(evaluate(visible, scoring=leave_one_out), visible, leave_one_out).results
    assert (one.gallery, one.result.metrics.queries) == (len(visible), len(visible))


def test_other_vectors_are_refused(image_file):
    embeddings = street(image_file)
    report = evaluate(embeddings)
    with pytest.raises(DataError, match="of the report"):
        details_of(report, street(image_file, seed=1))
    with pytest.raises(DataError, match="of the report"):
        details_of(report, embeddings.select(np.arange(1, len(embeddings))))


def test_what_the_data_cannot_say_is_left_out():
    """One query with one right row has no wrong pair, no unmatched query and no other camera."""
    samples = (Sample(Path("q"), "a", "1", split=Split.QUERY), Sample(Path("g"), "a", "2"))
    embeddings = Embeddings(samples, np.eye(2, dtype=np.float32)[[0, 0]], "f00d")
    details = details_of(evaluate(embeddings), embeddings)
    (one,) = details.results
    assert (one.verification, one.identification, one.cameras, one.bias) == (None, (), None, None)
    assert "open set: 0 of 1 queries" in details_table(details)


def test_text_fits_and_shows_the_numbers(image_file):
    embeddings = street(image_file, queries=60)
    wide = tuple(replace(s, camera=f"a-camera-with-a-long-name-{i % 23}") for i, s in enumerate(embeddings.samples))
    for rows in (embeddings, Embeddings(wide, embeddings.vectors, "f00d")):
        report = evaluate(rows)
        details = details_of(report, rows)
        text = details_table(details)
        assert max(map(len, text.splitlines())) <= 80
        point = details.results[0].verification.points[0]
        assert f"{point.threshold:.4f}" in text
        assert f"{100 * point.true_match_rate.value:.1f}" in text
        assert "identified" in text
    assert details_table(replace(details, results=(), modalities=())) == ""


def test_thumbnails_are_small_jpegs(image_file):
    uri = thumbnail(image_file)
    prefix = "data:image/jpeg;base64,"
    assert uri.startswith(prefix)
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix))))
    assert image.format == "JPEG"
    assert image.size == (THUMBNAIL[0], THUMBNAIL[0] * 300 // 400)
