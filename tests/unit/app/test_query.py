"""Searching for a query in the galleries of the application: options, verdicts, scores and uploads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.app.data_preparation import prepare_data
from reid.app.query import NO_ROW_MAY_ANSWER, Query, SearchOptions, Verdict, answer_query, judge_answers
from reid.app.served_data import ServedData
from reid.app.upload_images import read_upload
from reid.errors import DataError
from reid.records import Modality, Sample


@pytest.fixture(scope="module")
def data(
    tiny_street: Path, camera_weights: Path, plain_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> ServedData:
    return prepare_data(tiny_street, tmp_path_factory.mktemp("galleries"), camera_weights, plain_weights)


def sample(identity: str, camera: str, name: str = "x") -> Sample:
    return Sample(Path(name), identity, camera)


@pytest.mark.parametrize(
    ("query", "answer", "verdict"),
    [
        (sample("p", "a"), sample("p", "b", "y"), Verdict.RIGHT),
        (sample("p", "a"), sample("q", "b", "y"), Verdict.WRONG),
        (sample("p", "a"), sample("q", "a", "y"), Verdict.WRONG),
        (sample("p", "a"), sample("p", "a", "y"), Verdict.SAME_CAMERA),
        (sample("", "a"), sample("p", "a", "y"), Verdict.UNKNOWN),
        (sample("p", "a"), sample("", "b", "y"), Verdict.UNKNOWN),
        (sample("", "a"), sample("", "a", "y"), Verdict.UNKNOWN),
        (sample("p", ""), sample("p", "", "y"), Verdict.RIGHT),
        (sample("p", ""), sample("p", "", "x"), Verdict.SAME_CAMERA),
    ],
)
def test_verdicts_follow_the_market_rule(query: Sample, answer: Sample, verdict: Verdict) -> None:
    assert judge_answers(query, [answer]) == [verdict]


def test_a_query_without_camera_has_the_camera_of_the_same_image_in_the_gallery() -> None:
    answers = [sample("p", "a", "x"), sample("p", "a", "y"), sample("p", "b", "z")]
    expected = [Verdict.SAME_CAMERA, Verdict.SAME_CAMERA, Verdict.RIGHT]
    assert judge_answers(sample("p", "", "x"), answers) == expected


@pytest.mark.parametrize("cross_camera", [True, False])
def test_rank_and_precision_are_those_of_the_shown_ranking(data: ServedData, cross_camera: bool) -> None:
    """Both are counted by hand over the complete ranking; a row that the rule leaves out has no rank."""
    for site, query in map(data.query_crops.find, range(0, 72, 7)):
        options = SearchOptions(cross_camera=cross_camera, site=site, answers=1000)
        for outcome in answer_query(data, Query(query, site), options):
            assert len(outcome.answers) == outcome.rows
            verdicts = [verdict for _, verdict in outcome.answers if verdict is not Verdict.SAME_CAMERA]
            ranks = [rank for rank, verdict in enumerate(verdicts, 1) if verdict is Verdict.RIGHT]
            assert outcome.first_right == ranks[0]
            precision = np.mean([i / rank for i, rank in enumerate(ranks, 1)])
            assert outcome.average_precision == pytest.approx(precision, abs=1e-6)


def test_options_decide_which_rows_may_answer(data: ServedData) -> None:
    site, query = next(
        (site, s) for site, s in map(data.query_crops.find, range(72)) if s.modality is Modality.INFRARED
    )
    asked = Query(query, site)

    def answers(**options: object) -> list[Sample]:
        outcomes = answer_query(data, asked, SearchOptions(answers=1000, **options))
        assert outcomes[0].rows == outcomes[1].rows == len(outcomes[0].answers)
        return [answer.sample for answer, _ in outcomes[0].answers]

    everyone = answers(cross_camera=False)
    assert {s.category for s in everyone} == {query.category}
    assert {data.site_of(s) for s in everyone} == {"street-a", "street-b"}
    assert {data.site_of(s) for s in answers(site="street-b")} == {"street-b"}
    assert query.camera in {s.camera for s in everyone}
    assert query.camera not in {s.camera for s in answers(cross_camera=True)}
    assert {s.modality for s in answers(modality=Modality.VISIBLE)} == {Modality.VISIBLE}
    assert len(answer_query(data, asked, SearchOptions(answers=3))[0].answers) == 3


def test_no_row_that_may_answer_is_one_clear_line(data: ServedData) -> None:
    other_category = replace(data.query_crops.find(0)[1], category="bicycle")
    with pytest.raises(DataError) as caught:
        answer_query(data, Query(other_category, "street-a"), SearchOptions())
    assert str(caught.value) == NO_ROW_MAY_ANSWER
    assert "\n" not in NO_ROW_MAY_ANSWER


def test_an_upload_answers_like_its_file(data: ServedData) -> None:
    site, query = data.query_crops.find(5)
    with Image.open(query.path) as image:
        sent = Query(replace(query, identity="", path=Path("sent")), site, (image.convert("RGB"),))
    known, unknown = (answer_query(data, asked, SearchOptions()) for asked in (Query(query, site), sent))
    for one, other in zip(known, unknown, strict=True):
        assert [answer.sample for answer, _ in one.answers] == [answer.sample for answer, _ in other.answers]
        first, second = ([answer.score for answer, _ in each.answers] for each in (one, other))
        assert first == pytest.approx(second, abs=1e-5)
        assert {verdict for _, verdict in other.answers} == {Verdict.UNKNOWN}
        assert other.average_precision is None


@pytest.mark.parametrize("fault", ["text", "empty", "cut off", "bomb", "many pixels", "many deep pixels", "postscript"])
def test_a_bad_upload_is_one_line_without_a_path(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "secret-name.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    if fault == "text":
        path.write_text("hello")
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "cut off":
        path.write_bytes(path.read_bytes()[:2000])
    elif fault == "bomb":
        Image.new("1", (20_000, 20_000)).save(path)
    elif fault == "many deep pixels":
        Image.new("I;16", (3000, 2000)).save(path)
    elif fault == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    else:
        Image.new("1", (6000, 6000)).save(path)
    with pytest.raises(DataError) as caught:
        read_upload(path.read_bytes())
    assert "\n" not in str(caught.value)
    assert "secret-name" not in str(caught.value)
    assert "image" in str(caught.value)


def test_a_good_upload_is_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[274] = 6  # rotated by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_upload((tmp_path / "a.jpg").read_bytes()).size == (20, 40)
