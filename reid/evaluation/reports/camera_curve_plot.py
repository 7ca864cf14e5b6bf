"""Draw the curve of :mod:`reid.evaluation.analysis.camera_curve` as a self-contained SVG file.

The colours follow the light or dark mode of the reader's screen.
"""

from __future__ import annotations

from collections.abc import Sequence

from reid.evaluation.analysis.camera_curve import CurvePoint
from reid.evaluation.reports.charts import COLOURS, HEIGHT, WIDTH, Trace, escape, trace_drawing

MARK = "drawn by reid cameras report"  # by which files.check_output_file recognizes such a file
_TITLE, _LEGEND = 26, 30  # heights in pixels
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#5c6a68}.title{font-size:13px;font-weight:600;fill:#1c2524}"
    ".paper{fill:#fff}.grid{stroke:#dbe3e1}.axis{stroke:#5c6a68}"
    "@media(prefers-color-scheme:dark){text{fill:#9badaa}.title{fill:#e4ecea}.paper{fill:#1a2221}.grid{stroke:#313d3b}}"
)


def curve_svg(points: Sequence[CurvePoint]) -> str:
    """Draw mAP and rank-1 against the crops of a camera and, with the fewest crops, against the prior.

    Dashed lines are the scores before calibration, where ``points`` has them (0 crops).

    Returns:
        The content of an SVG file.
    """
    before = next((point for point in points if not point.crops), None)
    crops = sorted((p for p in points if p.crops and not p.prior), key=lambda point: point.crops)
    fewest = crops[0].crops
    priors = sorted((p for p in points if p.crops == fewest), key=lambda point: point.prior)
    panels = [
        ("Scores against crops of each camera", "crops of each camera", [(float(p.crops), p) for p in crops]),
        (f"Scores against the prior, {fewest} crops", "prior N, images", [(p.prior, p) for p in priors]),
    ]
    values = [value for point in points for value in (point.mAP, point.rank1)]
    margin = max(0.02, 0.08 * (max(values) - min(values)))
    low, high = max(0.0, min(values) - margin), min(1.0, max(values) + margin)
    drawn = []
    for number, (title, below, shown) in enumerate(panels):
        traces = []
        for name, colour in zip(("mAP", "rank1"), COLOURS, strict=False):
            level = None if before is None else float(getattr(before, name))
            traces.append(Trace([x for x, _ in shown], [getattr(p, name) for _, p in shown], colour, level))
        drawn.append(
            f'<g transform="translate({number * WIDTH} {_TITLE})">'
            f'<text class="title" x="{WIDTH / 2}" y="-8" text-anchor="middle">{escape(title)}</text>'
            f"{trace_drawing(traces, (low, high), below, 'score, %')}</g>"
        )
    legend = _legend(before is not None)
    height = _TITLE + HEIGHT + _LEGEND
    return drawing_file(2 * WIDTH, height, "".join(drawn) + legend, "Scores of calibrated cameras", MARK)


def _legend(with_before: bool) -> str:
    found = [("mAP", COLOURS[0], ""), ("rank-1", COLOURS[1], "")]
    found += [(f"{name} before", colour, "5 4") for name, colour, _ in found] if with_before else []
    middle, parts = _TITLE + HEIGHT + _LEGEND / 2, []
    for number, (name, colour, dash) in enumerate(found):
        x = 46 + 120 * number
        parts.append(
            f'<line x1="{x}" x2="{x + 22}" y1="{middle - 4}" y2="{middle - 4}" stroke="{colour}" stroke-width="2"'
            f' stroke-dasharray="{dash}"/><text x="{x + 28}" y="{middle}">{escape(name)}</text>'
        )
    return "".join(parts)


def drawing_file(width: int, height: int, drawn: str, title: str, mark: str) -> str:
    """Make the content of an SVG file that stands by itself.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        drawn: The inside of the SVG element.
        title: What the drawing shows, for readers who cannot see it.
        mark: Text by which a program recognizes its own file.
    """
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{escape(title)}"><!-- {mark} --><style>{_STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height}"/>{drawn}</svg>\n'
    )
