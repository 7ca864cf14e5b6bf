"""The page as gradio serves it: one component that holds the page, and one that carries the answers to it.

The script of the page sends what a visitor asks as one event, and puts the parts that come back where they belong. So
the page has native controls, and a question that a later one has overtaken is never shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from reid.app.access import user_of_event
from reid.app.first_view import FirstValues
from reid.app.gallery_counts import count_gallery
from reid.app.page_questions import Page, answer_question, first_html_of
from reid.app.page_values import PageValues, PageVisit
from reid.app.presentation import escape, heading_html
from reid.app.served_data import ServedData
from reid.errors import ReidError

SCRIPT = Path(__file__).parent / "pages" / "script.js"
RECEIVE = "watch('value', () => window.reidReceive?.(props.value));"
# Values are not read by gradio: reid.app.messages has checked them, and gradio logs a traceback for each wrong one.
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}


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
        pages = "".join(first_html_of(page) for page in self._pages.values())
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
        parts = answer_question(self._pages, values, visit)
        address = {"page": values.text("page"), "seq": values.number("seq", 0)}
        return json.dumps({**parts.to_json(), **address}), visit
