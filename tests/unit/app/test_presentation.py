"""The HTML of the pages: labels stay text, and every verdict has a mark and words besides its colour."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from reid.app import presentation as present
from reid.app.score_presentation import ScoreRow, cmc_html, score_table_html

NASTY = """<img src=x onerror='alert("1")'> {{#each x}} ${alert(1)} `a` & b"""


def crop(identity: str = "p1", camera: str = "a1", modality: str = "visible", aspect: float = 0.5) -> present.Crop:
    return present.Crop("data:image/jpeg;base64,AA==", aspect, identity, camera, modality, "person", "street-a")


def row(title: str, direction: str, first: float, average: float) -> ScoreRow:
    return ScoreRow(title, direction, average, np.linspace(first, 1.0, 50), 40, 120)


class Elements(HTMLParser):
    """The elements of a text, with their attributes, and its words; fails on unbalanced tags."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag != "img":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def everything(text: str) -> list[str]:
    """Return every part of a page, with ``text`` in all its labels."""
    nasty = present.Crop("data:,", 0.5, text, text, text, text, text)
    answer = present.RankedCrop(1, nasty, 0.5, "wrong")
    return [
        present.picker_html({"q3": nasty}),
        present.query_html(nasty),
        present.ranking_html(text, [answer], present.summary_html(9, None, None, None, True), [text]),
        present.message_html(text),
        present.hint_html(text),
        present.card_html(text, ""),
        present.enlarged_html(nasty, 3, [(4, nasty, text)], text),
        score_table_html([row(text, text, 0.1, 0.1)]),
        cmc_html(text, [row(text, text, 0.1, 0.1)]),
    ]


@pytest.mark.parametrize("number", range(9))
def test_labels_stay_text(number: int) -> None:
    harmless, nasty = everything("plain")[number], everything(NASTY)[number]
    assert [name for name, _ in Elements(nasty).found] == [name for name, _ in Elements(harmless).found]
    assert not any("onerror" in attributes for _, attributes in Elements(nasty).found)
    assert not set("{}$`") & set(nasty), "the templates of the page framework must find nothing to fill in"
    assert "alert" in nasty


def test_images_are_part_of_the_page_and_small() -> None:
    uri = present.data_uri(Image.new("RGBA", (1000, 2000), (200, 30, 30, 255)))
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (128, 256)
        assert abs(image.getpixel((64, 128))[0] - 200) < 6


def test_a_small_image_is_not_enlarged() -> None:
    content = present.data_uri(Image.new("L", (64, 128))).partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (64, 128)


def test_picker_marks_the_chosen_crop() -> None:
    buttons = Elements(present.picker_html({"q7": crop("p7"), "q9": crop("p9")}, chosen="q9")).all("button")
    assert [(b["data-value"], b["aria-pressed"]) for b in buttons] == [("q7", "false"), ("q9", "true")]
    assert 'role="alert"' in present.picker_html({})


def test_frames_have_the_shape_of_the_crops() -> None:
    def aspect(*aspects: float) -> float:
        text = present.picker_html({f"q{key}": crop(aspect=value) for key, value in enumerate(aspects)})
        return float(re.search(r"--aspect: ([\d.]+)", text)[1])

    assert aspect(0.5, 0.5, 1.3) == 0.5
    assert aspect(1.333, 1.333, 0.5) == 1.333
    assert aspect(0.01) == present.NARROWEST
    assert aspect(20.0) == present.WIDEST


@pytest.mark.parametrize("verdict", present.MARKS)
def test_an_answer_shows_its_verdict_as_colour_mark_and_words(verdict: str) -> None:
    ranked = present.RankedCrop(4, crop("p1", "a2", "infrared"), 0.87654, verdict)
    text = present.ranking_html("Camera BN", [ranked], present.summary_html(10, 4, 4, 0.5, True))
    elements = Elements(text)
    answer = elements.all("li")[0]
    assert answer["class"] == f"reid-answer reid-is-{verdict.replace(' ', '-')}"
    assert (answer["data-camera"], answer["data-modality"]) == ("a2", "infrared")
    words = f"Rank 4, {present.NOTES[verdict]}: person p1 seen by infrared camera a2, score 0.877"
    assert elements.all("img")[0]["alt"] == words
    assert present.MARKS[verdict] in elements.words


def test_marks_and_notes_cover_the_same_verdicts() -> None:
    assert present.MARKS.keys() == present.NOTES.keys()
    assert len(set(present.MARKS.values())) == len(present.MARKS)
    for verdict, mark in present.MARKS.items():
        assert f'reid-is-{verdict.replace(" ", "-")}"' in present.legend_html()
        assert mark in present.legend_html()


@pytest.mark.parametrize(
    ("first", "shown", "average", "known", "words"),
    [
        (1, 1, 0.5, True, "first right answer: rank 1AP 50.0of 1,234 crops"),
        (1020, None, 0.001, True, "first right answer: rank 1,020AP 0.1of 1,234 crops"),
        (
            4,
            6,
            0.5,
            True,
            "first right answer: rank 4 (number 6 here; own-camera answers do not count)AP 50.0of 1,234 crops",
        ),
        (None, None, None, True, "no right answer among theseof 1,234 crops"),
        (None, None, None, False, "identity unknown: not scoredof 1,234 crops"),
    ],
)
def test_summary(first: int | None, shown: int | None, average: float | None, known: bool, words: str) -> None:
    text = present.summary_html(1234, first, shown, average, known)
    assert Elements(text).words == words
    assert ("reid-is-right" in text) == (first == 1)
    assert ("reid-is-wrong" in text) == (first not in (1, None))


def test_unknown_labels_have_words() -> None:
    unknown = crop("", "", "visible")
    assert present.describe(unknown) == "unknown person seen by visible camera unknown"
    words = Elements(present.query_html(unknown)).words
    assert words == "IdentityunknownCameraunknownModalityvisibleCategorypersonSitestreet-a"


def test_a_message_is_one_line_with_a_capital() -> None:
    elements = Elements(present.message_html("two\nlines  of <b>text</b>"))
    assert elements.words == "Two lines of <b>text</b>"
    assert elements.all("p")[0]["role"] == "alert"


def test_the_table_shows_percent_and_the_better_one_bold() -> None:
    rows = [row("Camera BN", "visible->visible", 0.9, 0.8), row("Plain BN", "visible->visible", 0.5, 0.85)]
    rows += [row("Camera BN", "all", 0.25, 0.25), row("Plain BN", "all", 0.25, 0.25)]
    text = score_table_html(rows)
    lines = [re.sub(r"<(?!/?b>)[^>]+>", "|", line) for line in text.split("<tr>")[2:]]
    cells = [[cell for cell in line.split("|") if cell] for line in lines]
    assert cells[0][:4] == ["visible → visible", "Camera BN", "80.0", "<b>90.0</b>"]
    assert cells[1][:4] == ["visible → visible", "Plain BN", "<b>85.0</b>", "50.0"]
    assert cells[2][2:4] == cells[3][2:4] == ["25.0", "25.0"]
    assert cells[0][-2:] == ["40", "120"]
    assert 'role="alert"' in score_table_html([])


def test_the_chart_has_a_line_and_words_for_each_row() -> None:
    rows = [row("Camera BN", "all", 0.9, 0.8), row("Plain BN", "all", 0.5, 0.4)]
    elements = Elements(cmc_html("CMC: person", rows, ranks=10))
    assert elements.all("svg")[0]["aria-label"] == "CMC: person"
    assert "Camera BN: rank-1 90.0, mAP 80.0" in elements.words
    assert "Plain BN: rank-1 50.0, mAP 40.0" in elements.words
    lines = elements.all("polyline")
    assert len({line["stroke"] for line in lines}) == len(lines) == 2
    points = np.array([[point.split(",") for point in (line["points"] or "").split()] for line in lines], float)
    assert points.shape == (2, 10, 2)
    np.testing.assert_allclose(np.diff(points[..., 0]), points[0, 1, 0] - points[0, 0, 0], atol=0.11)
    values = np.concatenate([row.cmc[:10] for row in rows])
    heights = -points[..., 1].ravel()
    scale, offset = np.polyfit(values, heights, 1)
    assert scale > 0
    np.testing.assert_allclose(scale * values + offset, heights, atol=0.11)
