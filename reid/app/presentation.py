"""What a visitor sees, as HTML and figures.  Pure: text and pictures in, text out.

Knows nothing of networks, galleries or the page framework.  Pictures travel inside the page (``data:``
addresses), so no file of a data set ever gets an address of its own.  Every text is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

THUMBNAIL = (192, 256)  # pixels; crops are mostly smaller and stay as they are
CMC_RANKS = 20
CAMERAS_A_ROW = 6
NARROWEST, WIDEST = 0.4, 1.8  # frames; pictures beyond are shown whole, with margins
MARKS = {"right": "✓", "wrong": "✗", "same camera": "↺", "unknown": "?"}
NOTES = {
    "right": "right",
    "wrong": "wrong",
    "same camera": "right, but seen by the query's own camera: not counted",
    "unknown": "identity unknown",
}
COLOURS = ("#0f766e", "#b45309", "#4338ca", "#be123c")
_BRACES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


@dataclass(frozen=True)
class Crop:
    """A picture and what is known of it; ``uri`` from :func:`data_uri`, ``aspect`` is width / height."""

    uri: str
    aspect: float
    identity: str
    camera: str
    modality: str
    category: str
    site: str = ""


@dataclass(frozen=True)
class Place:
    """One place of a ranking: ``verdict`` is a key of ``MARKS``, ``score`` a similarity -1..1."""

    rank: int
    crop: Crop
    score: float
    verdict: str


@dataclass(frozen=True)
class Row:
    """A line of the score table; scores are fractions 0..1, ``cmc[k - 1]`` is rank-k."""

    title: str
    direction: str
    mean_average_precision: float
    cmc: Sequence[float]
    queries: int
    gallery: int


def escape(text: str) -> str:
    """Text for HTML that a page's own templates leave alone too (braces, dollars, backticks)."""
    return html.escape(text, quote=True).translate(_BRACES)


def data_uri(image: Image.Image) -> str:
    """``data:image/jpeg;base64,...`` of a picture, not larger than a thumbnail."""
    small = image.convert("RGB")
    small.thumbnail(THUMBNAIL)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def alt(crop: Crop) -> str:
    """What the picture shows, in words, not escaped."""
    who = f"{crop.category} {crop.identity}" if crop.identity else f"unknown {crop.category}"
    return f"{who} seen by {crop.modality} camera {crop.camera or 'unknown'}"


def picker(crops: Mapping[int, Crop], chosen: int | None = None) -> str:
    """Buttons to choose a query from; each carries its key."""
    if not crops:
        return message("No query fits this selection; choose another site, kind or camera.")
    buttons = "".join(_button(key, crop, chosen) for key, crop in crops.items())
    return f'<div class="reid-picker" role="group" aria-label="Query crops" {_shape(crops.values())}>{buttons}</div>'


def _button(key: int, crop: Crop, chosen: int | None) -> str:
    pressed = "true" if key == chosen else "false"
    return (
        f'<button type="button" class="reid-pick" data-key="{key}" aria-pressed="{pressed}"'
        f' title="{escape(crop.identity)}"><img src="{crop.uri}" alt="{escape(alt(crop))}">{_camera_tag(crop)}</button>'
    )


def _shape(crops: Iterable[Crop], columns: int = 1) -> str:
    """The style of a grid whose frames fit most of ``crops``: the median width / height."""
    aspects = sorted(crop.aspect for crop in crops) or [0.5]
    aspect = min(max(aspects[len(aspects) // 2], NARROWEST), WIDEST)
    return f'style="--aspect: {aspect:.3f}; --count: {columns}"'


def _camera_tag(crop: Crop) -> str:
    return f'<span class="reid-tag reid-{escape(crop.modality)}">{escape(crop.camera or "?")}</span>'


def query_card(crop: Crop) -> str:
    """The query, large, with what is known of it."""
    facts = {
        "Identity": crop.identity or "unknown",
        "Camera": crop.camera or "unknown",
        "Modality": crop.modality,
        "Kind": crop.category,
        "Site": crop.site,
    }
    lines = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value)
    return f'<div class="reid-query"><img src="{crop.uri}" alt="Query: {escape(alt(crop))}"><dl>{lines}</dl></div>'


def ranked(
    title: str,
    places: Sequence[Place],
    *,
    rows: int,
    first_right: int | None,
    average_precision: float | None,
    known: bool,
) -> str:
    """One ranking under its title; ``known`` says whether the query's identity is known."""
    return (
        f'<section class="reid-ranked" aria-label="{escape(title)}"><header><h3>{escape(title)}</h3>'
        f"{summary(rows, first_right, average_precision, known)}</header>"
        f'<ol class="reid-answers" {_shape(place.crop for place in places)}>{"".join(map(_answer, places))}</ol>'
        "</section>"
    )


def summary(rows: int, first_right: int | None, average_precision: float | None, known: bool) -> str:
    """Chips: where the first right answer stands, and the average precision of this query."""
    counted = f'<span class="reid-chip">of {rows:,} crops</span>'
    if not known:
        return f'<span class="reid-chip">identity unknown: not scored</span>{counted}'
    if first_right is None or average_precision is None:
        return f'<span class="reid-chip">no right answer among these</span>{counted}'
    state = "right" if first_right == 1 else "wrong"
    return (
        f'<span class="reid-chip reid-is-{state}">first right answer: <b>place {first_right:,}</b></span>'
        f'<span class="reid-chip">AP <b>{100 * average_precision:.1f}</b></span>{counted}'
    )


def _answer(place: Place) -> str:
    crop = place.crop
    words = f"Place {place.rank}, {NOTES[place.verdict]}: {alt(crop)}, score {place.score:.3f}"
    state = place.verdict.replace(" ", "-")
    return (
        f'<li class="reid-answer reid-is-{state}" data-camera="{escape(crop.camera)}"'
        f' data-modality="{escape(crop.modality)}" title="{escape(words)}">'
        f'<div class="reid-frame"><img src="{crop.uri}" alt="{escape(words)}">'
        f'<span class="reid-rank">{place.rank}</span>'
        f'<span class="reid-mark" aria-hidden="true">{MARKS[place.verdict]}</span>{_camera_tag(crop)}</div>'
        f'<div class="reid-caption"><b>{place.score:.3f}</b><span>{escape(crop.identity or "unknown")}</span></div>'
        "</li>"
    )


def message(text: str, alarm: bool = True) -> str:
    """One clear line."""
    role = "alert" if alarm else "status"
    sentence = text[:1].upper() + text[1:]
    return f'<p class="reid-message" role="{role}">{escape(" ".join(sentence.split()))}</p>'


def legend() -> str:
    """What the borders mean."""
    items = {
        "right": "right",
        "wrong": "wrong",
        "same-camera": "same camera, not counted",
        "unknown": "identity unknown",
    }
    marks = {name.replace(" ", "-"): mark for name, mark in MARKS.items()}
    keys = "".join(
        f'<li class="reid-is-{state}"><span class="reid-key" aria-hidden="true">{marks[state]}</span>{text}</li>'
        for state, text in items.items()
    )
    return f'<ul class="reid-legend" aria-label="Borders">{keys}</ul>'


def score_table(rows: Sequence[Row]) -> str:
    """Scores in percent; the best of each direction in bold."""
    if not rows:
        return message("No scores for this selection.")
    heads = ("Direction", "Normalization", "mAP", "rank-1", "rank-5", "rank-10", "queries", "gallery")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(_line(row, [other for other in rows if other.direction == row.direction]) for row in rows)
    return f'<div class="reid-table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _line(row: Row, rivals: Sequence[Row]) -> str:
    cells = []
    for k, score in enumerate(_scores(row)):
        best = any(_scores(rival)[k] < score for rival in rivals) and not any(_scores(r)[k] > score for r in rivals)
        text = f"{100 * score:.1f}"
        cells.append(f"<td>{f'<b>{text}</b>' if best else text}</td>")
    names = f'<th scope="row">{escape(arrow(row.direction))}</th><td>{escape(row.title)}</td>'
    return f"<tr>{names}{''.join(cells)}<td>{row.queries:,}</td><td>{row.gallery:,}</td></tr>"


def _scores(row: Row) -> tuple[float, float, float, float]:
    return row.mean_average_precision, row.cmc[0], row.cmc[4], row.cmc[9]


def arrow(direction: str) -> str:
    """A direction for people: "visible->infrared" as "visible → infrared"."""
    return direction.replace("->", " → ")


def cmc_figure(rows: Sequence[Row], ranks: int = CMC_RANKS) -> Figure:
    """CMC curves of ``rows`` in percent, one line each."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for row, colour in zip(rows, COLOURS, strict=False):
        curve = [100 * value for value in row.cmc[:ranks]]
        label = f"{row.title}: rank-1 {curve[0]:.1f}, mAP {100 * row.mean_average_precision:.1f}"
        axes.plot(range(1, len(curve) + 1), curve, marker="o", markersize=4, linewidth=2, color=colour, label=label)
    axes.set(xlabel="rank", ylabel="queries with a right answer (%)", ylim=(0, 102), xlim=(0.5, ranks + 0.5))
    axes.set_xticks([1, *range(5, ranks + 1, 5)])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        figure.legend(frameon=False, loc="outside upper left", fontsize=9)
    return figure


def titled(title: str, content: str) -> str:
    """A card with a title; ``content`` is HTML, ``title`` is not."""
    return f'<section class="reid-card"><h3 class="reid-title">{escape(title)}</h3>{content}</section>'


def figure_html(figure: Figure, words: str) -> str:
    """A figure inside the page, sharp at any size; ``words`` describe it to those who cannot see it."""
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "reid"}):  # the same figure is the same text
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    address = "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode()
    return f'<img class="reid-plot" src="{address}" alt="{escape(words)}">'


def plot_words(rows: Sequence[Row]) -> str:
    """The figure in words."""
    parts = [f"{row.title}: rank-1 {100 * row.cmc[0]:.1f} %, rank-10 {100 * row.cmc[9]:.1f} %" for row in rows]
    return "CMC curves. " + "; ".join(parts) if rows else "No curves"


def camera_wall(title: str, crops: Sequence[Crop]) -> str:
    """One crop for each camera of a site."""
    cards = "".join(
        f'<li class="reid-camera"><img src="{crop.uri}" alt="{escape(alt(crop))}">'
        f'<b>{escape(crop.camera or "unknown")}</b><span class="reid-tag reid-{escape(crop.modality)}">'
        f"{escape(crop.modality)}</span></li>"
        for crop in crops
    )
    shape = _shape(crops, min(len(crops), CAMERAS_A_ROW))
    return f'<section class="reid-wall"><h3>{escape(title)}</h3><ul {shape}>{cards}</ul></section>'


def hint(text: str) -> str:
    """A line of small print."""
    return f'<p class="reid-hint">{escape(text)}</p>'
