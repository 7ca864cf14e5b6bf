"""The HTML that a visitor sees: crops, rankings, score tables and curves.

Images travel inside the page as ``data:`` addresses, so that no file of a data set has an address of its own. Every
text is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from reid.app.statistics import GalleryCounts
from reid.evaluation.reports.charts import COLOURS, Curve, cmc_chart

THUMBNAIL = (192, 256)  # pixels; most crops are smaller and keep their size
CMC_RANKS = 20
CAMERAS_PER_ROW = 6
NARROWEST, WIDEST = 0.4, 1.8  # width / height of a frame; crops beyond these are shown whole, with margins
MARKS = {"right": "✓", "wrong": "✗", "same camera": "↺", "unknown": "?"}
NOTES = {
    "right": "right",
    "wrong": "wrong",
    "same camera": "right, but by the query's own camera: not counted",
    "unknown": "identity unknown",
}
# The page framework fills in templates, so characters that start one are replaced in every text.
_TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


@dataclass(frozen=True)
class Crop:
    """A crop as the page shows it.

    Args:
        uri: The image, from :func:`data_uri`.
        aspect: Width / height.
        identity: The identity; "" when unknown.
        camera: The camera; "" when unknown.
        modality: "visible" or "infrared".
        category: What the crop shows.
        site: The name of the site.
    """

    uri: str
    aspect: float
    identity: str
    camera: str
    modality: str
    category: str
    site: str = ""


@dataclass(frozen=True)
class RankedCrop:
    """One answer of a ranking: ``verdict`` is a key of ``MARKS``, ``score`` a similarity in -1..1."""

    rank: int
    crop: Crop
    score: float
    verdict: str


@dataclass(frozen=True)
class ScoreRow:
    """A line of the score table. Scores are fractions in 0..1; ``cmc[k - 1]`` is rank-k, up to rank-10 at least."""

    title: str
    direction: str
    mean_average_precision: float
    cmc: Sequence[float]
    queries: int
    gallery: int


def escape(text: str) -> str:
    """Escape a text for HTML and for the templates of the page framework.

    Example:
        >>> escape("<b>{x}")
        '&lt;b&gt;&#123;x&#125;'
    """
    return html.escape(text, quote=True).translate(_TEMPLATE_CHARACTERS)


def data_uri(image: Image.Image) -> str:
    """Return an image as ``data:image/jpeg;base64,...``, not larger than ``THUMBNAIL``."""
    small = image.convert("RGB")
    small.thumbnail(THUMBNAIL)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def describe(crop: Crop) -> str:
    """Describe in words what a crop shows; the text is not escaped.

    Example:
        >>> describe(Crop("data:,", 0.5, "anna", "door", "visible", "person"))
        'person anna seen by visible camera door'
    """
    who = f"{crop.category} {crop.identity}" if crop.identity else f"unknown {crop.category}"
    return f"{who} seen by {crop.modality} camera {crop.camera or 'unknown'}"


def heading_html(counts: GalleryCounts) -> str:
    """Return the heading of the page: its name, and what the gallery holds."""
    crops = f"<b>{counts.crops:,}</b> crop{'s' * (counts.crops != 1)}"
    parts = [crops]
    if counts.identities:
        parts.append(f"of <b>{counts.identities:,}</b> identities")
        parts += [f"({counts.unlabelled:,} crops unlabelled)"] * (counts.unlabelled > 0)
    else:
        parts.append("of unknown identity")
    if counts.cameras:
        parts.append(f"in <b>{counts.cameras}</b> camera{'s' * (counts.cameras != 1)}")
    else:
        parts.append("of unknown cameras")
    return (
        f'<header class="reid-heading"><h1>reid</h1><p>Gallery <b>{escape(counts.name)}</b>:'
        f" {' '.join(parts)}. Choose a crop or upload one, and find it again in other cameras.</p></header>"
    )


def picker_html(crops: Mapping[int, Crop], chosen: int | None = None) -> str:
    """Return buttons to choose a query from; each carries the key of its crop, and ``chosen`` is pressed."""
    if not crops:
        return message_html("No query fits this selection; choose another site, category or camera.")
    buttons = "".join(_button(key, crop, chosen) for key, crop in crops.items())
    style = _grid_style(crops.values())
    return f'<div class="reid-picker" role="group" aria-label="Query crops" {style}>{buttons}</div>'


def _button(key: int, crop: Crop, chosen: int | None) -> str:
    pressed = "true" if key == chosen else "false"
    return (
        f'<button type="button" class="reid-pick" data-key="{key}" aria-pressed="{pressed}"'
        f' title="{escape(crop.identity)}"><img src="{crop.uri}" alt="{escape(describe(crop))}">'
        f"{_camera_tag(crop)}</button>"
    )


def _grid_style(crops: Iterable[Crop], columns: int = 1) -> str:
    """Return the style of a grid whose frames have the median width / height of ``crops``."""
    aspects = sorted(crop.aspect for crop in crops) or [0.5]
    aspect = min(max(aspects[len(aspects) // 2], NARROWEST), WIDEST)
    return f'style="--aspect: {aspect:.3f}; --count: {columns}"'


def _camera_tag(crop: Crop) -> str:
    return f'<span class="reid-tag reid-{escape(crop.modality)}">{escape(crop.camera or "?")}</span>'


def query_html(crop: Crop) -> str:
    """Return the query in large, with its labels."""
    facts = {
        "Identity": crop.identity or "unknown",
        "Camera": crop.camera or "unknown",
        "Modality": crop.modality,
        "Category": crop.category,
        "Site": crop.site,
    }
    lines = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value)
    return f'<div class="reid-query"><img src="{crop.uri}" alt="Query: {escape(describe(crop))}"><dl>{lines}</dl></div>'


def ranking_html(
    title: str,
    ranking: Sequence[RankedCrop],
    *,
    rows: int,
    first_right: int | None,
    average_precision: float | None,
    known: bool,
) -> str:
    """Return one ranking under its title.

    Args:
        title: The title.
        ranking: The shown answers, best first.
        rows: The number of gallery rows that may answer.
        first_right: The rank of the first right answer among these rows; None without any.
        average_precision: The average precision in 0..1; None without a right answer.
        known: Whether the identity of the query is known.

    Returns:
        HTML.
    """
    return (
        f'<section class="reid-ranked" aria-label="{escape(title)}"><header><h3>{escape(title)}</h3>'
        f"{summary_html(rows, first_right, average_precision, known)}</header>"
        f'<ol class="reid-answers" {_grid_style(answer.crop for answer in ranking)}>'
        f"{''.join(map(_answer, ranking))}</ol>"
        "</section>"
    )


def summary_html(rows: int, first_right: int | None, average_precision: float | None, known: bool) -> str:
    """Return the rank of the first right answer and the average precision, as :func:`ranking_html` shows them."""
    counted = f'<span class="reid-chip">of {rows:,} crops</span>'
    if not known:
        return f'<span class="reid-chip">identity unknown: not scored</span>{counted}'
    if first_right is None or average_precision is None:
        return f'<span class="reid-chip">no right answer among these</span>{counted}'
    state = "right" if first_right == 1 else "wrong"
    return (
        f'<span class="reid-chip reid-is-{state}">first right answer: <b>rank {first_right:,}</b></span>'
        f'<span class="reid-chip">AP <b>{100 * average_precision:.1f}</b></span>{counted}'
    )


def _answer(answer: RankedCrop) -> str:
    crop = answer.crop
    words = f"Rank {answer.rank}, {NOTES[answer.verdict]}: {describe(crop)}, score {answer.score:.3f}"
    state = answer.verdict.replace(" ", "-")
    return (
        f'<li class="reid-answer reid-is-{state}" data-camera="{escape(crop.camera)}"'
        f' data-modality="{escape(crop.modality)}" title="{escape(words)}">'
        f'<div class="reid-frame"><img src="{crop.uri}" alt="{escape(words)}">'
        f'<span class="reid-rank">{answer.rank}</span>'
        f'<span class="reid-mark" aria-hidden="true">{MARKS[answer.verdict]}</span>{_camera_tag(crop)}</div>'
        f'<div class="reid-caption"><b>{answer.score:.3f}</b><span>{escape(crop.identity or "unknown")}</span></div>'
        "</li>"
    )


def message_html(text: str) -> str:
    """Return an error as one line that starts with a capital letter."""
    sentence = text[:1].upper() + text[1:]
    return f'<p class="reid-message" role="alert">{escape(" ".join(sentence.split()))}</p>'


def legend_html() -> str:
    """Return what the marks and colours of the borders mean."""
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
    return f'<ul class="reid-legend" aria-label="Meaning of the borders">{keys}</ul>'


def score_table_html(rows: Sequence[ScoreRow]) -> str:
    """Return a table of scores in percent; the best of each direction are bold."""
    if not rows:
        return message_html("No scores for this selection.")
    heads = ("Direction", "Normalization", "mAP", "rank-1", "rank-5", "rank-10", "queries", "gallery")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(_table_row(row, [other for other in rows if other.direction == row.direction]) for row in rows)
    return f'<div class="reid-table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_row(row: ScoreRow, rivals: Sequence[ScoreRow]) -> str:
    cells = []
    for k, score in enumerate(_scores(row)):
        best = any(_scores(rival)[k] < score for rival in rivals) and not any(_scores(r)[k] > score for r in rivals)
        text = f"{100 * score:.1f}"
        cells.append(f"<td>{f'<b>{text}</b>' if best else text}</td>")
    names = f'<th scope="row">{escape(arrow(row.direction))}</th><td>{escape(row.title)}</td>'
    return f"<tr>{names}{''.join(cells)}<td>{row.queries:,}</td><td>{row.gallery:,}</td></tr>"


def _scores(row: ScoreRow) -> tuple[float, float, float, float]:
    return row.mean_average_precision, row.cmc[0], row.cmc[4], row.cmc[9]


def arrow(direction: str) -> str:
    """Write a direction with an arrow.

    Example:
        >>> arrow("visible->infrared")
        'visible → infrared'
    """
    return direction.replace("->", " → ")


def cmc_html(title: str, rows: Sequence[ScoreRow], ranks: int = CMC_RANKS) -> str:
    """Draw the CMC curves of ``rows`` under a title, one line for each row.

    Args:
        title: The title, which also names the chart to those who cannot see it.
        rows: At least one row; rows beyond the number of ``COLOURS`` are not drawn.
        ranks: The last rank of the curves.

    Returns:
        A figure with an inline SVG and a legend that gives rank-1 and mAP.
    """
    curves = [
        Curve(f"{row.title}: {_percent_words(row)}", np.asarray(row.cmc[:ranks], np.float64), colour)
        for row, colour in zip(rows, COLOURS, strict=False)
    ]
    chart = cmc_chart(title, curves).translate(_TEMPLATE_CHARACTERS)
    return f'<div class="reid-card reid-cmc">{chart}</div>'


def _percent_words(row: ScoreRow) -> str:
    return f"rank-1 {100 * row.cmc[0]:.1f}, mAP {100 * row.mean_average_precision:.1f}"


def card_html(title: str, content: str) -> str:
    """Return a card with a title; ``content`` is HTML, ``title`` is plain text."""
    return f'<section class="reid-card"><h3 class="reid-title">{escape(title)}</h3>{content}</section>'


def camera_wall_html(title: str, crops: Sequence[Crop]) -> str:
    """Return one crop for each camera of a site, side by side under a title."""
    cards = "".join(
        f'<li class="reid-camera"><img src="{crop.uri}" alt="{escape(describe(crop))}">'
        f'<b>{escape(crop.camera or "unknown")}</b><span class="reid-tag reid-{escape(crop.modality)}">'
        f"{escape(crop.modality)}</span></li>"
        for crop in crops
    )
    style = _grid_style(crops, min(len(crops), CAMERAS_PER_ROW))
    return f'<section class="reid-wall"><h3>{escape(title)}</h3><ul {style}>{cards}</ul></section>'


def hint_html(text: str) -> str:
    """Return a line of small print."""
    return f'<p class="reid-hint">{escape(text)}</p>'
