"""What a visitor sees: text that cannot break out of the page, verdicts that say more than colours."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from reid.app import presentation as present

NASTY = """<img src=x onerror='alert("1")'> {{#each x}} ${alert(1)} `a` & b"""


def crop(identity: str = "p1", camera: str = "a1", modality: str = "visible", aspect: float = 0.5) -> present.Crop:
    return present.Crop("data:image/jpeg;base64,AA==", aspect, identity, camera, modality, "person", "street-a")


def row(title: str, direction: str, first: float, average: float) -> present.Row:
    return present.Row(title, direction, average, np.linspace(first, 1.0, 50), 40, 120)


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
    """HTML of every kind, made from a text that wants to be more than text."""
    nasty = present.Crop("data:,", 0.5, text, text, text, text, text)
    place = present.Place(1, nasty, 0.5, "wrong")
    return [
        present.picker({3: nasty}),
        present.query_card(nasty),
        present.ranked(text, [place], rows=9, first_right=None, average_precision=None, known=True),
        present.message(text),
        present.hint(text),
        present.titled(text, ""),
        present.camera_wall(text, [nasty]),
        present.score_table([row(text, text, 0.1, 0.1)]),
        present.figure_html(present.cmc_figure([]), text),
    ]


@pytest.mark.parametrize("number", range(9))
def test_labels_stay_text(number: int) -> None:
    harmless, nasty = everything("plain")[number], everything(NASTY)[number]
    assert [name for name, _ in Elements(nasty).found] == [name for name, _ in Elements(harmless).found]
    assert not any("onerror" in attributes for _, attributes in Elements(nasty).found)
    labels = re.sub(r"data:image/svg\+xml;base64,[\w+/=]+", "", nasty)
    assert not set("{}$`") & set(labels), "the page's own templates must find nothing to fill in"
    assert "alert" in nasty


def test_pictures_travel_inside_the_page_and_small() -> None:
    uri = present.data_uri(Image.new("RGBA", (1000, 2000), (200, 30, 30, 255)))
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (128, 256)
        assert abs(picture.getpixel((64, 128))[0] - 200) < 6


def test_a_small_picture_is_not_enlarged() -> None:
    content = present.data_uri(Image.new("L", (64, 128))).partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (64, 128)


def test_picker_marks_the_chosen_crop() -> None:
    buttons = Elements(present.picker({7: crop("p7"), 9: crop("p9")}, chosen=9)).all("button")
    assert [(b["data-key"], b["aria-pressed"]) for b in buttons] == [("7", "false"), ("9", "true")]
    assert 'role="alert"' in present.picker({})


def test_frames_follow_the_pictures() -> None:
    def aspect(*aspects: float) -> float:
        text = present.picker(dict(enumerate(crop(aspect=value) for value in aspects)))
        return float(re.search(r"--aspect: ([\d.]+)", text)[1])

    assert aspect(0.5, 0.5, 1.3) == 0.5
    assert aspect(1.333, 1.333, 0.5) == 1.333
    assert aspect(0.01) == present.NARROWEST
    assert aspect(20.0) == present.WIDEST


@pytest.mark.parametrize("verdict", present.MARKS)
def test_an_answer_says_its_verdict_in_colour_mark_and_words(verdict: str) -> None:
    place = present.Place(4, crop("p1", "a2", "infrared"), 0.87654, verdict)
    text = present.ranked("Camera BN", [place], rows=10, first_right=4, average_precision=0.5, known=True)
    elements = Elements(text)
    answer = elements.all("li")[0]
    assert answer["class"] == f"reid-answer reid-is-{verdict.replace(' ', '-')}"
    assert (answer["data-camera"], answer["data-modality"]) == ("a2", "infrared")
    words = f"Place 4, {present.NOTES[verdict]}: person p1 seen by infrared camera a2, score 0.877"
    assert elements.all("img")[0]["alt"] == words
    assert present.MARKS[verdict] in elements.words


def test_marks_and_notes_cover_the_same_verdicts() -> None:
    assert present.MARKS.keys() == present.NOTES.keys()
    assert len(set(present.MARKS.values())) == len(present.MARKS)
    for verdict, mark in present.MARKS.items():
        assert f'reid-is-{verdict.replace(" ", "-")}"' in present.legend()
        assert mark in present.legend()


@pytest.mark.parametrize(
    ("first", "average", "known", "words"),
    [
        (1, 0.5, True, "first right answer: place 1AP 50.0of 1,234 crops"),
        (1020, 0.001, True, "first right answer: place 1,020AP 0.1of 1,234 crops"),
        (None, None, True, "no right answer among theseof 1,234 crops"),
        (None, None, False, "identity unknown: not scoredof 1,234 crops"),
    ],
)
def test_summary(first: int | None, average: float | None, known: bool, words: str) -> None:
    text = present.summary(1234, first, average, known)
    assert Elements(text).words == words
    assert ("reid-is-right" in text) == (first == 1)
    assert ("reid-is-wrong" in text) == (first not in (1, None))


def test_unknown_labels_have_words() -> None:
    nobody = crop("", "", "visible")
    assert present.alt(nobody) == "unknown person seen by visible camera unknown"
    words = Elements(present.query_card(nobody)).words
    assert words == "IdentityunknownCameraunknownModalityvisibleKindpersonSitestreet-a"


def test_a_message_is_one_line_with_a_capital() -> None:
    elements = Elements(present.message("two\nlines  of <b>text</b>"))
    assert elements.words == "Two lines of <b>text</b>"
    assert elements.all("p")[0]["role"] == "alert"


def test_the_table_shows_percent_and_the_better_one_bold() -> None:
    rows = [row("Camera BN", "visible->visible", 0.9, 0.8), row("Plain BN", "visible->visible", 0.5, 0.85)]
    rows += [row("Camera BN", "all", 0.25, 0.25), row("Plain BN", "all", 0.25, 0.25)]
    text = present.score_table(rows)
    lines = [re.sub(r"<(?!/?b>)[^>]+>", "|", line) for line in text.split("<tr>")[2:]]
    cells = [[cell for cell in line.split("|") if cell] for line in lines]
    assert cells[0][:4] == ["visible → visible", "Camera BN", "80.0", "<b>90.0</b>"]
    assert cells[1][:4] == ["visible → visible", "Plain BN", "<b>85.0</b>", "50.0"]
    assert cells[2][2:4] == cells[3][2:4] == ["25.0", "25.0"]
    assert cells[0][-2:] == ["40", "120"]
    assert 'role="alert"' in present.score_table([])


def test_the_figure_draws_the_curves_in_percent() -> None:
    rows = [row("Camera BN", "all", 0.9, 0.8), row("Plain BN", "all", 0.5, 0.4)]
    figure = present.cmc_figure(rows, ranks=10)
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == [
        "Camera BN: rank-1 90.0, mAP 80.0",
        "Plain BN: rank-1 50.0, mAP 40.0",
    ]
    for line, expected in zip(lines, rows, strict=True):
        assert list(line.get_xdata()) == list(range(1, 11))
        np.testing.assert_allclose(line.get_ydata(), 100 * np.asarray(expected.cmc[:10]))
    assert lines[0].get_color() != lines[1].get_color()
    image = Elements(present.figure_html(figure, present.plot_words(rows))).all("img")[0]
    svg = base64.b64decode((image["src"] or "").partition(",")[2]).decode()
    assert "<svg" in svg
    assert (image["alt"] or "").startswith("CMC curves. Camera BN: rank-1 90.0 %")


def test_the_same_figure_is_the_same_text() -> None:
    rows = [row("Camera BN", "all", 0.9, 0.8)]
    assert len({present.figure_html(present.cmc_figure(rows), "x") for _ in range(2)}) == 1
