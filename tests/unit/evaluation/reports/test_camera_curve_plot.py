"""The drawing of a curve shows the values of its points.

The check refuses these wrong variants: points with a prior drawn among those without; scores upside down; a level
that is not the one before calibration; the two scores swapped.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from reid.evaluation.analysis.camera_curve import CurvePoint
from reid.evaluation.reports.camera_curve_plot import MARK, curve_svg
from reid.evaluation.reports.charts import COLOURS, WIDTH

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [
    CurvePoint(0, 0.0, 0.40, 0.20),
    CurvePoint(8, 0.0, 0.30, 0.10),
    CurvePoint(16, 0.0, 0.45, 0.30),
    CurvePoint(60, 0.0, 0.60, 0.50),
    CurvePoint(8, 8.0, 0.42, 0.24),
    CurvePoint(8, 32.0, 0.41, 0.22),
]


def drawn(points: list[CurvePoint]) -> dict[tuple[int, str, bool], list[tuple[float, float]]]:
    """Corners of every line by panel, colour and whether it is dashed."""
    root = ElementTree.fromstring(curve_svg(points))
    found = {}
    for panel, group in enumerate(root.findall(f"{SVG}g")):
        for line in group.findall(f"{SVG}polyline"):
            corners = [tuple(map(float, corner.split(","))) for corner in line.attrib["points"].split()]
            found[panel, line.attrib["stroke"], "stroke-dasharray" in line.attrib] = corners
    return found


def check(points: list[CurvePoint], expected: list[CurvePoint]) -> None:
    """Heights of all corners lie on one falling line over the values, and the lines have the expected lengths."""
    lines = drawn(points)
    panels = [
        [p for p in expected if p.crops and not p.prior],
        [p for p in expected if p.crops == 8],
    ]
    heights = []
    for panel, points_of_panel in enumerate(panels):
        for name, colour in zip(("mAP", "rank1"), COLOURS, strict=False):
            corners = lines[panel, colour, False]
            if len(corners) != len(points_of_panel):
                raise AssertionError(f"expected {len(points_of_panel)} corners, got {len(corners)}")
            heights += [(getattr(p, name), y) for p, (_, y) in zip(points_of_panel, corners, strict=True)]
            if any(a[0] >= b[0] for a, b in pairwise(corners)) or corners[-1][0] > WIDTH:
                raise AssertionError("not from left to right inside the panel")
            heights += [(getattr(expected[0], name), y) for _, y in lines[panel, colour, True]]
    (low, bottom), (high, top) = min(heights), max(heights)
    for value, y in heights:
        if y != pytest.approx(bottom + (value - low) / (high - low) * (top - bottom), abs=0.2) or top >= bottom:
            raise AssertionError(f"{value} is drawn at {y}")


def test_the_drawing_shows_the_points() -> None:
    check(POINTS, POINTS)
    check(POINTS[::-1], POINTS)  # in any order
    text = curve_svg(POINTS)
    assert MARK in text
    words = [element.text for element in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert words.count("8") == 2  # crops in one panel, a prior in the other
    assert {"16", "60", "0", "32", "Scores against the prior, 8 crops", "rank-1 before"} <= set(words)


@pytest.mark.parametrize(
    "wrong",
    [
        [replace(p, prior=0.0) for p in POINTS],
        [replace(p, mAP=p.rank1, rank1=p.mAP) for p in POINTS],
        [replace(p, mAP=1 - p.mAP, rank1=1 - p.rank1) for p in POINTS],
        [replace(POINTS[0], mAP=0.5), *POINTS[1:]],
    ],
)
def test_wrong_drawings_are_noticed(wrong: list[CurvePoint]) -> None:
    with pytest.raises(AssertionError):
        check(wrong, POINTS)


def test_without_the_score_before() -> None:
    assert not any(dashed for _, _, dashed in drawn(POINTS[1:]))
    assert "before" not in curve_svg(POINTS[1:])
