"""The HTML that a visitor sees: crops, rankings and messages.

Images travel inside the page as ``data:`` addresses, so that no file of a data set has an address of its own. Every
text is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from reid.app.gallery_counts import GalleryCounts

THUMBNAIL = (192, 256)  # pixels; most crops are smaller and keep their size
NARROWEST, WIDEST = 0.4, 1.8  # width / height of a frame; crops beyond these are shown whole, with margins
MARKS = {"right": "✓", "wrong": "✗", "same camera": "↺", "unknown": "?"}
NOTES = {
    "right": "right",
    "wrong": "wrong",
    "same camera": "right, but by the query's own camera: not counted",
    "unknown": "identity unknown",
}
# The page framework fills in templates, so characters that start one are replaced in every text.
TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


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
    """One answer of a ranking.

    Args:
        rank: Its rank.
        crop: The crop.
        score: The similarity in -1..1.
        verdict: A key of ``MARKS``.
        row: The lasting id of its row.
        match: "same", "undecided" or "other", or "" where answers are not judged.
        match_words: The false-match rate in words.
        time: When the crop was taken; "" when unknown.
    """

    rank: int
    crop: Crop
    score: float
    verdict: str
    row: int = 0
    match: str = ""
    match_words: str = ""
    time: str = ""


def escape(text: str) -> str:
    """Escape a text for HTML and for the templates of the page framework.

    Example:
        >>> escape("<b>{x}")
        '&lt;b&gt;&#123;x&#125;'
    """
    return html.escape(text, quote=True).translate(TEMPLATE_CHARACTERS)


def plain_text(drawn: str) -> str:
    """Return HTML of another part of the program without characters that start a template of the page framework."""
    return drawn.translate(TEMPLATE_CHARACTERS)


def data_uri(image: Image.Image, largest: tuple[int, int] = THUMBNAIL) -> str:
    """Return an image as ``data:image/jpeg;base64,...``, not larger than ``largest`` (width, height)."""
    small = image.convert("RGB")
    small.thumbnail(largest)
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
    purpose = "Choose a crop or upload one, and find it again in other cameras."
    if counts.cameras < 2:
        purpose = "Choose a crop or upload one, and find crops that show the same."
    return (
        f'<header class="reid-heading"><h1>reid</h1><p>Gallery <b>{escape(counts.name)}</b>:'
        f" {' '.join(parts)}. {purpose}</p></header>"
    )


def picker_html(crops: Mapping[str, Crop], chosen: str | None = None) -> str:
    """Return buttons to choose a query from; each carries the key of its crop, and ``chosen`` is pressed."""
    if not crops:
        return message_html("No query fits this selection; choose another site, category or camera.")
    buttons = "".join(_button(key, crop, chosen) for key, crop in crops.items())
    style = _grid_style(crops.values())
    return f'<div class="reid-picker" role="group" aria-label="Query crops" {style}>{buttons}</div>'


def frame_html(crops: Mapping[str, Crop]) -> str:
    """Return buttons for the people who were found in an uploaded frame, by the names of their images."""
    buttons = "".join(
        f'<button type="button" class="reid-pick" data-set="images" data-value="{escape(name)}" data-reveal="1"'
        f' aria-pressed="false"><img src="{crop.uri}" alt="Person {number} in the frame"></button>'
        for number, (name, crop) in enumerate(crops.items(), 1)
    )
    style = _grid_style(crops.values())
    return (
        '<p class="reid-lead">People in this frame; click one to search for it.</p>'
        f'<div class="reid-picker" role="group" aria-label="People in this frame" {style}>{buttons}</div>'
    )


def _button(key: str, crop: Crop, chosen: str | None) -> str:
    pressed = "true" if key == chosen else "false"
    return (
        f'<button type="button" class="reid-pick" data-set="query" data-value="{escape(key)}" data-reveal="1"'
        f' aria-pressed="{pressed}" title="{escape(crop.identity)}"><img src="{crop.uri}"'
        f' alt="{escape(describe(crop))}">{camera_tag_html(crop)}</button>'
    )


def _grid_style(crops: Iterable[Crop], columns: int = 1) -> str:
    """Return the style of a grid whose frames have the median width / height of ``crops``."""
    aspects = sorted(crop.aspect for crop in crops) or [0.5]
    aspect = min(max(aspects[len(aspects) // 2], NARROWEST), WIDEST)
    return f'style="--aspect: {aspect:.3f}; --count: {columns}"'


def camera_tag_html(crop: Crop) -> str:
    """Return the camera of a crop, in the colour of its light; "" where it is unknown."""
    if not crop.camera:
        return ""
    return f'<span class="reid-tag reid-{escape(crop.modality)}">{escape(crop.camera)}</span>'


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


def ranking_html(title: str, ranking: Sequence[RankedCrop], summary: str, notes: Sequence[str] = ()) -> str:
    """Return one ranking under its title.

    Args:
        title: The title.
        ranking: The shown answers, best first.
        summary: HTML of :func:`summary_html`.
        notes: What a visitor should know about it, a sentence each.

    Returns:
        HTML.
    """
    return (
        f'<section class="reid-ranked" aria-label="{escape(title)}"><header><h3>{escape(title)}</h3>{summary}</header>'
        f"{''.join(map(note_html, notes))}"
        f'<ol class="reid-answers" {_grid_style(answer.crop for answer in ranking)}>'
        f"{''.join(map(_answer, ranking))}</ol></section>"
    )


def summary_html(
    rows: int, first_right: int | None, first_shown: int | None, average_precision: float | None, known: bool
) -> str:
    """Return where the first right answer is, and the average precision.

    Args:
        rows: The number of gallery rows that may answer.
        first_right: The rank of the first right answer among these rows, without those that do not count.
        first_shown: Its position among the shown answers, all counted; None where it is not shown.
        average_precision: The average precision in 0..1; None where it is not known.
        known: Whether the identity of the query is known.
    """
    counted = f'<span class="reid-chip">of {rows:,} crops</span>'
    if not known:
        return f'<span class="reid-chip">identity unknown: not scored</span>{counted}'
    if first_right is None:
        return f'<span class="reid-chip">no right answer among these</span>{counted}'
    state = "right" if first_right == 1 else "wrong"
    seen = ""
    if first_shown is not None and first_shown != first_right:
        seen = f" (number {first_shown:,} here; own-camera answers do not count)"
    chip = f'<span class="reid-chip reid-is-{state}">first right answer: <b>rank {first_right:,}</b>{seen}</span>'
    if average_precision is not None:
        chip += f'<span class="reid-chip">AP <b>{100 * average_precision:.1f}</b></span>'
    return chip + counted


def _answer(answer: RankedCrop) -> str:
    crop = answer.crop
    words = f"Rank {answer.rank}, {NOTES[answer.verdict]}: {describe(crop)}, score {answer.score:.3f}"
    state = answer.verdict.replace(" ", "-")
    match = (
        f'<span class="reid-match reid-match-{answer.match}">{answer.match}, {escape(answer.match_words)}</span>'
        if answer.match
        else ""
    )
    return (
        f'<li class="reid-answer reid-is-{state}" data-camera="{escape(crop.camera)}"'
        f' data-modality="{escape(crop.modality)}" title="{escape(words)}">'
        f'<div class="reid-frame"><button type="button" class="reid-more" data-set="query" data-value="r{answer.row}">'
        f'<img src="{crop.uri}" alt="{escape(words)}"></button>'
        f'<span class="reid-rank">{answer.rank}</span>'
        f'<span class="reid-mark" aria-hidden="true">{MARKS[answer.verdict]}</span>{camera_tag_html(crop)}'
        f'<button type="button" class="reid-zoom" data-action="enlarge" data-row="{answer.row}"'
        f' aria-label="Enlarge answer {answer.rank}">⤢</button></div>'
        f'<div class="reid-caption"><b>{answer.score:.3f}</b>{match}'
        f'<span class="reid-who">{escape(crop.identity or "unknown")}</span>'
        f"{f'<span>{escape(answer.time)}</span>' if answer.time else ''}</div>"
        "</li>"
    )


def enlarged_html(crop: Crop, row: int, neighbours: Sequence[tuple[int, Crop, str]], time: str) -> str:
    """Return a crop in large with its labels, and the crops that its camera took before and after it."""
    facts = {"Identity": crop.identity or "unknown", "Camera": crop.camera or "unknown", "Time": time or "unknown"}
    lines = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    near = "".join(
        f'<li><button type="button" class="reid-more" data-in="search" data-close data-set="query" data-value="r{one}"'
        f'><img src="{other.uri}" alt="{escape(describe(other))}"></button><span>{escape(when[-8:])}</span></li>'
        for one, other, when in neighbours
    )
    shown = f'<h4>Its camera, before and after</h4><ul class="reid-near">{near}</ul>' if near else ""
    return (
        f'<div class="reid-large"><img src="{crop.uri}" alt="{escape(describe(crop))}"><div><dl>{lines}</dl>'
        f'<div class="reid-buttons"><button type="button" class="reid-button reid-strong" data-in="search" data-close'
        f' data-set="query" data-value="r{row}">Search for this crop</button>'
        f'<button type="button" class="reid-button" data-close>Close</button></div></div></div>{shown}'
    )


def note_html(text: str) -> str:
    """Return a sentence that a visitor should notice, which is no error."""
    return f'<p class="reid-note">{escape(text)}</p>'


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
    rates = (
        "<li>1 in 300: one of 300 pairs of different identities of these two cameras is as similar; from 1 in 10,000"
        " on, an answer counts as the same</li>"
    )
    return f'<ul class="reid-legend" aria-label="Meaning of marks and rates">{keys}{rates}</ul>'


def card_html(title: str, content: str) -> str:
    """Return a card with a title; ``content`` is HTML, ``title`` is plain text."""
    return f'<section class="reid-card"><h3 class="reid-title">{escape(title)}</h3>{content}</section>'


def hint_html(text: str) -> str:
    """Return a line of small print."""
    return f'<p class="reid-hint">{escape(text)}</p>'
