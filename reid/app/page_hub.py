"""The page as gradio serves it: one component that holds the page, and one that carries the answers to it.

The script of the page sends what a visitor asks as one event, and puts the parts that come back where they belong. So
the page has native controls, and a question that a later one has overtaken is never shown.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import gradio as gr

from reid.app.access import user_of_event
from reid.app.first_view import FirstValues
from reid.app.gallery_counts import count_gallery
from reid.app.page_questions import Page, answer_question, first_html_of, following_html
from reid.app.page_values import PageParts, PageValues, PageVisit
from reid.app.presentation import escape, heading_html
from reid.app.served_data import ServedData
from reid.errors import ReidError

SCRIPTS = tuple(Path(__file__).parent / "pages" / name for name in ("script.js", "map.js", "start.js"))
FOLLOW = "follow"  # what the page asks now and then, to learn whether the gallery has changed
CHANGED = 'The gallery has changed. <button type="button" class="reid-button" data-again>Show this page again</button>'
RECEIVE = "watch('value', () => window.reidReceive?.(props.value));"
# Values are not read by gradio: reid.app.messages has checked them, and gradio logs a traceback for each wrong one.
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}


class PageHub:
    """The components of the page; to be made inside a ``gr.Blocks``.

    Args:
        data: What the application serves.
        pages: The pages, in the order of their links.
        has_users: Whether visitors are users who can log out.
    """

    def __init__(self, data: ServedData, pages: list[Page], *, has_users: bool = False) -> None:
        self._has_users = has_users
        self._data = data
        self._pages = {page.name: page for page in pages}
        self._run = secrets.token_hex(4)  # so that a page of an earlier run knows that its gallery may be another
        script = "".join(part.read_text(encoding="utf-8") for part in SCRIPTS)
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
        state = self._state()
        log_out = '<button type="button" class="reid-button" data-logout>Log out</button>' * self._has_users
        pages = "".join(first_html_of(page) for page in self._pages.values())
        return (
            f'<div id="reid-head" data-state="{state}">{self._heading_html()}</div>'
            f'<nav class="reid-nav" aria-label="Pages">{links}{log_out}</nav>'
            f'<p id="reid-changed" class="reid-note" role="status" hidden>{CHANGED}</p>{pages}'
            '<p id="reid-status" class="reid-unseen" role="status"></p>'
            '<dialog id="reid-dialog" aria-label="Crop" data-page="dialog"><div id="reid-dialog-content"></div>'
            "</dialog>"
        )

    def _heading_html(self) -> str:
        try:
            return heading_html(count_gallery(self._data))
        except ReidError:  # the pages say what is wrong
            return '<header class="reid-heading"><h1>reid</h1></header>'

    def _state(self) -> str:
        """Return a word that is another one after the gallery has changed."""
        return f"{self._run}-{self._data.state}"

    def _following(self, known: str) -> dict[str, object]:
        """Return the parts that follow the gallery, where a page shows them as they were before; else nothing."""
        state = self._state()
        if not known or known == state or self._data.state is None:
            return {}
        parts = {"head": self._heading_html()}
        for page in self._pages.values():
            parts |= following_html(page)
        return {"follow": parts, "gallery_state": state}

    def answer(self, visit: PageVisit, event: gr.EventData, request: gr.Request) -> tuple[str, PageVisit]:
        """Answer one question of the page; a wrong question gets one line.

        Returns:
            The answer as JSON, and what is remembered of the visit.
        """
        question = event._data if isinstance(event._data, dict) else {}
        values = PageValues(question)
        visit.user = user_of_event(request)
        following = self._following(values.text("gallery_state"))
        looks = not values.text("page") and values.text("action") == FOLLOW
        parts = PageParts() if looks else answer_question(self._pages, values, visit)
        address = {"page": values.text("page"), "seq": values.number("seq", 0)}
        return json.dumps({**parts.to_json(), **following, **address}), visit
