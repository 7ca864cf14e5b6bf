"""Controls of a form as HTML: native ones, so that keyboard, screen readers and phones know them."""

from __future__ import annotations

from collections.abc import Sequence

from reid.app.presentation import escape
from reid.app.terms import TERMS

Choices = Sequence[tuple[str, str]]
"""Pairs of a value and its words."""


def tip_html(term: str) -> str:
    """Return a button that shows what a word of the glossary means."""
    meaning = TERMS[term]
    return (
        f'<button type="button" class="reid-tip" aria-label="{escape(f"{term}: {meaning}")}"'
        f' data-tip="{escape(meaning)}">?</button>'
    )


def select_html(
    name: str, label: str, choices: Choices, value: str, *, tip: str = "", attributes: str = "", id_prefix: str = ""
) -> str:
    """Return a drop-down list with its label."""
    options = "".join(
        f'<option value="{escape(one)}"{" selected" * (one == value)}>{escape(words)}</option>'
        for one, words in choices
    )
    field = f"reid-field-{id_prefix}{name}"
    return (
        f'<div class="reid-control"><span class="reid-label"><label for="{field}">{escape(label)}</label>'
        f'{tip_html(tip) if tip else ""}</span><select id="{field}" name="{name}" {attributes}>{options}</select></div>'
    )


def radios_html(name: str, label: str, choices: Choices, value: str, *, tip: str = "", id_prefix: str = "") -> str:
    """Return a group of radio buttons with its label."""
    buttons = "".join(
        f'<label class="reid-choice"><input type="radio" name="{name}" value="{escape(one)}"'
        f"{' checked' * (one == value)}>{escape(words)}</label>"
        for one, words in choices
    )
    field = f"reid-group-{id_prefix}{name}"
    return (
        f'<div class="reid-control" role="radiogroup" aria-labelledby="{field}" id="{id_prefix}{name}"><span'
        f' class="reid-label"><span id="{field}">{escape(label)}</span>{tip_html(tip) if tip else ""}</span>'
        f'<span class="reid-choices">{buttons}</span></div>'
    )


def checkbox_html(name: str, label: str, checked: bool, *, tip: str = "", attributes: str = "") -> str:
    """Return a check box with its label."""
    mark = " checked" * checked
    return (
        f'<span class="reid-check"><label class="reid-choice"><input type="checkbox" name="{name}"{mark} {attributes}>'
        f"{escape(label)}</label>{tip_html(tip) if tip else ''}</span>"
    )


def checklist_html(name: str, label: str, words: Sequence[str]) -> str:
    """Return a list of check boxes, of which any number may be chosen."""
    boxes = "".join(
        f'<label class="reid-choice"><input type="checkbox" name="{name}" value="{escape(word)}" data-list>'
        f"{escape(word)}</label>"
        for word in words
        if "," not in word
    )
    return (
        f'<fieldset class="reid-control"><legend class="reid-label">{escape(label)}</legend>'
        f'<span class="reid-choices reid-many">{boxes}</span></fieldset>'
    )


def text_html(name: str, label: str, *, field_type: str = "text", attributes: str = "", id_prefix: str = "") -> str:
    """Return a field for a line of text, or for a time where ``field_type`` is "datetime-local"."""
    field = f"reid-field-{id_prefix}{name}"
    return (
        f'<div class="reid-control"><span class="reid-label"><label for="{field}">{escape(label)}</label></span>'
        f'<input id="{field}" type="{field_type}" name="{name}" maxlength="200" autocomplete="off" {attributes}></div>'
    )


def hidden_html(name: str, value: str = "", attributes: str = "") -> str:
    """Return a field that buttons set."""
    return f'<input type="hidden" name="{name}" value="{escape(value)}" {attributes}>'


def page_html(name: str, title: str, content: str, *, load: str = "") -> str:
    """Return one page of the application.

    Args:
        name: Its name in the address.
        title: Its title.
        content: Its HTML.
        load: The action that fills it when it is opened for the first time; "" where it is filled already.
    """
    hidden = " hidden" * (name != "search")
    return (
        f'<section data-page="{name}" data-title="{escape(title)}" data-load="{load}"{hidden}'
        f' aria-labelledby="reid-title-{name}"><h2 id="reid-title-{name}" class="reid-page-title">{escape(title)}</h2>'
        f'<p class="reid-message reid-error" role="alert" hidden></p>{content}</section>'
    )
