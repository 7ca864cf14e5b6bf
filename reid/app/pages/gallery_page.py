"""The page "Gallery": what it holds, adding to it, long jobs, and erasing from it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from reid.app import presentation as present
from reid.app.access import require
from reid.app.accounts import Role
from reid.app.camera_jobs import DRIFT, REPORT
from reid.app.duplicates import NEAR, Duplicates, find_duplicates
from reid.app.gallery_changes import ErasureWish, erase, preview_erasure
from reid.app.gallery_counts import count_gallery
from reid.app.gallery_export import FORMATS
from reid.app.gallery_service import GalleryService
from reid.app.job_kinds import submit_job
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.controls import page_html, select_html, text_html, tip_html
from reid.app.pages.crop_cards import crop_of
from reid.app.pages.job_cards import is_working, job_actions, job_html
from reid.errors import DataError
from reid.retrieval.gallery import Gallery

JOBS_SHOWN = 8
CROPS_SHOWN = 12  # of an erasure, before it is done
SOURCES_HELP = (
    "Folders, manifests and videos are read below the folders that were allowed when the program was started"
    " (--import-folder FOLDER)."
)
DUPLICATES_HELP = (
    "Crops whose files have the same content, and crops of one camera whose embeddings are nearly the same. They add"
    " nothing to a search and take places among its answers. Nothing is removed here."
)
GROUPS_SHOWN = 20
EXPORT_HTML = (
    '<section class="reid-card"><h3>Export</h3><p class="reid-soft">All vectors and rows with the paths of the images'
    ', as "reid index export" writes them. The file shows who is in the gallery: keep it safe.</p>'
    '<div class="reid-buttons">'
    + "".join(
        f'<a class="reid-button" href="/api/gallery/export?format={suffix}" download>{words}</a>'
        for suffix, words in FORMATS.items()
    )
    + "</div></section>"
)
KINDS = {
    "add": "Add a folder of crops or a manifest",
    "ingest": "Add the people of a video",
    "identify": "Group the crops into persons",
    "adapt": "Adapt the network to crops of this site",
    "verify": "Check every byte",
    "compact": "Free the room of removed rows",
}
NEEDED = {"add": ("source",), "ingest": ("source", "camera"), "adapt": ("source",)}


class GalleryPage:
    """What the page does.

    Args:
        service: The gallery.
    """

    name = "gallery"
    title = "Gallery"

    def __init__(self, service: GalleryService) -> None:
        self._service = service
        self.actions: Mapping[str, PageAction] = {
            "show": self.show,
            "job": self.start_job,
            "jobs": self.show_jobs,
            "preview": self.preview,
            "duplicates": self.show_duplicates,
            "erase": self.erase,
            **job_actions(service.jobs, lambda: PageParts({"jobs": self._jobs_html()}, again="jobs")),
        }

    def first_html(self) -> str:
        """Return the page; its numbers are read when it is opened."""
        volatile = "data-quiet data-volatile"
        kinds = list(KINDS.items())
        job = (
            select_html("kind", "What to do", kinds, "add", attributes=volatile)
            + text_html("source", "Folder, manifest or video", attributes=volatile)
            + text_html("camera", "Camera (for a video)", attributes=volatile)
            + '<button type="button" class="reid-button reid-strong" data-action="job">Start</button>'
        )
        conditions = (
            text_html("erase_identity", "Identity", attributes=volatile)
            + text_html("erase_person", "Person, such as person-12", attributes=volatile)
            + text_html("erase_camera", "Camera", attributes=volatile)
            + text_html("erase_before", "Taken before", field_type="datetime-local", attributes=volatile)
            + text_html("erase_where", "Any condition, such as track = 't7'", attributes=volatile)
            + '<button type="button" class="reid-button" data-action="preview">Preview</button>'
        )
        content = (
            '<form data-action="show"><div class="reid-result"><div id="reid-gallery-facts">'
            '<p class="reid-soft reid-loading">Reading the gallery…</p></div></div><div class="reid-grid">'
            f'<section class="reid-card"><h3>Add, and other long jobs</h3><div class="reid-filter-fields">{job}</div>'
            f'<p class="reid-hint">{SOURCES_HELP}</p><div id="reid-jobs"></div></section>'
            f'<section class="reid-card"><h3>Erase {tip_html("erasure")}</h3><p class="reid-soft">Rows that fulfil'
            " every condition are removed from the gallery, from its queries and from their files. First look at what"
            f' that is.</p><div class="reid-filter-fields">{conditions}</div><div id="reid-erasure"></div></section>'
            f'<section class="reid-card"><h3>Duplicates</h3><p class="reid-soft">{DUPLICATES_HELP}</p><button'
            ' type="button" class="reid-button" data-action="duplicates">Look for duplicates</button>'
            '<div id="reid-duplicates"></div></section><div id="reid-gallery-export"></div>'
            "</div></form>"
        )
        return page_html("gallery", "Gallery", content, load="show")

    def show(self, _values: PageValues, visit: PageVisit) -> PageParts:
        """Show what the gallery holds, and its jobs."""
        parts = {"gallery-facts": self._facts_html(), "jobs": self._jobs_html()}
        if visit.user.role.includes(Role.ADMIN):
            parts["gallery-export"] = EXPORT_HTML
        return PageParts(parts, status="gallery read", again="jobs" if is_working(self._service.jobs) else "")

    def _facts_html(self) -> str:
        data = self._service.data
        counts, served = count_gallery(data), data.main
        described = self._service.describe()
        rows = {
            "Crops": f"{counts.crops:,}",
            "Identities": f"{counts.identities:,}" if counts.identities else "unknown",
            "Unlabelled crops": f"{counts.unlabelled:,}",
            "Persons": f"{described['persons']:,}" if described["persons"] else "not grouped yet",
            "Cameras": ", ".join(described["cameras"]) or "unknown",
            "Categories": ", ".join(counts.categories),
            "Light": ", ".join(described["modalities"]),
            "Network": served.gallery.fingerprint if served.checkpoint is not None else "none: only its own crops",
        }
        lines = "".join(f"<div><dt>{name}</dt><dd>{present.escape(value)}</dd></div>" for name, value in rows.items())
        return f'<section class="reid-card reid-facts"><h3>{present.escape(counts.name)}</h3><dl>{lines}</dl></section>'

    def start_job(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Put a long job into the queue."""
        require(visit.user, Role.OPERATOR)
        kind = values.text("kind")
        given = {name: values.text(name).strip() for name in NEEDED.get(kind, ())}
        missing = [name for name, value in given.items() if not value]
        if missing:
            raise DataError(f"{KINDS.get(kind, kind)}: fill in the field {missing[0]} first")
        job = submit_job(self._service, visit.user, kind, given)
        return PageParts({"jobs": self._jobs_html()}, status=f"job {job.number} waits", again="jobs")

    def show_jobs(self, _values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the jobs; the page asks again as long as one of them runs."""
        running = is_working(self._service.jobs)
        parts = {"jobs": self._jobs_html()}
        if not running:
            parts["gallery-facts"] = self._facts_html()
        return PageParts(parts, again="jobs" if running else "")

    def _jobs_html(self) -> str:
        jobs = self._service.jobs.jobs()[:JOBS_SHOWN]
        if not jobs:
            return '<p class="reid-soft">No job has run yet.</p>'
        lines = "".join(job_html(self._service.jobs, job, with_result=job.kind not in (REPORT, DRIFT)) for job in jobs)
        return f'<h4>Jobs</h4><ul class="reid-jobs">{lines}</ul>'

    def show_duplicates(self, _values: PageValues, _visit: PageVisit) -> PageParts:
        """List the crops that the gallery holds more than once."""
        gallery = self._service.data.main.gallery
        found = find_duplicates(gallery)
        extra = sum(len(one.rows) - 1 for one in found)
        words = f"{len(found)} groups, {extra} crops more than needed" if found else "No crop is there twice."
        groups = "".join(self._duplicates_html(gallery, one) for one in found[:GROUPS_SHOWN])
        rest = f"<p>The first {GROUPS_SHOWN} groups are shown.</p>" * (len(found) > GROUPS_SHOWN)
        return PageParts({"duplicates": f"<p><b>{words}</b></p>{groups}{rest}"}, status=words)

    def _duplicates_html(self, gallery: Gallery, found: Duplicates) -> str:
        items = []
        for row in found.rows[:CROPS_SHOWN]:
            number = int(gallery.table.row_ids[row])
            crop = crop_of(gallery.table.samples[row], "", gallery, number)
            words = present.escape(present.describe(crop))
            items.append(
                f'<li class="reid-camera"><button type="button" class="reid-more" data-in="search" data-set="query"'
                f' data-value="r{number}"><img src="{crop.uri}" alt="{words}" title="{words}"></button></li>'
            )
        title = f"{len(found.rows)} crops, {found.kind}" + (f" ({found.score:.4f})" if found.kind == NEAR else "")
        return f'<h4>{title}</h4><ul class="reid-crops">{"".join(items)}</ul>'

    def _wish(self, values: PageValues) -> ErasureWish:
        identity, person, camera, before, where = (
            values.text(f"erase_{name}").strip() for name in ("identity", "person", "camera", "before", "where")
        )
        return ErasureWish(identity, person, camera, before, where)

    def preview(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Show what an erasure would remove."""
        require(visit.user, Role.ADMIN)
        found = preview_erasure(self._service, self._wish(values))
        if not found["rows"]:
            return PageParts({"erasure": present.note_html("No row fulfils these conditions.")})
        gallery = self._service.data.main.gallery
        crops = "".join(
            f'<li><img src="{crop.uri}" alt="{present.escape(present.describe(crop))}"></li>'
            for crop in (
                crop_of(self._service.sample_of(number), "", gallery, number) for number in found["crops"][:CROPS_SHOWN]
            )
        )
        rows = found["rows"]
        html = (
            f"<p><b>{rows:,} rows</b> of {found['identities']} identities in cameras"
            f" {present.escape(', '.join(found['cameras']) or 'unknown')} would be erased.</p>"
            f'<ul class="reid-crops">{crops}</ul><button type="button" class="reid-button reid-danger"'
            f' data-action="erase" data-rows="{rows}" data-confirm="Erase {rows} rows for good?">Erase {rows:,} rows'
            "</button>"
        )
        return PageParts({"erasure": html}, status=f"{rows} rows would be erased")

    def erase(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Erase what the preview showed, and show the receipt."""
        require(visit.user, Role.ADMIN)
        done = erase(self._service, visit.user, self._wish(values), values.number("rows", 0))
        receipt = present.escape(json.dumps(done["receipt"], indent=2, default=str))
        html = (
            f"<p><b>{done['rows']:,} rows were erased.</b> The receipt {tip_html('receipt')} names nobody:</p>"
            f'<pre class="reid-receipt" tabindex="0" role="region" aria-label="Receipt">{receipt}</pre>'
        )
        return PageParts({"erasure": html, "gallery-facts": self._facts_html()}, status=f"{done['rows']} rows erased")
