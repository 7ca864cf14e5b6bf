"""The page "Scores": CMC curves and the table of every network, by site, category and direction.

The scores of a site are computed once, from the embeddings that are kept with the galleries.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from reid.app import presentation as present
from reid.app.pages.fields import accept_any_choice
from reid.app.served_data import ServedData
from reid.errors import ReidError
from reid.evaluation import Report

SCORING = (
    "Scores are in percent and follow the Market-1501 rule: crops of the query's identity by the query's own camera are"
    " left out, and where scores are equal, wrong answers are ranked first. Queries without a right answer do not"
    " count in any mean."
)


class ScorePage:
    """The components of the page and what they do; to be made inside a ``gr.Blocks``."""

    def __init__(self, data: ServedData):
        self._data = data
        self._reports: dict[str, tuple[int, list[tuple[str, Report]]]] = {}
        site, category = data.sites[0].name, data.query_crops.categories[0]
        directions = self._directions(site, category)
        direction = next((name for _, name in directions), None)
        with gr.Row(elem_classes="reid-chosen"):
            self.site = gr.Radio(
                [one.name for one in data.sites], value=site, label="Site", elem_id="scores-site", min_width=200
            )
            self.category = gr.Radio(
                list(data.query_crops.categories),
                value=category,
                label="Category",
                elem_id="scores-category",
                min_width=180,
            )
            shown: dict[str, Any] = {"label": "Direction", "elem_id": "scores-direction", "scale": 2, "min_width": 300}
            self.direction = accept_any_choice(gr.Radio(directions, value=direction, **shown))
        curves, table = self.show(site, category, direction)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                self.curves = gr.HTML(curves, elem_id="cmc", apply_default_css=False)
            with gr.Column(scale=7, min_width=320):
                self.table = gr.HTML(table, elem_id="scores", apply_default_css=False)
        self._connect()

    def _connect(self) -> None:
        chosen, shown = [self.site, self.category, self.direction], [self.curves, self.table]
        options: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "minimal",
            "preprocess": False,  # reid.app.messages has checked the values
            "concurrency_id": "scores",
            "concurrency_limit": 1,
        }
        gr.on(
            [self.site.change, self.category.change], self._update_directions, chosen, self.direction, **options
        ).then(self.show, chosen, shown, **options)
        self.direction.change(self.show, chosen, shown, **options)

    def show(self, site: str, category: str, direction: str | None) -> tuple[str, str]:
        """Show the scores of a category at a site.

        Args:
            site: The name of the site.
            category: The category.
            direction: The direction of the curves, such as "visible->infrared".

        Returns:
            HTML of the curves of this direction, and of the table of all directions.
        """
        try:
            rows = self._rows(site, category)
        except ReidError as error:
            return "", present.message_html(str(error))
        drawn = [row for row in rows if row.direction == direction]
        if direction is None or not drawn:
            return "", present.message_html(f"no scores of {category} at {site}")
        curves = present.cmc_html(f"CMC: {category}, {site}, {present.arrow(direction)}", drawn)
        table = present.score_table_html(rows) + present.hint_html(SCORING)
        return curves, present.card_html(f"Scores: {category}, {site}", table)

    def _rows(self, site: str, category: str) -> list[present.ScoreRow]:
        """Return a row for each direction and network, with all rows of a direction together."""
        rows = [
            present.ScoreRow(
                title,
                result.direction,
                result.metrics.mAP,
                result.metrics.cmc.tolist(),
                result.metrics.queries,
                result.metrics.gallery,
            )
            for title, report in self._reports_of(site)
            for result in report.results
            if result.category == category
        ]
        order = list(dict.fromkeys(row.direction for row in rows))
        return sorted(rows, key=lambda row: order.index(row.direction))

    def _reports_of(self, site: str) -> list[tuple[str, Report]]:
        """Return the title and the scores of every network; they are computed anew after a gallery has changed."""
        galleries = self._data.galleries
        version, reports = self._reports.get(site, (-1, []))
        if version != self._data.version:
            version = self._data.version
            found = next(one for one in self._data.sites if one.name == site)
            reports = [(served.title, served.score_site(found)) for served in galleries]
            self._reports[site] = version, reports
        return reports

    def _directions(self, site: str, category: str) -> list[tuple[str, str]]:
        try:
            names = dict.fromkeys(row.direction for row in self._rows(site, category))
        except ReidError:
            names = {}
        return [(present.arrow(name), name) for name in names]

    def _update_directions(self, site: str, category: str, direction: str) -> Any:
        """Offer the directions of another site or category; the chosen one stays if it is among them."""
        choices = self._directions(site, category)
        names = [name for _, name in choices]
        return gr.update(choices=choices, value=direction if direction in names else next(iter(names), None))
