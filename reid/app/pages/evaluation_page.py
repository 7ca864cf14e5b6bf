"""The page "Evaluation": scores, curves, pairs of cameras and the worst queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reid.app import presentation as present
from reid.app.gallery_service import GalleryService
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.controls import page_html, select_html, tip_html
from reid.app.score_presentation import ScoreRow, arrow, cmc_html, score_table_html
from reid.app.site_scores import EVERY_CROP, QUERIES, SiteScores, score_gallery
from reid.errors import DataError
from reid.evaluation.analysis.breakdown import PairTable
from reid.evaluation.analysis.details import ResultDetails
from reid.evaluation.analysis.query_examples import QueryExample
from reid.evaluation.reports.charts import heat, histogram
from reid.evaluation.reports.html_page import html_page

SCORING = (
    "Scores are in percent and follow the Market-1501 rule: crops of the query's identity by the query's own camera are"
    " left out, and where scores are equal, wrong answers are ranked first. Queries without a right answer do not"
    " count in any mean."
)
COMPARE = {"": "this gallery", "all": "with the small networks"}


SAVE_HTML = (
    '<div class="reid-buttons">'
    + "".join(
        f'<button type="button" class="reid-button" data-export="{kind}">{words}</button>'
        for kind, words in (("html", "Save the report"), ("json", "Save as JSON"), ("csv", "Save as CSV"))
    )
    + "</div>"
)
WITHOUT_LABELS = (
    "Scores compare what a search found with what is known: they need crops of one identity by two cameras, or two"
    " crops where no camera is known. Give the crops identities in the manifest and add it again."
    ' Without labels, the page Cameras judges every camera ("Judge every camera"), and the page People asks you about'
    " pairs of crops."
)


def _nothing_html(reason: str) -> str:
    """Return what is shown where nothing can be scored: why, and what to do."""
    said = present.escape(f"{reason[:1].upper()}{reason[1:]}.")
    return (
        f'<section class="reid-card"><h3>No scores yet</h3><p>{said}</p><p class="reid-soft">{WITHOUT_LABELS}</p>'
        "</section>"
    )


class EvaluationPage:
    """What the page does.

    Args:
        service: The gallery.
    """

    name = "evaluation"
    title = "Evaluation"

    def __init__(self, service: GalleryService) -> None:
        self._data = service.data
        self._known: dict[tuple[str, str, str], tuple[int, SiteScores]] = {}
        self.actions: Mapping[str, PageAction] = {"show": self.show}

    def first_html(self) -> str:
        """Return the page without scores, which are computed when it is opened."""
        sites = [(site.name, site.name) for site in self._data.sites]
        several = select_html("site", "Site", sites, sites[0][0], tip="site", id_prefix="evaluation-")
        fields = [several] if len(sites) > 1 else []
        asked = [("", "queries, else every crop"), (QUERIES, QUERIES), (EVERY_CROP, EVERY_CROP)]
        fields.append(select_html("protocol", "Queries", asked, "", tip="query", id_prefix="evaluation-"))
        if any(one.is_compared for one in self._data.galleries):
            choices = list(COMPARE.items())
            fields.append(select_html("networks", "Networks", choices, "", id_prefix="evaluation-"))
        content = (
            f'<form data-action="show"><div class="reid-card reid-filter-fields">{"".join(fields)}</div>'
            '<div class="reid-result"><div id="reid-scores"><p class="reid-soft reid-loading">Computing the scores…</p>'
            "</div></div>"
            "</form>"
        )
        return page_html("evaluation", "Evaluation", content, load="show")

    def show(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the scores that the page asks for."""
        name = values.text("site") or self._data.sites[0].name
        protocol = values.text("protocol")
        asked = [one for one in self._data.galleries if values.text("networks") or not one.is_compared]
        try:
            scores = [self._scores_of(title, name, protocol) for title in [one.title for one in asked]]
        except DataError as error:
            return PageParts({"scores": _nothing_html(str(error))}, status="nothing to score")
        rows = [row for one in scores for row in _rows_of(one)]
        categories = list(dict.fromkeys(category for category, _ in rows))
        parts = [
            _category_html(name, category, [row for own, row in rows if own == category]) for category in categories
        ]
        parts += [_details_html(result) for result in scores[0].details.results]
        what = "every labelled crop as a query" if scores[0].asked == EVERY_CROP else "the queries of the data"
        terms = f"<p>{what.capitalize()}. mAP {tip_html('mAP')} CMC {tip_html('CMC')}</p>"
        export = [_export_row(category, row) for category, row in rows]
        document = html_page([one.details for one in scores])
        html = terms + "".join(parts) + SAVE_HTML
        return PageParts({"scores": html}, status="scores computed", export=export, document=document)

    def _scores_of(self, title: str, site: str, protocol: str) -> SiteScores:
        """Return the scores of a network; they are computed anew after a gallery has changed."""
        served = next(one for one in self._data.galleries if one.title == title)
        key = (title, site, protocol)
        version, known = self._known.get(key, (-1, None))
        if known is None or version != self._data.version:
            found = next((one for one in self._data.sites if one.name == site), None)
            if found is None:
                raise DataError(f"there is no site {site}; choose another one")
            known = score_gallery(served, found, protocol)
            self._known[key] = self._data.version, known
        return known


def _rows_of(scores: SiteScores) -> list[tuple[str, ScoreRow]]:
    return [
        (
            result.category,
            ScoreRow(
                scores.title,
                result.direction,
                result.metrics.mAP,
                _at_least(result.metrics.cmc.tolist(), 10),
                result.metrics.queries,
                result.metrics.gallery,
            ),
        )
        for result in scores.details.report.results
        if result.is_plain
    ]


def _export_row(category: str, row: ScoreRow) -> dict[str, object]:
    ranks = {f"rank-{k}": float(row.cmc[k - 1]) for k in (1, 5, 10)}
    names = {"network": row.title, "category": category, "direction": row.direction}
    return {**names, "mAP": row.mean_average_precision, **ranks, "queries": row.queries, "gallery": row.gallery}


def _at_least(cmc: list[float], ranks: int) -> list[float]:
    return cmc + cmc[-1:] * (ranks - len(cmc))


def _category_html(site: str, category: str, rows: Sequence[ScoreRow]) -> str:
    order = list(dict.fromkeys(row.direction for row in rows))
    rows = sorted(rows, key=lambda row: order.index(row.direction))
    curves = cmc_html(f"CMC: {category}, {site}, {arrow(order[0])}", [row for row in rows if row.direction == order[0]])
    table = present.card_html(
        f"Scores: {category}, {site}",
        score_table_html(rows, f"Scores: {category}, {site}") + present.hint_html(SCORING),
    )
    return f'<div class="reid-grid">{table}{curves}</div>'


def _details_html(details: ResultDetails) -> str:
    title = f"{details.result.category}, {arrow(details.result.direction)}"
    parts = []
    if details.cameras is not None and details.cameras.mAP.size > 1:
        parts.append(_pairs_html(f"mAP by pair of cameras: {title}", details.cameras))
    if details.verification is not None:
        found = details.verification
        shares = [
            (name, counts / max(counts.sum(), 1))
            for name, counts in (("same", found.same), ("different", found.different))
        ]
        drawn = present.plain_text(histogram(f"Scores of pairs: {title}", found.edges, shares))
        parts.append(f'<div class="reid-card reid-cmc">{drawn}</div>')
    if details.worst:
        examples = "".join(map(_example_html, details.worst))
        parts.append(present.card_html(f"Worst queries: {title}", examples))
    return f'<div class="reid-grid">{"".join(parts)}</div>' if parts else ""


def _pairs_html(title: str, pairs: PairTable) -> str:
    known = pairs.mAP[~np.isnan(pairs.mAP)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    head = "".join(f'<th scope="col">{present.escape(name or "?")}</th>' for name in pairs.gallery_groups)
    rows = []
    for i, name in enumerate(pairs.query_groups):
        cells = "".join(
            "<td></td>" if np.isnan(value) else f'<td style="{heat(float(value), low, high)}">{100 * value:.0f}</td>'
            for value in pairs.mAP[i]
        )
        rows.append(f'<tr><th scope="row">{present.escape(name or "?")}</th>{cells}</tr>')
    head = f'<thead><tr><th scope="col">Query \\ gallery</th>{head}</tr></thead>'
    table = f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
    label = present.escape(title)
    return present.card_html(
        title, f'<div class="reid-table" tabindex="0" role="region" aria-label="{label}">{table}</div>'
    )


def _example_html(example: QueryExample) -> str:
    words = present.escape(_words(example.query.identity))
    query = f'<li><img src="{example.image}" alt="Query: {words}"><b>query</b></li>'
    answers = "".join(
        f'<li class="reid-is-{"right" if one.right else "wrong"}"><span class="reid-frame"><img src="{one.image}"'
        f' alt="{"Right" if one.right else "Wrong"}, rank {one.rank}: {present.escape(_words(one.sample.identity))}">'
        f"</span>{'✓' if one.right else '✗'} {one.rank}</li>"
        for one in example.answers
    )
    return f'<p>AP {100 * example.average_precision:.1f}</p><ul class="reid-crops">{query}{answers}</ul>'


def _words(identity: str) -> str:
    return identity or "unknown"
