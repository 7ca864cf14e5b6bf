"""The HTML page shows all scores, escapes all data, and loads nothing from outside.

The checks refuse these wrong variants: a name that is not escaped, an address outside the page, a chart upside down, a
heat map with rows and columns exchanged.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from reid.errors import DataError
from reid.evaluation import Details, Reranking, details_of, evaluate, write_page
from reid.evaluation.reports.charts import HEIGHT, Curve, _ticks, cmc_chart, heat, histogram
from reid.evaluation.reports.html_page import MARK, html_page
from reid.records import Embeddings, Modality, Sample, Split

NASTY = "<script src='//x.example/y'>&\"{"
VOID = {"meta", "link", "img", "br"}


class Elements(HTMLParser):
    """Lists every element with its attributes; an element that is not closed in order is an AssertionError."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def details(tmp_path_factory) -> Details:
    """Six people in front of four cameras; all names, the protocol and a note are nasty."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    modalities = [Modality.VISIBLE, Modality.INFRARED]
    samples, vectors = [], []
    for split, number in ((Split.QUERY, 40), (Split.GALLERY, 80)):
        for i in range(number):
            person, camera = int(random.integers(split is Split.GALLERY, 7)), int(random.integers(4))
            path = folder / f"{split}{i}.png"
            Image.new("RGB", (40, 80), (40 * camera, 30 * person, 90)).save(path)
            samples.append(Sample(path, f"{person}{NASTY}", f"{camera}{NASTY}", modalities[camera % 2], NASTY, split))
            vectors.append(np.eye(7)[person] + 0.5 * random.standard_normal(7))
    rows = np.stack(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = Embeddings(tuple(samples), rows.astype(np.float32), NASTY)
    report = evaluate(embeddings, protocol=NASTY, reranking=Reranking((5, 2, 0.3)), provenance={"neck": NASTY})
    report = replace(report, variant={"trial": NASTY}, notes=(f"not scored {NASTY}",))
    return details_of(report, embeddings, query_examples=2)


@pytest.fixture(scope="module")
def text(details) -> str:
    return html_page([details, Details(details.report)])


def outside(text: str) -> list[str]:
    """List everything in a page that a browser would load or run."""
    found = []
    for tag, attributes in Elements(text).found:
        if tag in ("script", "iframe", "object", "embed", "base", "form"):
            found.append(tag)
        for name, value in attributes.items():
            inside = (value or "").startswith(("data:", "#"))
            if name.startswith("on") or (name in ("src", "href", "srcset", "action", "data") and not inside):
                found.append(f"{name}={value}")
    return found + re.findall(r"url\(|@import|javascript:", text)


def test_nothing_outside_is_loaded(text):
    assert outside(text) == []
    assert "default-src 'none'" in text


def test_a_page_that_loads_or_runs_something_is_noticed(details, text, monkeypatch):
    assert outside(text.replace("<main>", '<main><img src="https://x.example/y.png">')) != []
    assert outside(text.replace("<main>", '<main onclick="x()">')) != []
    monkeypatch.setattr("reid.evaluation.reports.html_page.escape", str)
    with pytest.raises(AssertionError):
        assert outside(html_page([details])) == []


def test_everything_is_there(details, text):
    elements = Elements(text).found
    tags = [tag for tag, _ in elements]
    classes = [attributes.get("class") for _, attributes in elements]
    results = len(details.results)
    assert results == 4
    assert tags.count("section") == 2
    assert classes.count("scores") == 2
    assert classes.count("part") == results
    assert tags.count("svg") == 2 + results  # a CMC of each report, a histogram of each result
    assert classes.count("heat") == 2 * (1 + sum(one.cameras is not None for one in details.results))
    examples = [example for one in details.results for example in (*one.best, *one.worst)]
    assert classes.count("example") == len(examples) == 4 * results
    assert tags.count("img") == sum(1 + len(example.answers) for example in examples)
    flat = " ".join(text.split())
    for words in (
        "protocol &lt;script",
        "not scored",
        "k-reciprocal, k1 5, k2 2, lambda 0.3",
        "version 0.",
        "Equal error",
    ):
        assert words in flat
    assert MARK in text[:2000]


def test_numbers_are_those_of_the_report(details, text):
    metrics, intervals = details.report.results[0].metrics, details.report.results[0].intervals()
    span = intervals["mAP"]
    assert f"{100 * metrics.mAP:.1f} <small>{100 * span.low:.1f}–{100 * span.high:.1f}</small>" in text
    first = details.results[0]
    for point in first.verification.points:
        assert f"<td>{point.threshold:.4f}</td><td>{100 * point.true_match_rate.value:.1f} " in text
    for one in first.identification:
        assert f"<td>{one.threshold:.4f}</td><td>{100 * one.rate.value:.1f} " in text
    assert f"Camera bias {first.bias.factor:.2f}" in text


def test_a_heat_map_has_queries_in_its_rows(details, text):
    """Read back from the page, the first map by camera is the table; its transpose is not."""
    table = details.results[0].cameras
    body = re.findall(r'<table class="heat">.*?</table>', text)[2]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tbody>")[1].split("</tr>")[:-1]]
    shown = np.array([[np.nan if cell == "–" else float(cell) for cell in row] for row in rows])
    np.testing.assert_allclose(shown, 100 * table.mAP, atol=0.051)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(shown, 100 * table.mAP.T, atol=0.051)


def test_cameras_stand_in_the_order_of_their_numbers():
    samples = [Sample(Path(f"q{i}"), "a", f"c{i}", split=Split.QUERY) for i in (1, 2, 10)]
    samples += [Sample(Path(f"g{i}"), "a", f"c{i}") for i in (1, 2, 10)] + [Sample(Path("x"), "b", "c2")]
    embeddings = Embeddings(tuple(samples), np.eye(2, dtype=np.float32)[[0] * 6 + [1]], "f00d")
    page = html_page([details_of(evaluate(embeddings), embeddings)])
    assert re.findall(r'scope="col">(c\d+)<', page)[:3] == ["c1", "c2", "c10"]


SVG = "{http://www.w3.org/2000/svg}"


def svg_of(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", markup)[0])


def points(markup: str, shape: str) -> list[list[tuple[float, float]]]:
    elements = svg_of(markup).iter(SVG + shape)
    return [[tuple(map(float, pair.split(","))) for pair in element.get("points").split()] for element in elements]


def test_a_cmc_rises_to_the_right():
    cmc = np.linspace(0.45, 1, 20)
    chart = cmc_chart(NASTY, [Curve(NASTY, cmc, "#123456"), Curve("flat", np.full(20, 0.4), "#654321", dashed=True)])
    rising, flat = points(chart, "polyline")
    assert len(rising) == 20
    steps = np.diff(rising, axis=0)
    assert (steps[:, 0] > 0).all()
    assert (steps[:, 1] < 0).all()  # down is larger
    assert np.ptp([y for _, y in flat]) == 0
    assert flat[0][1] >= rising[0][1] > rising[-1][1] >= 0
    assert "<script" not in chart


def test_a_cmc_chart_needs_nothing_else():
    """It is an SVG of its own that names every curve inside the drawing, in the colours of the page."""
    long = [Curve(f"a rather long name of curve {i}", np.full(20, 0.5 + i / 20), dashed=i > 2) for i in range(5)]
    chart = cmc_chart("all", long)
    svg = svg_of(chart)
    assert svg.tag == f"{SVG}svg"
    assert outside(chart) == []
    height = float(svg.get("viewBox").split()[3])
    names = [text for text in svg.iter(f"{SVG}text") if (text.text or "").startswith("a rather")]
    assert [text.text for text in names] == [curve.name for curve in long]
    assert all(HEIGHT < float(text.get("y")) < height for text in names)
    assert len({(text.get("x"), text.get("y")) for text in names}) == 5
    lines = list(svg.iter(f"{SVG}polyline"))
    assert len({line.get("stroke") for line in lines}) == 5
    assert ["stroke-dasharray" in line.attrib for line in lines] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("values", [np.ones(1), np.zeros(3), np.full(50, 0.999)])
def test_any_cmc_can_be_drawn(values):
    (line,) = points(cmc_chart("t", [Curve("n", values)]), "polyline")
    assert all(math.isfinite(x) and 0 <= y <= HEIGHT for x, y in line)


def test_a_histogram_has_the_areas_of_its_shares():
    edges, shares = np.linspace(-0.5, 1, 4), np.array([0.25, 0.75, 0.0])
    chart = histogram("t", edges, [(NASTY, shares), ("other", shares[::-1])], [("1 %", 0.5), ("beyond", 2.0)])
    outline, other = (np.array(shape) for shape in points(chart, "polygon"))
    base = outline[0, 1]
    widths, heights = np.diff(outline[1::2, 0]), base - outline[1:-1:2, 1]
    assert heights[:3] / heights[:3].sum() == pytest.approx(shares, abs=0.01)
    assert len(set(np.rint(np.diff(np.unique(outline[:, 0]))))) == 1
    assert other[1, 1] == base
    assert widths.min() >= 0
    assert "1 %" in chart
    assert "beyond" not in chart


def names_of_marks(values):
    """Find the left and the right end of the name of each threshold, and where its line ends below."""
    edges, shares = np.linspace(0, 1, 11), np.full(10, 0.1)
    names = ["10 %", "1 %", "0.1 %", "0.01 %"]
    chart = histogram("t", edges, [("same", shares)], list(zip(names, values, strict=True)))
    svg = svg_of(chart)
    middles = {text.text: float(text.get("x")) for text in svg.iter(f"{SVG}text") if text.text in names}
    assert all(float(text.get("y")) < 14 for text in svg.iter(f"{SVG}text") if text.text in names), "above the plot"
    ends = [(middles[name] - 2.8 * len(name), middles[name] + 2.8 * len(name)) for name in names]  # letters of 11 px
    return ends, [line[-1][0] for line in points(chart, "polyline")]


def are_separate(ends):
    ordered = sorted(ends)
    return all(left[1] < right[0] for left, right in pairwise(ordered))


@given(st.lists(st.integers(0, 1000).map(lambda part: part / 1000), min_size=4, max_size=4))
@example([0.5, 0.5, 0.5, 0.5])
@example([0.0, 0.0, 0.001, 0.002])
@example([1.0, 1.0, 1.0, 0.999])
def test_names_of_thresholds_do_not_lie_over_each_other(values):
    """However close they are, the lines stay at the thresholds, and the names in their order and inside the chart."""
    ends, lines = names_of_marks(values)
    assert are_separate(ends)
    assert min(left for left, _ in ends) >= 46
    assert max(right for _, right in ends) <= 460 - 12
    assert lines == pytest.approx([46 + value * (460 - 46 - 12) for value in values], abs=0.06)
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(ends)[order, 0]) > 0).all()
    assert not are_separate(
        [(46 + 402 * value - 8, 46 + 402 * value + 8) for value in (0.5, 0.51)]
    )  # names at their lines


def test_names_of_thresholds_with_room_stand_above_their_lines():
    ends, lines = names_of_marks([0.2, 0.4, 0.6, 0.8])
    assert [(left + right) / 2 for left, right in ends] == pytest.approx(lines, abs=0.11)


def test_colours_and_ticks():
    assert heat(0.2, 0, 1) != heat(0.8, 0, 1)
    assert heat(0.5, 0.5, 0.5) == heat(1, 0, 1)
    assert _ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    for low, high in ((-0.4, 0.9), (0.93, 1.01), (0, 1e-5), (0.2, 0.2001)):
        ticks = _ticks(low, high)
        assert 3 <= len(ticks) <= 8
        assert low - 1e-9 <= ticks[0] < ticks[-1] <= high + 1e-9


def test_written_or_refused(details, tmp_path):
    path = tmp_path / "pages" / "report.html"
    write_page([details], path)
    assert path.read_text(encoding="utf-8") == html_page([details])
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_mode & 0o077 == 0  # it may show people
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="the page cannot be written there"):
        write_page([details], tmp_path / "file" / "report.html")
