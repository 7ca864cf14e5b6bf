"""The page "Scores": CMC curves and the table of both norms, by site, kind and direction.

Scores are computed once for each site, from the embeddings that lie beside the galleries.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import gradio as gr

from reid.app import presentation as present
from reid.app.world import World
from reid.errors import ReidError

RULE = (
    "Percent. Market-1501 rule: pictures of the query's identity from its own camera are left out; ties count as"
    " wrong. Queries without a right answer enter no mean."
)


class ScoresPage:
    """The components of the page and what they do; made inside a ``gr.Blocks``."""

    def __init__(self, world: World):
        self._sites = {site.name: site for site in world.sites}
        self._reports = cache(lambda site: [(norm.title, norm.report(self._sites[site])) for norm in world.norms])
        first, kind = world.sites[0].name, world.kinds[0]
        directions = self._directions(first, kind)
        direction = next((name for _, name in directions), None)
        with gr.Row(elem_classes="reid-chosen"):
            self.site = gr.Radio(list(self._sites), value=first, label="Site", elem_id="scores-site", min_width=200)
            self.kind = gr.Radio(list(world.kinds), value=kind, label="Kind", elem_id="scores-kind", min_width=180)
            self.direction = gr.Radio(
                directions, value=direction, label="Direction", elem_id="scores-direction", scale=2, min_width=300
            )
        plot, table = self.show(first, kind, direction)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                self.plot = gr.HTML(plot, elem_id="cmc", apply_default_css=False)
            with gr.Column(scale=7, min_width=320):
                self.table = gr.HTML(table, elem_id="scores", apply_default_css=False)
        self._connect()

    def _connect(self) -> None:
        chosen = [self.site, self.kind, self.direction]
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "minimal",
            "concurrency_id": "scores",
            "concurrency_limit": 1,
        }
        gr.on([self.site.change, self.kind.change], self._offer, chosen, self.direction, **quiet).then(
            self.show, chosen, [self.plot, self.table], **quiet
        )
        self.direction.change(self.show, chosen, [self.plot, self.table], **quiet)

    def show(self, site: str, kind: str, direction: str | None) -> tuple[str, str]:
        """HTML of the curves of one direction, and of the table of all."""
        try:
            rows = self._rows(site, kind)
        except ReidError as error:
            return "", present.message(str(error))
        drawn = [row for row in rows if row.direction == direction]
        if direction is None or not drawn:
            return "", present.message(f"no scores of {kind} at {site}")
        title = f"{kind}, {site}, {present.arrow(direction)}"
        plot = present.figure_html(present.cmc_figure(drawn), f"{title}. {present.plot_words(drawn)}")
        table = present.score_table(rows) + present.hint(RULE)
        return present.titled(f"CMC: {title}", plot), present.titled(f"Scores: {kind}, {site}", table)

    def _rows(self, site: str, kind: str) -> list[present.Row]:
        """A row for each direction and norm, all norms of a direction together."""
        rows = [
            present.Row(
                title,
                result.direction,
                result.metrics.mAP,
                result.metrics.cmc.tolist(),
                result.metrics.queries,
                result.metrics.gallery,
            )
            for title, report in self._reports(site)
            for result in report.results
            if result.category == kind
        ]
        order = list(dict.fromkeys(row.direction for row in rows))
        return sorted(rows, key=lambda row: order.index(row.direction))

    def _directions(self, site: str, kind: str) -> list[tuple[str, str]]:
        try:
            names = dict.fromkeys(row.direction for row in self._rows(site, kind))
        except ReidError:
            names = {}
        return [(present.arrow(name), name) for name in names]

    def _offer(self, site: str, kind: str, direction: str) -> Any:
        """The directions of another site or kind; the chosen one stays if it is there too."""
        choices = self._directions(site, kind)
        names = [name for _, name in choices]
        return gr.update(choices=choices, value=direction if direction in names else next(iter(names), None))
