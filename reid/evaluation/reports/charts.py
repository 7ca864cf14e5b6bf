"""Small charts as inline SVG: lines over ranks, two histograms over one axis, and the colours of a heat map.

Numbers and words in, markup out; every word is escaped.  Colours of text and axes are the page's
(classes ``axis``, ``grid``), so that a chart fits a light and a dark page.  Nothing is measured here.
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
LETTER = 6.5  # width of a letter of a chart's text, at most
BEND = 11  # height of what leads from a name to the line that it belongs to


def escape(text: object) -> str:
    """Any value as text that is safe in HTML and in an attribute."""
    return html.escape(str(text), quote=True)


@dataclass(frozen=True)
class Line:
    """``values`` (K,) in 0..1 at 1, 2, ... K; dashed lines are second thoughts about a plain one."""

    name: str
    values: Float64Array
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Trace:
    """Measured values ``y`` in 0..1 at ``x`` >= 0, ascending; ``level`` is drawn as a dashed line across."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    level: float | None = None


@dataclass(frozen=True)
class _PlotArea:
    """Maps values in ``x`` and ``y`` (low, high) to the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def points(self, x: Sequence[float] | Float64Array, y: Sequence[float] | Float64Array) -> str:
        places = (self.at(float(a), float(b)) for a, b in zip(x, y, strict=True))
        return " ".join(f"{across:.1f},{down:.1f}" for across, down in places)


def cmc_chart(title: str, lines: Sequence[Line]) -> str:
    """Cumulative match characteristic of several results: the share of queries answered by rank k."""
    ranks = max(2, *(len(line.values) for line in lines))
    low = min(float(line.values.min()) for line in lines)
    floor = min(0.9, np.floor(low * 10 + 1e-9) / 10) if low > 0 else 0.0
    frame = _PlotArea((1, ranks), (floor, 1))
    drawn = []
    for line in lines:
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        points = frame.points(range(1, len(line.values) + 1), line.values)
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>')
    axes = _axes(frame, [1, *range(5, ranks + 1, 5)], "rank", _ticks(floor, 1), "queries answered, %", 100)
    legend = "".join(_key(line.name, line.colour, line.dashed) for line in lines)
    return _figure(title, axes + "".join(drawn), legend)


def trace_drawing(traces: Sequence[Trace], y: tuple[float, float], below: str, beside: str) -> str:
    """The inside of an SVG of WIDTH x HEIGHT: ``traces`` over one axis of x, a step for each of its values; ``y`` (low,
    high) is what the vertical axis shows.

    Values of x stand at even distances, as doublings do on a logarithmic axis, where 0 has no place.
    """
    values = sorted({value for trace in traces for value in trace.x})
    frame = _PlotArea((-0.5, len(values) - 0.5), y)
    drawn = [_axes(frame, [], below, _ticks(*y), beside, 100)]
    for place, value in enumerate(values):
        across, bottom = frame.at(place, y[0])
        drawn.append(f'<text x="{across:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{value:.6g}</text>')
    for trace in traces:
        places = [float(values.index(value)) for value in trace.x]
        if trace.level is not None:
            ends = frame.points(frame.x, [trace.level] * 2)
            drawn.append(f'<polyline points="{ends}" fill="none" stroke="{trace.colour}" stroke-dasharray="5 4"/>')
        line = frame.points(places, trace.y)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{trace.colour}" stroke-width="2"/>')
        for spot in line.split():
            across_spot, down = spot.split(",")
            drawn.append(f'<circle cx="{across_spot}" cy="{down}" r="3.2" fill="{trace.colour}"/>')
    return "".join(drawn)


def histogram(
    title: str,
    edges: Float64Array,
    shares: Sequence[tuple[str, Float64Array]],
    marks: Sequence[tuple[str, float]] = (),
) -> str:
    """Outlines of ``shares`` (B,) of each name's own total over bins between ``edges`` (B + 1,).

    ``marks`` are places on the axis, such as thresholds, with their names, which stand side by side above.
    """
    top = max(float(values.max()) for _, values in shares) * 1.12  # room for what leads from a name to its place
    frame = _PlotArea((float(edges[0]), float(edges[-1])), (0, top))
    drawn = []
    for colour, (_, values) in zip(COLOURS, shares, strict=False):
        x = np.concatenate([edges[:1], np.repeat(edges[1:-1], 2), edges[-1:]])
        outline = frame.points([edges[0], *x, edges[-1]], [0, *np.repeat(values, 2), 0])
        drawn.append(f'<polygon points="{outline}" fill="{colour}" fill-opacity=".28" stroke="{colour}"/>')
    drawn.append(_marks(frame, [mark for mark in marks if frame.x[0] <= mark[1] <= frame.x[1]]))
    axes = _axes(frame, _ticks(*frame.x), "score", _ticks(0, top), "pairs, %", 100)
    legend = "".join(_key(name, colour) for colour, (name, _) in zip(COLOURS, shares, strict=False))
    return _figure(title, axes + "".join(drawn), legend)


def _marks(frame: _PlotArea, marks: Sequence[tuple[str, float]]) -> str:
    """A line at each place, with a bend at its top that leads to its name."""
    names, places = [name for name, _ in marks], [frame.at(place, 0)[0] for _, place in marks]
    drawn = []
    for name, place, spot in zip(
        names, places, _apart(places, [LETTER * (len(name) + 1) for name in names]), strict=True
    ):
        drawn.append(
            f'<polyline class="mark" points="{spot:.1f},{TOP} {place:.1f},{TOP + BEND} {place:.1f},{HEIGHT - BOTTOM}"/>'
            f'<text x="{spot:.1f}" y="{TOP - 4}" text-anchor="middle">{escape(name)}</text>'
        )
    return "".join(drawn)


def _apart(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Middles of texts of these ``widths``, as near to the ``wanted`` ones as possible without one touching another.

    If they fit at all they stay between the ends of the axis.
    """
    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    half = np.array(widths)[order] / 2
    # Seen from where each would stand if all touched, texts that do not touch are in ascending order.
    touching = np.concatenate([[0.0], np.cumsum(half[1:] + half[:-1])])
    places = np.array(wanted)[order] - touching
    places = (np.maximum.accumulate(places) + np.minimum.accumulate(places[::-1])[::-1]) / 2
    places = np.maximum(np.minimum(places, WIDTH - RIGHT - half[-1] - touching[-1]), LEFT + half[0]) + touching
    spots: list[float] = places[np.argsort(order)].tolist()
    return spots


def heat(value: float, low: float, high: float) -> str:
    """Style of a heat map's cell: from pale (``low``) to full colour (``high``), text in contrast to it."""
    share = float(np.clip((value - low) / (high - low), 0, 1)) if high > low else 1.0
    pale, full = np.array([230, 244, 241]), np.array([12, 94, 87])
    red, green, blue = (int(part) for part in np.rint(pale + share * (full - pale)))
    return f"background:rgb({red},{green},{blue});color:{'#fff' if share > 0.5 else '#10302d'}"


def _key(name: str, colour: str, dashed: bool = False) -> str:
    kind = "dashed" if dashed else "solid"
    return f'<li><span class="key" style="border-top:3px {kind} {colour}"></span>{escape(name)}</li>'


def _figure(title: str, drawn: str, legend: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{drawn}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _axes(frame: _PlotArea, across: Sequence[float], below: str, up: Sequence[float], beside: str, scale: float) -> str:
    """Grid lines and numbers, those of the vertical axis multiplied by ``scale``, and the axes' names."""
    bottom, drawn = HEIGHT - BOTTOM, []
    for value in up:
        _, y = frame.at(frame.x[0], value)
        drawn.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{scale * value:.6g}</text>'
        )
    for value in across:
        x, _ = frame.at(value, frame.y[0])
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:.6g}</text>')
    middle = (TOP + bottom) / 2
    return (
        "".join(drawn)
        + f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
        + f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(below)}</text>'
        + f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(beside)}</text>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``MOST_TICKS``."""
    rough = (high - low) / MOST_TICKS
    magnitude = 10.0 ** np.floor(np.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= rough * (1 - 1e-9))
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(float(number * step), 12) + 0.0 for number in range(first, last + 1)]
