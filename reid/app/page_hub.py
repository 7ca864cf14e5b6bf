"""The page as gradio serves it: one component that holds the page, and one that carries the answers to it.

The script of the page sends what a visitor asks as one event, and puts the parts that come back where they belong. So
the page has native controls, and a question that a later one has overtaken is never shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
import typer

from reid.app.access import user_of_event
from reid.app.first_view import FirstValues
from reid.app.gallery_counts import count_gallery
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.presentation import escape, heading_html, message_html
from reid.app.refusals import Refused
from reid.app.served_data import ServedData
from reid.errors import ReidError

SCRIPT = Path(__file__).parent / "pages" / "script.js"
RECEIVE = "watch('value', () => window.reidReceive?.(props.value));"
FAULT = "The page could not answer this; what happened is written where the program was started."
# Values are not read by gradio: reid.app.messages has checked them, and gradio logs a traceback for each wrong one.
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}


class Page(Protocol):
    """One page of the application."""

    name: str
    title: str
    actions: Mapping[str, PageAction]

    def first_html(self) -> str:
        """Return the page as a visitor first sees it."""
        ...


class PageHub:
    """The components of the page; to be made inside a ``gr.Blocks``.

    Args:
        data: What the application serves.
        pages: The pages, in the order of their links.
    """

    def __init__(self, data: ServedData, pages: list[Page]) -> None:
        self._data = data
        self._pages = {page.name: page for page in pages}
        script = SCRIPT.read_text(encoding="utf-8")
        self.shell = gr.HTML(self.html(), js_on_load=script, elem_id="reid", apply_default_css=False)
        self.channel = gr.HTML(
            "", html_template="", js_on_load=RECEIVE, elem_id="reid-channel", apply_default_css=False
        )
        self.visit = gr.State(PageVisit(), time_to_live=3600)
        self.shell.select(
            self.answer, self.visit, [self.channel, self.visit], trigger_mode="multiple", concurrency_id="page",
            concurrency_limit=2, **HIDDEN,
        )  # fmt: skip

    @property
    def first_values(self) -> FirstValues:
        """The component that shows crops when the page is opened, and what makes its value again."""
        return [self.shell], lambda: [self.html()]

    def html(self) -> str:
        """Return the whole page as a visitor first sees it."""
        links = "".join(
            f'<a href="?page={page.name}" data-link="{page.name}"{" aria-current=page" * (page.name == "search")}>'
            f"{escape(page.title)}</a>"
            for page in self._pages.values()
        )
        try:
            heading = heading_html(count_gallery(self._data))
        except ReidError:  # the pages say what is wrong
            heading = '<header class="reid-heading"><h1>reid</h1></header>'
        pages = "".join(_first_html(page) for page in self._pages.values())
        return (
            f'{heading}<nav class="reid-nav" aria-label="Pages">{links}</nav>{pages}'
            '<p id="reid-status" class="reid-unseen" role="status"></p>'
            '<dialog id="reid-dialog" aria-label="Crop" data-page="dialog"><div id="reid-dialog-content"></div>'
            "</dialog>"
        )

    def answer(self, visit: PageVisit, event: gr.EventData, request: gr.Request) -> tuple[str, PageVisit]:
        """Answer one question of the page; a wrong question gets one line.

        Returns:
            The answer as JSON, and what is remembered of the visit.
        """
        question = event._data if isinstance(event._data, dict) else {}
        values = PageValues(question)
        visit.user = user_of_event(request)
        parts = self.ask(values, visit)
        address = {"page": values.text("page"), "seq": values.number("seq", 0)}
        return json.dumps({**parts.to_json(), **address}), visit

    def ask(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Answer one question; every fault becomes one line."""
        page = self._pages.get(values.text("page"))
        action = None if page is None else page.actions.get(values.text("action"))
        if action is None:
            return PageParts(error="This page does not know that action; load it again.")
        try:
            return action(values, visit)
        except ReidError as error:
            text = " ".join(str(error).split())
            return PageParts(error=text[:1].upper() + text[1:])
        except Refused:
            return PageParts(error=f"Your role is {visit.user.role}, and it may not do this; ask an administrator.")
        except Exception as error:  # noqa: BLE001 - the page must get an answer; the fault is the program's
            typer.echo(f"fault in the page: {type(error).__name__}: {error}", err=True)
            return PageParts(error=FAULT)


def _first_html(page: Page) -> str:
    try:
        return page.first_html()
    except ReidError as error:
        hidden = " hidden" * (page.name != "search")
        return (
            f'<section data-page="{page.name}" data-title="{escape(page.title)}"{hidden}>'
            f'<h2 class="reid-page-title">{escape(page.title)}</h2><p class="reid-message reid-error" hidden></p>'
            f"<form></form>{message_html(str(error))}</section>"
        )
