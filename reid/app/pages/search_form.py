"""The form of the page "Search" as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from reid.app.known_rows import KNOWN_CHOICES
from reid.app.pages.controls import (
    checkbox_html,
    checklist_html,
    hidden_html,
    page_html,
    radios_html,
    select_html,
    text_html,
)
from reid.app.query_choice import GUESSED, UNKNOWN_CAMERAS, asks_other_cameras, upload_cameras
from reid.app.served_data import ServedData

ANY = "*"
UPLOAD_HINT = (
    "At most 10 MB, up to 8 images of one person or object. They are never written to a disk of this program, and are"
    " forgotten when the page is closed."
)
RANKING_WORDS = (("plain", "Plain"), ("normalized", "Normalized"), ("reranked", "Re-ranked"))
MOST_CAMERAS = 60  # that are listed as filters


def search_form_html(
    data: ServedData, chosen: str, picker: str, card: str, answers: str, purposes: Sequence[str] = ()
) -> str:
    """Return the page "Search".

    Args:
        data: What the application serves.
        chosen: The key of the query that is shown.
        picker: HTML of the crops to choose from.
        card: HTML of the query.
        answers: HTML of its answers.
        purposes: The purposes of which a search names one; without any, it needs none.
    """
    wanted = ""
    if purposes:
        choices = [("", "choose one"), *((one, one) for one in purposes)]
        wanted = select_html("purpose", "Purpose of your searches", choices, "", attributes="data-volatile")
    side = (
        '<div class="reid-side"><p class="reid-lead">Click a crop to search for it, or bring an image of your own.</p>'
        f'{wanted}<div id="reid-picker-filters">{picker_filters_html(data)}</div><div id="reid-picker">{picker}</div>'
        '<div class="reid-buttons"><button type="button" class="reid-button" data-action="others">Show others</button>'
        '<button type="button" class="reid-button reid-strong" data-action="random">Random query</button></div>'
        f"{_upload_html(data)}</div>"
    )
    result = (
        f'<div class="reid-result"><div class="reid-top"><div id="reid-query">{card}</div>{_options_html(data)}</div>'
        f'<div id="reid-answers">{answers}</div>{_export_html()}</div>'
    )
    content = (
        f'<form class="reid-search" data-action="search">{hidden_html("query", chosen)}'
        f"{hidden_html('images', '', 'data-list data-volatile')}{side}{result}</form>"
    )
    return page_html("search", "Search", content)


def picker_filters_html(data: ServedData) -> str:
    """Return the lists that say which crops are offered."""
    sites, categories = [site.name for site in data.sites], data.query_crops.categories or ("person",)
    attributes = 'data-change="pick" data-volatile'
    parts = [hidden_html("site", sites[0], "data-volatile")]
    if len(sites) > 1:
        choices = [(name, name) for name in sites]
        parts = [select_html("site", "Site", choices, sites[0], tip="site", attributes=attributes)]
    if len(categories) > 1:
        choices = [(name, name) for name in categories]
        parts.append(select_html("category", "Category", choices, categories[0], tip="category", attributes=attributes))
    else:
        parts.append(hidden_html("category", categories[0], "data-volatile"))
    parts.append(f'<div id="reid-picker-camera">{camera_select_html(data, sites[0], ANY)}</div>')
    return f'<div class="reid-filters">{"".join(parts)}</div>'


def camera_select_html(data: ServedData, site: str, chosen: str) -> str:
    """Return the list of the cameras of a site."""
    cameras = {
        sample.camera: f"{sample.camera or 'unknown'} {sample.modality}"
        for one in data.sites
        if one.name == site
        for sample in one.cameras
    }
    choices = [(ANY, "all"), *sorted(cameras.items())]
    return select_html("camera", "Camera", choices, chosen, tip="camera", attributes='data-change="pick" data-volatile')


def upload_labels_html(data: ServedData) -> str:
    """Return the lists in which a visitor says what an image of their own shows."""
    cameras = [*UNKNOWN_CAMERAS.items(), *((name, name) for name in upload_cameras(data))]
    categories = data.main.categories or ("person",)
    volatile = "data-volatile"
    return (
        select_html(
            "upload_camera", "Camera that took it", cameras, "?mixture", tip="unknown camera", attributes=volatile
        )
        + select_html(
            "upload_modality", "Light", [(GUESSED, "as it looks"), ("visible", "visible"), ("infrared", "infrared")],
            GUESSED, tip="modality", attributes=volatile,
        )
        + select_html("upload_category", "It shows a", [(name, name) for name in categories], categories[0],
                      attributes=volatile)
    )  # fmt: skip


def _upload_html(data: ServedData) -> str:
    volatile = "data-volatile"
    several = checkbox_html("several", "Add to the images of this query", False, attributes=f"data-quiet {volatile}")
    return (
        '<fieldset class="reid-upload"><legend class="reid-label">Your own image</legend>'
        '<label class="reid-drop">Choose, drop or paste an image'
        '<input type="file" accept="image/*" multiple aria-label="Choose an image of one person or object"></label>'
        f'<div class="reid-upload-labels"><div id="reid-upload-labels">{upload_labels_html(data)}</div>{several}</div>'
        f'<p class="reid-hint">{UPLOAD_HINT}</p></fieldset>'
    )


def _options_html(data: ServedData) -> str:
    main = checkbox_html("cross", "Other cameras only", asks_other_cameras(data), tip="camera")
    ranking = radios_html("ranking", "Ranking", RANKING_WORDS, "plain", tip="score normalization")
    counts = [(str(number), str(number)) for number in (5, 10, 20, 30, 50)]
    count = select_html("count", "Answers", counts, "10")
    compare = ""
    if any(one.is_compared for one in data.galleries):
        compare = checkbox_html("compare", "Compare camera BN and plain BN", False, tip="statistics")
    return (
        f'<div class="reid-options"><div class="reid-switches">{main}{compare}</div>'
        f'<div class="reid-switches">{ranking}{count}</div>'
        '<details><summary>Filters</summary><div id="reid-search-filters">'
        f"{filters_html(data)}</div></details></div>"
    )


def filters_html(data: ServedData) -> str:
    """Return the conditions that answers can be bound to."""
    table = data.main.gallery.table
    cameras = table.distinct("camera")[:MOST_CAMERAS] if len(table) else []
    parts = []
    if len(table) and len(table.distinct("modality")) > 1:
        light = (("both", "both"), ("visible", "visible"), ("infrared", "infrared"))
        parts.append(radios_html("modality", "Answers in", light, "both", tip="modality"))
    if data.has_several_sites:
        scope = (("own", "the query's site"), ("all", "all sites"))
        parts.append(radios_html("scope", "Search in", scope, "own", tip="site"))
    if cameras:
        parts.append(checklist_html("cameras", "Only these cameras (none chosen: all)", cameras))
        parts.append(checklist_html("without", "Without these cameras", cameras))
    parts.append(text_html("after", "Taken at or after", field_type="datetime-local"))
    parts.append(text_html("before", "Taken before", field_type="datetime-local"))
    groups = [("", "every crop"), ("identity", "one per identity"), ("person", "one per person")]
    groups.append(("track", "one per track"))
    parts.append(select_html("known", "Who may answer", list(KNOWN_CHOICES.items()), "", tip="person"))
    parts.append(select_html("one_per", "Show", groups, "", tip="person"))
    return f'<div class="reid-filter-fields">{"".join(parts)}</div>'


def _export_html() -> str:
    kinds = (("csv", "Save as CSV"), ("json", "Save as JSON"), ("png", "Save the images"))
    buttons = "".join(
        f'<button type="button" class="reid-button" data-export="{kind}">{words}</button>' for kind, words in kinds
    )
    return f'<div class="reid-buttons">{buttons}</div>'
