"""Small charts as inline SVG: CMC curves, measured values, two histograms over one axis, and colours of a heat map.

Every word is escaped.  Text and axes have the text colour of the page, so a chart fits a light and a dark page; a page
may style the classes ``axis``, ``grid`` and ``mark``.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.evaluation.ranks import Float64Array

COLOURS = ("#0f8a80", "#c2620c", "#6a63d9", "#c4325c", "#5b8c1a", "#2f7fc1", "#8a6d3b", "#a14fb0")
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 40
MOST_TICKS = 7
MOST_NUMBERS = 14  # below an axis whose values stand at even distances
LETTER = 6.5  # width of a letter of a chart's text, at most
LEGEND_ROW = 18  # height of a row of a legend inside a chart
BEND = 11  # height of the bend that leads from a name to its line


def escape(text: object) -> str:
    """Turn any value into text that is safe in HTML and in an attribute."""
    return html.escape(str(text), quote=True)


@dataclass(frozen=True)
class Curve:
    """A CMC curve: ``values`` (K,) in 0..1 at the ranks 1, 2, ... K.

    ``colour`` is a CSS colour; "" takes the next one of ``COLOURS``.  A ``dashed`` curve is that of a re-ranked result.
    """

    name: str
    values: Float64Array
    colour: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Trace:
    """Measured values ``y`` at ``x`` >= 0, ascending; ``level`` is drawn as a dashed line across."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    level: float | None = None


@dataclass(frozen=True)
class _PlotArea:
    """Maps values between the bounds ``x`` and ``y`` (low, high) to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def points(self, x: Sequence[float] | Float64Array, y: Sequence[float] | Float64Array) -> str:
        pixels = (self.at(float(a), float(b)) for a, b in zip(x, y, strict=True))
        return " ".join(f"{across:.1f},{down:.1f}" for across, down in pixels)


def cmc_chart(title: str, curves: Sequence[Curve]) -> str:
    """Draw the cumulative matching characteristic of several results.

    Args:
        title: What the chart shows, for readers who cannot see it.
        curves: One curve for each result, at least one.

    Returns:
        A self-contained ``<svg>`` element with axes, curves and legend.  It stands in an HTML page, or in a file of its
        own, and takes the text colour of the page.

    Example:
        >>> chart = cmc_chart("person", [Curve("plain", np.array([0.5, 0.75, 1.0]))])
        >>> chart.startswith("<svg"), chart.count("<polyline")
        (True, 1)
    """
    ranks = max(2, *(len(curve.values) for curve in curves))
    low = min(float(curve.values.min()) for curve in curves)
    floor = min(0.9, np.floor(low * 10 + 1e-9) / 10) if low > 0 else 0.0
    area = _PlotArea((1, ranks), (floor, 1))
    ticks = [1, *range(5, ranks + 1, 5)]
    drawn = [_axes(area, ticks, "rank", _ticks(floor, 1), "queries with a right answer, %", 100)]
    keys = []
    for number, curve in enumerate(curves):
        colour = escape(curve.colour or COLOURS[number % len(COLOURS)])
        line = f'fill="none" stroke="{colour}" stroke-width="2"{_dashes(curve.dashed)}'
        drawn.append(f'<polyline points="{area.points(range(1, len(curve.values) + 1), curve.values)}" {line}/>')
        keys.append((curve.name, line))
    legend, height = _legend(keys)
    return _svg(title, "".join(drawn) + legend, HEIGHT + height)


def _dashes(dashed: bool) -> str:
    return ' stroke-dasharray="5 4"' if dashed else ""


def _legend(keys: Sequence[tuple[str, str]]) -> tuple[str, int]:
    """Draw a line with these attributes and a name for each key below the axes; also return the height of all rows."""
    drawn, across, row = [], float(LEFT), 0
    for name, line in keys:
        width = 28 + LETTER * (len(name) + 2)
        if across > LEFT and across + width > WIDTH - RIGHT:
            across, row = float(LEFT), row + 1
        y = HEIGHT + LEGEND_ROW * row + 8
        drawn.append(f'<line x1="{across:.1f}" x2="{across + 22:.1f}" y1="{y}" y2="{y}" {line}/>')
        drawn.append(f'<text x="{across + 28:.1f}" y="{y + 4}">{escape(name)}</text>')
        across += width
    return "".join(drawn), LEGEND_ROW * (row + 1)


def _svg(title: str, drawn: str, height: int) -> str:
    """Wrap a drawing in an SVG element that needs no style sheet."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="11" fill="currentColor">'
        f"{drawn}</svg>"
    )


def trace_drawing(traces: Sequence[Trace], y: tuple[float, float], below: str, beside: str, scale: float = 100) -> str:
    """Draw measured values as the inside of an SVG of WIDTH x HEIGHT.

    Values of x stand at even distances, as doublings do on a logarithmic axis, which cannot show 0.  Of many values,
    only some are written below the axis.

    Args:
        traces: The measured values.
        y: The lowest and the highest value of the vertical axis.
        below: The name of the horizontal axis.
        beside: The name of the vertical axis.
        scale: What the numbers on the vertical axis are multiplied by; 100 shows fractions in percent.
    """
    values = sorted({value for trace in traces for value in trace.x})
    area = _PlotArea((-0.5, len(values) - 0.5), y)
    drawn = [_axes(area, [], below, _ticks(*y), beside, scale)]
    step = -(-len(values) // MOST_NUMBERS)
    for position, value in list(enumerate(values))[::step]:
        across, bottom = area.at(position, y[0])
        drawn.append(f'<text x="{across:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{value:.6g}</text>')
    for trace in traces:
        positions = [float(values.index(value)) for value in trace.x]
        if trace.level is not None:
            ends = area.points(area.x, [trace.level] * 2)
            drawn.append(f'<polyline points="{ends}" fill="none" stroke="{trace.colour}" stroke-dasharray="5 4"/>')
        line = area.points(positions, trace.y)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{trace.colour}" stroke-width="2"/>')
        for spot in line.split()[:: max(1, step)]:
            across_spot, down = spot.split(",")
            drawn.append(f'<circle cx="{across_spot}" cy="{down}" r="3.2" fill="{trace.colour}"/>')
    return "".join(drawn)


def histogram(
    title: str,
    edges: Float64Array,
    shares: Sequence[tuple[str, Float64Array]],
    marks: Sequence[tuple[str, float]] = (),
) -> str:
    """Draw two or more distributions over one axis, as a ``<figure>`` with a legend.

    Args:
        title: The caption.
        edges: Edges of the bins, (B + 1,).
        shares: Names, and the shares (B,) of each name's own total in each bin.
        marks: Names and values on the axis, such as thresholds; the names stand side by side above.
    """
    top = max(float(values.max()) for _, values in shares) * 1.12  # room for the bends from the names to their lines
    area = _PlotArea((float(edges[0]), float(edges[-1])), (0, top))
    drawn = []
    for colour, (_, values) in zip(COLOURS, shares, strict=False):
        x = np.concatenate([edges[:1], np.repeat(edges[1:-1], 2), edges[-1:]])
        outline = area.points([edges[0], *x, edges[-1]], [0, *np.repeat(values, 2), 0])
        drawn.append(f'<polygon points="{outline}" fill="{colour}" fill-opacity=".28" stroke="{colour}"/>')
    drawn.append(_draw_marks(area, [mark for mark in marks if area.x[0] <= mark[1] <= area.x[1]]))
    axes = _axes(area, _ticks(*area.x), "score", _ticks(0, top), "pairs, %", 100)
    legend = "".join(_key(name, colour) for colour, (name, _) in zip(COLOURS, shares, strict=False))
    return _figure(title, axes + "".join(drawn), legend)


def _draw_marks(area: _PlotArea, marks: Sequence[tuple[str, float]]) -> str:
    """Draw a line at each value, with a bend at its top that leads to its name."""
    names, lines = [name for name, _ in marks], [area.at(value, 0)[0] for _, value in marks]
    middles = _spread_texts(lines, [LETTER * (len(name) + 1) for name in names])
    drawn = []
    for name, line, middle in zip(names, lines, middles, strict=True):
        corners = f"{middle:.1f},{TOP} {line:.1f},{TOP + BEND} {line:.1f},{HEIGHT - BOTTOM}"
        drawn.append(
            f'<polyline class="mark" points="{corners}" fill="none" stroke="currentColor" stroke-dasharray="2 3"/>'
            f'<text x="{middle:.1f}" y="{TOP - 4}" text-anchor="middle">{escape(name)}</text>'
        )
    return "".join(drawn)


def _spread_texts(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Place the middles of texts of these ``widths`` near the ``wanted`` ones, so that no text touches another.

    If the texts fit at all, they stay between the ends of the axis.
    """
    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    half = np.array(widths)[order] / 2
    # Relative to where each would stand if all touched, the middles of texts that do not touch ascend.
    touching = np.concatenate([[0.0], np.cumsum(half[1:] + half[:-1])])
    middles = np.array(wanted)[order] - touching
    middles = (np.maximum.accumulate(middles) + np.minimum.accumulate(middles[::-1])[::-1]) / 2
    middles = np.maximum(np.minimum(middles, WIDTH - RIGHT - half[-1] - touching[-1]), LEFT + half[0]) + touching
    found: list[float] = middles[np.argsort(order)].tolist()
    return found


def heat(value: float, low: float, high: float) -> str:
    """Return the style of a heat map's cell: pale at ``low``, full colour at ``high``, with text in contrast to it."""
    share = float(np.clip((value - low) / (high - low), 0, 1)) if high > low else 1.0
    pale, full = np.array([230, 244, 241]), np.array([12, 94, 87])
    red, green, blue = (int(part) for part in np.rint(pale + share * (full - pale)))
    return f"background:rgb({red},{green},{blue});color:{'#fff' if share > 0.78 else '#000'}"


def _key(name: str, colour: str) -> str:
    return f'<li><span class="key" style="border-top:3px solid {colour}"></span>{escape(name)}</li>'


def _figure(title: str, drawn: str, legend: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{_svg(title, drawn, HEIGHT)}'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _axes(area: _PlotArea, across: Sequence[float], below: str, up: Sequence[float], beside: str, scale: float) -> str:
    """Draw grid lines, numbers (those of the vertical axis times ``scale``) and the names of the axes."""
    bottom, drawn = HEIGHT - BOTTOM, []
    for value in up:
        _, y = area.at(area.x[0], value)
        drawn.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor"'
            f' stroke-opacity=".2"/>'
            f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{scale * value:.6g}</text>'
        )
    for value in across:
        x, _ = area.at(value, area.y[0])
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:.6g}</text>')
    middle = (TOP + bottom) / 2
    return (
        "".join(drawn)
        + f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="currentColor"/>'
        + f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(below)}</text>'
        + f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(beside)}</text>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Choose round numbers from ``low`` to ``high``, about ``MOST_TICKS`` at most."""
    rough = (high - low) / MOST_TICKS
    magnitude = 10.0 ** np.floor(np.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= rough * (1 - 1e-9))
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(float(number * step), 12) + 0.0 for number in range(first, last + 1)]
