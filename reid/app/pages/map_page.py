"""The page "Map": the embeddings as points, before and after normalization; points are chosen to search or to group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reid.app import presentation as present
from reid.app.embedding_map import EmbeddingMap, adapted_folder, drawn_rows, maps_of, maps_of_adaptation
from reid.app.gallery_service import GalleryService
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.chosen_crops import ChosenCrops
from reid.app.pages.controls import checkbox_html, hidden_html, page_html, select_html
from reid.app.projections import NotDrawnYetError
from reid.retrieval.row_table import RowTable

SIDE, MARGIN = 420, 12  # of a map, in its own units
COLOURED = 12  # labels that have a colour of their own; the others share one
PALETTE = (
    "#2563eb", "#dc2626", "#15803d", "#c2410c", "#7e22ce", "#0e7490", "#be185d", "#854d0e", "#4d7c0f", "#4338ca",
    "#9f1239", "#115e59",
)  # fmt: skip
OTHER = "#94a3b8"
COLOURS = (("camera", "camera"), ("modality", "light"), ("identity", "identity"), ("person", "person"))
PROJECTION_WORDS = (("pca", "principal components"), ("umap", "UMAP: neighbours stay together"))
DRAWING = (
    "Click a point to search for its crop. Drag over several to choose them. With the keyboard: the arrow keys move a"
    " cross (with Shift further); Space sets the corners of a box or of an outline, Enter closes an outline or searches"
    " for the crop under the cross, Escape gives up."
)
SHAPES = (("box", "a box"), ("outline", "a free outline"))
COMPUTING = (
    "Computing the map in the background. The first one takes about a minute; the page shows it as soon as it is there."
)
ALIKE = 0.005  # difference of two shares of variance that nobody sees
SAME_MAPS = (
    "Both maps are alike, because the network of this gallery already takes the means of the cameras out of its"
    " embeddings, or because the cameras differ little."
)
READING = (
    "Each point is a crop; near points are alike. Where points of one camera lie together whatever they show, the"
    " camera decides, and where points of one identity lie together, the identity does."
)


class MapPage:
    """What the page does.

    Args:
        service: The gallery.
    """

    name = "map"
    title = "Map"

    def __init__(self, service: GalleryService) -> None:
        self._data = service.data
        self._persons = service.persons
        self._chosen = ChosenCrops(service)
        self.actions: Mapping[str, PageAction] = {
            "show": self.show, "choose": self._chosen.show, "group": self._chosen.group,
        }  # fmt: skip

    def first_html(self) -> str:
        """Return the page without points, which are computed when it is opened."""
        categories = [(name, name) for name in self._data.main.categories or ("person",)]
        fields = select_html("colour", "Colour", COLOURS, self._first_colour(), tip="camera", id_prefix="map-")
        fields += select_html("projection", "Projection", PROJECTION_WORDS, "pca", id_prefix="map-")
        if len(categories) > 1:
            fields += select_html("category", "Category", categories, categories[0][0], id_prefix="map-")
        if any(one.is_compared for one in self._data.galleries):
            fields += checkbox_html("networks", "Small networks: camera BN and plain BN", False)
        if adapted_folder(self._data) is not None:
            fields += checkbox_html("adapted", "Before and after adaptation", False)
        quiet = "data-quiet data-volatile"
        shape = select_html("shape", "Dragging draws", SHAPES, "box", attributes=quiet, id_prefix="map-")
        adds = checkbox_html("adds", "Add to the chosen crops", False, attributes=quiet)
        finger = checkbox_html("finger", "Draw with a finger", False, attributes=quiet)
        content = (
            f'<form data-action="show">{hidden_html("rows", "", "data-list data-volatile")}<div class="reid-card">'
            f'<p>{READING}</p><div class="reid-filter-fields">{fields}{shape}<span>{adds}'
            f'<span class="reid-for-fingers">{finger}</span></span></div>'
            f'<p class="reid-hint" id="reid-map-keys">{DRAWING}</p></div>'
            '<div id="reid-map"><p class="reid-soft reid-loading">Drawing the map…</p></div>'
            '<p class="reid-soft" data-map-status role="status"></p>'
            '<div class="reid-result" id="reid-map-chosen" data-reveal="end"></div></form>'
        )
        return page_html("map", "Map", content, load="show")

    def _first_colour(self) -> str:
        """Return what tells points apart at first: cameras, where there are several, else identities or persons."""
        table = self._data.main.gallery.table
        if sum(map(bool, table.distinct("camera"))) > 1:
            return "camera"
        return "identity" if any(table.distinct("identity")) else "person"

    def show(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the maps, coloured as the page asks; the page asks again as long as they are computed."""
        served = self._data.main
        category = values.text("category") or (served.categories or ("person",))[0]
        rows, projection = drawn_rows(served, category), values.text("projection", "pca")
        adapted = adapted_folder(self._data) if values.flag("adapted") else None
        compare = values.flag("networks") and adapted is None
        try:
            if adapted is not None:
                maps, rows = maps_of_adaptation(served, rows, adapted, projection)
            else:
                maps = maps_of(self._data, rows, compare=compare, projection=projection)
        except NotDrawnYetError:
            return PageParts({"map": f'<p class="reid-soft reid-loading">{COMPUTING}</p>'}, again="show")
        table = served.gallery.table.take(rows)
        labels = self._labels(table, rows.tolist(), values.text("colour", self._first_colour()))
        html = _maps_html(maps, labels, table)
        shares = [one.camera_share for one in maps]
        if adapted is None and not compare and max(shares) - min(shares) < ALIKE:
            html += present.note_html(SAME_MAPS)
        return PageParts({"map": html}, status=f"{len(rows)} points")

    def _labels(self, table: RowTable, rows: Sequence[int], colour: str) -> list[str]:
        if colour == "person":
            state = self._persons.current()
            if state is None:
                return [""] * len(table)
            every = state.labels()
            return [every[row] for row in rows]
        codes, words = table.codes(colour if colour in ("modality", "identity") else "camera")
        return [words[code] for code in codes.tolist()]


def _maps_html(maps: Sequence[EmbeddingMap], labels: Sequence[str], table: RowTable) -> str:
    counts = {name: labels.count(name) for name in dict.fromkeys(labels) if name}
    largest = sorted(counts, key=lambda name: (-counts[name], name))[:COLOURED]
    colours = {name: PALETTE[position] for position, name in enumerate(sorted(largest))}
    drawn = "".join(_map_html(one, labels, colours, table) for one in maps)
    keys = "".join(
        f'<li><span class="reid-dot" style="background: {colour}"></span>{present.escape(name)}</li>'
        for name, colour in colours.items()
    )
    rest = f'<li><span class="reid-dot" style="background: {OTHER}"></span>others or unknown</li>'
    return f'<div class="reid-map">{drawn}</div><ul class="reid-legend">{keys}{rest}</ul>'


def _map_html(drawn: EmbeddingMap, labels: Sequence[str], colours: Mapping[str, str], table: RowTable) -> str:
    across = MARGIN + drawn.points[:, 0] * (SIDE - 2 * MARGIN)
    down = SIDE - MARGIN - drawn.points[:, 1] * (SIDE - 2 * MARGIN)
    points = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colours.get(label, OTHER)}" fill-opacity="0.8"'
        f' data-in="search" data-set="query" data-value="r{number}">'
        f"<title>{present.escape(label or 'unknown')}</title></circle>"
        for x, y, label, number in zip(across.tolist(), down.tolist(), labels, table.row_ids.tolist(), strict=True)
    )
    words = f"{drawn.title}: {len(labels)} crops; cameras explain {100 * drawn.camera_share:.0f} % of the variance"
    return (
        f'<figure class="reid-card"><figcaption><h3>{present.escape(drawn.title)}</h3><p class="reid-soft">'
        f"Cameras explain {100 * drawn.camera_share:.0f} % of the variance.</p></figcaption>"
        f'<svg viewBox="0 0 {SIDE} {SIDE}" data-select tabindex="0" role="application" aria-describedby="reid-map-keys"'
        f' aria-roledescription="map" aria-label="{present.escape(words)}">{points}</svg></figure>'
    )
