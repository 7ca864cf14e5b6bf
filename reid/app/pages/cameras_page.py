"""The page "Cameras": some crops of each camera, what is known about it, and how alike the cameras are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reid.app import presentation as present
from reid.app.camera_overview import CameraOverview, overview_of
from reid.app.gallery_service import GalleryService
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.controls import page_html, tip_html
from reid.app.pages.crop_cards import crop_of
from reid.evaluation.reports.charts import heat
from reid.records import FloatArray

EXPLANATION = (
    "The same coat looks orange under one lamp, grey at dusk and white in infrared light. A network with ordinary batch"
    " normalization averages these differences into one set of statistics. Camera BN keeps a mean and a variance for"
    " each camera in every normalization layer, so that the differences between cameras become smaller and the identity"
    " remains. A new camera needs no labels: its statistics are measured on its own crops."
)
REPORT = (
    'A full report with scores before and after calibration: "reid cameras --data MANIFEST"; new statistics: "reid'
    ' calibrate --data MANIFEST", then "reid index add" or "reid index build" with --profiles.'
)
MOST_CAMERAS = 40  # in the table of similarities


class CamerasPage:
    """What the page does.

    Args:
        service: The gallery.
    """

    name = "cameras"
    title = "Cameras"

    def __init__(self, service: GalleryService) -> None:
        self._data = service.data
        self.actions: Mapping[str, PageAction] = {"show": self.show}

    def first_html(self) -> str:
        """Return the page without cameras, which are read when it is opened."""
        content = (
            f'<form data-action="show"></form><div class="reid-card"><h3>Every camera is a domain</h3>'
            f'<p class="reid-prose">{EXPLANATION}</p></div>'
            '<div class="reid-result"><div id="reid-cameras"><p class="reid-soft">Reading the cameras…</p></div></div>'
        )
        return page_html("cameras", "Cameras", content, load="show")

    def show(self, _values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the cameras."""
        served = self._data.main
        if not len(served.gallery):
            return PageParts({"cameras": present.note_html("This gallery is empty, so it has no cameras yet.")})
        cameras, similarity = overview_of(served)
        cards = "".join(map(self._card_html, cameras))
        html = f'<div class="reid-grid">{cards}</div>{_matrix_html(cameras, similarity)}'
        return PageParts({"cameras": html + present.hint_html(REPORT)}, status=f"{len(cameras)} cameras")

    def _card_html(self, camera: CameraOverview) -> str:
        table = self._data.main.gallery.table
        items = []
        for row in camera.samples:
            crop, number = crop_of(table.samples[row], ""), int(table.row_ids[row])
            words = present.escape(present.describe(crop))
            items.append(
                f'<li class="reid-camera"><button type="button" class="reid-more" data-in="search" data-set="query"'
                f' data-value="r{number}"><img src="{crop.uri}" alt="{words}" title="{words}"></button></li>'
            )
        times = f", {camera.first} to {camera.last}" if camera.first else ", times unknown"
        near = ", ".join(f"{name} ({score:.2f})" for name, score in camera.neighbours)
        return (
            f'<section class="reid-card"><h3>{present.escape(camera.name or "unknown camera")}</h3>'
            f'<p class="reid-soft">{camera.rows:,} crops, {present.escape(camera.modality)}{times}</p>'
            f'<ul class="reid-crops">{"".join(items)}</ul><p>{camera.advice}</p>'
            f"{f'<p>Most like it: {present.escape(near)}.</p>' if near else ''}</section>"
        )


def _matrix_html(cameras: Sequence[CameraOverview], similarity: FloatArray) -> str:
    shown = cameras[:MOST_CAMERAS]
    if len(shown) < 2:
        return ""
    others = [float(similarity[i, j]) for i in range(len(shown)) for j in range(len(shown)) if i != j]
    low, high = min(others), max(others)
    head = "".join(f'<th scope="col">{present.escape(one.name or "?")}</th>' for one in shown)
    rows = []
    for i, one in enumerate(shown):
        cells = "".join(
            "<td></td>"
            if i == j
            else f'<td style="{heat(float(similarity[i, j]), low, high)}">{similarity[i, j]:.2f}</td>'
            for j in range(len(shown))
        )
        rows.append(f'<tr><th scope="row">{present.escape(one.name or "?")}</th>{cells}</tr>')
    return (
        f'<section class="reid-card"><h3>How alike the cameras are {tip_html("center")}</h3><p class="reid-soft">The'
        " similarity of the mean embeddings. Pale pairs are far apart: there, normalization helps most.</p>"
        '<div class="reid-table" tabindex="0" role="region" aria-label="How alike the cameras are"><table><thead><tr>'
        f'<th scope="col">Camera</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>'
    )
