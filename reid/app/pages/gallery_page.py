"""The page "Gallery": what it holds, adding to it, long jobs, and erasing from it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from reid.app import presentation as present
from reid.app.access import require
from reid.app.accounts import Role
from reid.app.gallery_changes import ErasureWish, erase, preview_erasure
from reid.app.gallery_counts import count_gallery
from reid.app.gallery_service import GalleryService
from reid.app.job_kinds import submit_job
from reid.app.job_records import Job, JobStatus
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.controls import page_html, select_html, text_html, tip_html
from reid.app.pages.crop_cards import crop_of
from reid.errors import DataError

JOBS_SHOWN = 8
CROPS_SHOWN = 12  # of an erasure, before it is done
SOURCES_HELP = (
    "Folders, manifests and videos are read below the folders that were allowed when the program was started"
    " (--import-folder FOLDER)."
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
VERBS = (("pause", "Pause"), ("resume", "Go on"), ("cancel", "Cancel"))


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
            "erase": self.erase,
            **{verb: self._job_action(verb) for verb, _ in VERBS},
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
            + '<button type="button" class="reid-button" data-action="preview">Preview</button>'
        )
        content = (
            '<form data-action="show"><div class="reid-result"><div id="reid-gallery-facts"><p class="reid-soft">'
            'Reading the gallery…</p></div></div><div class="reid-grid">'
            f'<section class="reid-card"><h3>Add, and other long jobs</h3><div class="reid-filter-fields">{job}</div>'
            f'<p class="reid-hint">{SOURCES_HELP}</p><div id="reid-jobs"></div></section>'
            f'<section class="reid-card"><h3>Erase {tip_html("erasure")}</h3><p class="reid-soft">Rows that fulfil'
            " every condition are removed from the gallery, from its queries and from their files. First look at what"
            f' that is.</p><div class="reid-filter-fields">{conditions}</div><div id="reid-erasure"></div></section>'
            "</div></form>"
        )
        return page_html("gallery", "Gallery", content, load="show")

    def show(self, _values: PageValues, _visit: PageVisit) -> PageParts:
        """Show what the gallery holds, and its jobs."""
        parts = {"gallery-facts": self._facts_html(), "jobs": self._jobs_html()}
        return PageParts(parts, status="gallery read", again="jobs" if self._is_working() else "")

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
        running = self._is_working()
        parts = {"jobs": self._jobs_html()}
        if not running:
            parts["gallery-facts"] = self._facts_html()
        return PageParts(parts, again="jobs" if running else "")

    def _is_working(self) -> bool:
        return any(job.status in (JobStatus.WAITING, JobStatus.RUNNING) for job in self._service.jobs.jobs())

    def _job_action(self, verb: str) -> PageAction:
        def act(values: PageValues, visit: PageVisit) -> PageParts:
            require(visit.user, Role.OPERATOR)
            getattr(self._service.jobs, verb)(values.number("job", 0))
            return PageParts({"jobs": self._jobs_html()}, again="jobs")

        return act

    def _jobs_html(self) -> str:
        jobs = self._service.jobs.jobs()[:JOBS_SHOWN]
        if not jobs:
            return '<p class="reid-soft">No job has run yet.</p>'
        return f'<h4>Jobs</h4><ul class="reid-jobs">{"".join(map(self._job_html, jobs))}</ul>'

    def _job_html(self, job: Job) -> str:
        progress = self._service.jobs.progress(job.number)
        bar = ""
        if progress.share is not None and not job.has_ended:
            left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left is not None else ""
            words = f"{progress.stage} {100 * progress.share:.0f} %{left}"
            label = present.escape(words)
            bar = f'<progress max="1" value="{progress.share:.3f}" aria-label="{label}"></progress>{label}'
        possible = {"waiting": "pause cancel", "running": "pause cancel", "paused": "resume cancel"}
        buttons = "".join(
            f'<button type="button" class="reid-button" data-action="{verb}" data-job="{job.number}">{words}</button>'
            for verb, words in VERBS
            if verb in possible.get(str(job.status), "resume" if str(job.status) in ("failed", "cancelled") else "")
        )
        line = job.message or " ".join(job.result[-1:])
        return (
            f"<li><b>{job.number}. {present.escape(job.title)}</b>: {job.status}. {bar}"
            f'<span class="reid-soft">{present.escape(line)}</span> {buttons}</li>'
        )

    def _wish(self, values: PageValues) -> ErasureWish:
        identity, person, camera, before = (
            values.text(f"erase_{name}").strip() for name in ("identity", "person", "camera", "before")
        )
        return ErasureWish(identity, person, camera, before)

    def preview(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Show what an erasure would remove."""
        require(visit.user, Role.ADMIN)
        found = preview_erasure(self._service, self._wish(values))
        if not found["rows"]:
            return PageParts({"erasure": present.note_html("No row fulfils these conditions.")})
        crops = "".join(
            f'<li><img src="{crop.uri}" alt="{present.escape(present.describe(crop))}"></li>'
            for crop in (crop_of(self._service.sample_of(number), "") for number in found["crops"][:CROPS_SHOWN])
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
