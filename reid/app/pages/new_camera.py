"""The parts of the page "Cameras" that change the network: a new camera, measuring, adapting, and the undo of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reid.app import presentation as present
from reid.app.access import require
from reid.app.accounts import Role
from reid.app.change_jobs import ADAPTED, ADVISED, FEWEST
from reid.app.change_neighbours import NeighboursOfCrop, neighbours_of_change
from reid.app.gallery_service import GalleryService
from reid.app.job_kinds import submit_job
from reid.app.job_records import CALIBRATE, CAMERA, CHANGING, SWITCH, UNDO, JobStatus
from reid.app.network_changes import NetworkChange, find_change, network_changes
from reid.app.new_crops import NewCamera, discard_new_crops, waiting_cameras
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.controls import select_html, text_html, tip_html
from reid.app.pages.crop_cards import crop_of
from reid.errors import DataError
from reid.records import Sample

ADAPT = "adapt"  # the kind of the job
SHOWN = 12  # crops of a camera that wait
CHANGES_SHOWN = 5
ADDING = (
    f"Write its name, then drop crops of it here: at least {FEWEST}, better {ADVISED} or more, of several people."
    " They need no labels. Nothing is added before you say so."
)
WITHOUT_STATISTICS = (
    "The network of this gallery has one set of statistics for all cameras, so the crops are added without measuring."
)
ADAPTING = (
    "Adapting trains the network on the crops of this gallery, without labels. It takes minutes to hours and makes a"
    " second gallery beside this one; the page Map compares both. Then this gallery can take the adapted network over,"
    " for which every crop is embedded again."
)
LIGHTS = (("", "guess from the crops"), ("visible", "visible"), ("infrared", "infrared"))


class NewCameraParts:
    """What the page shows and does about changes of the network.

    Args:
        service: The gallery.
        jobs_shown: Returns the parts of the page that show its jobs.
    """

    def __init__(self, service: GalleryService, jobs_shown: Callable[[], PageParts]) -> None:
        self._service = service
        self._jobs_shown = jobs_shown
        self.actions: Mapping[str, PageAction] = {
            "waiting": self.show_waiting,
            "add": self.add,
            "discard": self.discard,
            "measure": self.measure,
            "adapt": self._starter(ADAPT),
            "switch": self._starter(SWITCH),
            "undo": self._starter(UNDO),
            "neighbours": self.show_neighbours,
        }

    def form_html(self) -> str:
        """Return the card by which a camera is added, and the one about the network."""
        volatile = "data-quiet data-volatile"
        categories = [(name, name) for name in self._service.data.main.categories or ("person",)]
        fields = text_html("new_camera", "Name of the new camera", attributes=volatile)
        if len(categories) > 1:
            fields += select_html("new_category", "What the crops show", categories, categories[0][0], tip="category",
                                  attributes=volatile)  # fmt: skip
        fields += select_html("new_light", "Light", LIGHTS, "", tip="modality", attributes=volatile)
        source = text_html("new_source", "or a folder of the server", attributes=volatile)
        fields += source if self._service.sources else ""
        return (
            f'<section class="reid-card"><h3>Add a camera {tip_html("unknown camera")}</h3>'
            f'<p class="reid-soft">{ADDING}</p><div class="reid-filter-fields">{fields}</div><label class="reid-drop"'
            f' data-stage="{present.escape(categories[0][0])}">Choose or drop crops'
            ' of this camera<input type="file" accept="image/*" multiple data-stage aria-label="Choose crops of the new'
            ' camera"></label><p class="reid-soft" id="reid-stage-status" role="status"></p><div id="reid-waiting">'
            "</div></section>"
        )

    def parts(self) -> dict[str, str]:
        """Return the HTML of the parts that change."""
        return {"waiting": self._waiting_html(), "network": self._network_html()}

    def show_waiting(self, _values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the crops that wait."""
        return PageParts({"waiting": self._waiting_html()})

    def _waiting_html(self) -> str:
        service = self._service
        busy = any(job.kind in CHANGING and not job.has_ended for job in service.jobs.jobs())
        cards = "".join(_waiting_camera_html(one, busy=busy) for one in waiting_cameras(service))
        add = (
            '<div class="reid-buttons"><button type="button" class="reid-button reid-strong" data-action="add">Measure'
            " and add the folder</button></div>"
            if service.sources and not cards and not busy
            else ""
        )
        checkpoint = service.data.main.checkpoint
        plain = checkpoint is not None and not checkpoint.domain_fields
        return cards + add + (present.hint_html(WITHOUT_STATISTICS) if plain else "")

    def add(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Put the job into the queue that measures a camera and adds its crops."""
        require(visit.user, Role.OPERATOR)
        camera = values.text("camera") or values.text("new_camera").strip()
        if not camera:
            raise DataError("write the name of the new camera first")
        wish = {
            "camera": camera,
            "category": values.text("category") or values.text("new_category") or self._first_category(),
            "modality": values.text("new_light"),
            "source": values.text("new_source").strip(),
        }
        submit_job(self._service, visit.user, CAMERA, wish)
        return self._started()

    def _first_category(self) -> str:
        return (self._service.data.main.categories or ("person",))[0]

    def discard(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Delete the crops of a camera that wait."""
        require(visit.user, Role.OPERATOR)
        done = discard_new_crops(self._service, visit.user, values.text("camera"), values.text("category", "person"))
        return PageParts({"waiting": self._waiting_html()}, status=f"{done['discarded']} crops deleted")

    def measure(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Measure one camera of the gallery again, or all of them."""
        require(visit.user, Role.OPERATOR)
        submit_job(self._service, visit.user, CALIBRATE, {"camera": values.text("camera")})
        return self._started()

    def _starter(self, kind: str) -> PageAction:
        def start(_values: PageValues, visit: PageVisit) -> PageParts:
            require(visit.user, Role.OPERATOR)
            submit_job(self._service, visit.user, kind, {})
            return self._started()

        return start

    def _started(self) -> PageParts:
        shown = self._jobs_shown()
        return PageParts({**shown.parts, **self.parts()}, again=shown.again, status="the job waits")

    def _network_html(self) -> str:
        service = self._service
        if service.data.main.checkpoint is None:
            return ""
        adapted = (service.state_folder / ADAPTED).is_file()
        take = _button("switch", "Take the adapted network", confirm="Embed every crop again with the adapted network?")
        changes = network_changes(service)[:CHANGES_SHOWN]
        undo = next((one for one in changes if one.job is not None and one.has_ended and not one.undone), None)
        lines = "".join(_change_html(one, can_be_undone=one is undo) for one in changes)
        return (
            f'<section class="reid-card"><h3>The network {tip_html("statistics")}</h3>'
            f'<p class="reid-soft">{ADAPTING}</p><div class="reid-buttons">'
            f"{_button('measure', 'Measure every camera')} {_button('adapt', 'Adapt to this site')} {take * adapted}"
            f"</div>{f'<h4>Changes</h4><ul class=reid-jobs>{lines}</ul>' if lines else ''}"
            '<div id="reid-neighbours"></div></section>'
        )

    def show_neighbours(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the neighbours of some crops of a camera before and after a change."""
        change = find_change(self._service, values.number("change", 0))
        found = neighbours_of_change(self._service, change)
        rows = "".join(self._neighbours_html(one) for one in found)
        words = f"Nearest crops of other cameras to some of {change.camera}"
        html = f'<h4>{present.escape(words)}</h4><div class="reid-neighbours">{rows}</div>'
        return PageParts({"neighbours": html}, status=words)

    def _neighbours_html(self, one: NeighboursOfCrop) -> str:
        first = self._crop_html(one.row, "")
        lines = []
        for title, near in (("Before", one.before), ("After", one.after)):
            crops = "".join(self._crop_html(row, f"{score:.2f}") for row, score in near)
            lines.append(f'<div><b>{title}</b><ul class="reid-crops">{crops}</ul></div>')
        return f'<div class="reid-before-after"><ul class="reid-crops">{first}</ul><div>{"".join(lines)}</div></div>'

    def _crop_html(self, row: int, score: str) -> str:
        gallery = self._service.data.main.gallery
        number = int(gallery.table.row_ids[row])
        return _image_html(
            gallery.table.samples[row], score, number, crop_of(gallery.table.samples[row], "", gallery, number)
        )


def _image_html(sample: Sample, score: str, number: int, crop: present.Crop) -> str:
    words = present.escape(f"{sample.camera}{f', score {score}' if score else ''}")
    return (
        f'<li class="reid-camera"><button type="button" class="reid-more" data-in="search" data-set="query"'
        f' data-value="r{number}"><img src="{crop.uri}" alt="{words}" title="{words}"></button>'
        f"{f'<span class=reid-soft>{score}</span>' if score else ''}</li>"
    )


def _waiting_camera_html(one: NewCamera, *, busy: bool) -> str:
    """Return a camera whose crops wait; nothing can be done with them while a job changes the network."""
    images = "".join(
        f'<li><img src="{crop_of(Sample(path, "", one.camera), "").uri}" alt="a crop that waits"></li>'
        for path in one.crops[:SHOWN]
    )
    few = len(one.crops) < FEWEST
    advice = (
        f" {FEWEST - len(one.crops)} more are needed."
        if few
        else f" {ADVISED} or more give better statistics." * (len(one.crops) < ADVISED)
    )
    if busy:
        return (
            f"<h4>{present.escape(one.camera)}</h4><p>{len(one.crops)} crops wait for the job that changes the"
            f' network.</p><ul class="reid-crops">{images}</ul>'
        )
    facts = f'data-camera="{present.escape(one.camera)}" data-category="{present.escape(one.category)}"'
    return (
        f"<h4>{present.escape(one.camera)}</h4>"
        f"<p>{len(one.crops)} crops of category {present.escape(one.category)} wait.{advice}</p>"
        f'<ul class="reid-crops">{images}</ul><div class="reid-buttons"><button type="button"'
        f' class="reid-button reid-strong" data-action="add" {facts}{" disabled" * few}>Measure and add</button>'
        f' <button type="button" class="reid-button" data-action="discard" {facts} data-confirm="Delete these'
        f' {len(one.crops)} crops?">Discard</button></div>'
    )


def _change_html(change: NetworkChange, *, can_be_undone: bool) -> str:
    status = str(change.to_json()["status"])
    is_done = change.job is not None and change.job.status is JobStatus.DONE and not change.undone
    buttons = ""
    if is_done and change.camera:
        buttons += f' <button type="button" class="reid-button" data-action="neighbours" data-change="{change.number}">'
        buttons += "Before and after</button>"
    if can_be_undone:
        buttons += " " + _button("undo", "Undo", confirm=f"Undo: {change.title}?")
    return f"<li><b>{present.escape(change.title)}</b>: {status}.{buttons}</li>"


def _button(action: str, words: str, *, confirm: str = "") -> str:
    asks = f' data-confirm="{present.escape(confirm)}"' if confirm else ""
    return f'<button type="button" class="reid-button" data-action="{action}"{asks}>{words}</button>'
