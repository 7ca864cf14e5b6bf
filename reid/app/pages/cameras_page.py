"""The page "Cameras": some crops of each camera, what is known about it, and how alike the cameras are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reid.app import presentation as present
from reid.app.access import require
from reid.app.accounts import Role
from reid.app.camera_jobs import DRIFT, REPORT, CameraAnswer, answers_of
from reid.app.camera_overview import CameraOverview, overview_of
from reid.app.gallery_service import GalleryService
from reid.app.job_kinds import submit_job
from reid.app.job_records import CHANGING, Job, JobStatus
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.controls import page_html, tip_html
from reid.app.pages.crop_cards import crop_of
from reid.app.pages.job_cards import job_actions, job_html
from reid.app.pages.new_camera import ADAPT, NewCameraParts
from reid.evaluation.reports.charts import heat
from reid.records import FloatArray

EXPLANATION = (
    "The same coat looks orange under one lamp, grey at dusk and white in infrared light. A network with ordinary batch"
    " normalization averages these differences into one set of statistics. Camera BN keeps a mean and a variance for"
    " each camera in every normalization layer, so that the differences between cameras become smaller and the identity"
    " remains. A new camera needs no labels: its statistics are measured on its own crops."
)
IN_A_TERMINAL = (
    'A full report with scores before and after calibration: "reid cameras --data MANIFEST"; new statistics: "reid'
    ' calibrate --data MANIFEST", then "reid index add" or "reid index build" with --profiles.'
)
CHECKS = (
    "The verdict says for each camera whether new statistics would help, and why. The check for drift compares the"
    " latest fifth of the crops of each camera, in the order in which they were added, with the earlier ones. Both"
    " measure a sample of the crops, need no labels, and take minutes."
)
ALARMS = ("calibrate", "center", "drifted", "more crops")  # verdicts after which something is to be done
JOBS_SHOWN = 3
SHOWN_KINDS = (REPORT, DRIFT, ADAPT, *CHANGING)
MOST_CAMERAS = 40  # in the table of similarities


class CamerasPage:
    """What the page does.

    Args:
        service: The gallery.
    """

    name = "cameras"
    title = "Cameras"

    def __init__(self, service: GalleryService) -> None:
        self._service = service
        self._data = service.data
        self._network = NewCameraParts(service, self._jobs_shown)
        self.actions: Mapping[str, PageAction] = {
            "show": self.show,
            "judge": self._starter(REPORT),
            "watch": self._starter(DRIFT),
            "jobs": self.show_jobs,
            **self._network.actions,
            **job_actions(service.jobs, self._jobs_shown),
        }

    def first_html(self) -> str:
        """Return the page without cameras, which are read when it is opened."""
        checks = (
            f'<section class="reid-card"><h3>Check the cameras</h3><p class="reid-soft">{CHECKS}</p>'
            '<div class="reid-buttons"><button type="button" class="reid-button reid-strong" data-action="judge">Judge'
            ' every camera</button> <button type="button" class="reid-button" data-action="watch">Look for drift'
            "</button></div></section>"
        )
        content = (
            f'<form data-action="show"></form><details class="reid-card"><summary>Every camera is a domain: why'
            f' cameras are normalized</summary><p class="reid-prose">{EXPLANATION}</p></details>'
            '<div class="reid-result"><div id="reid-cameras"><p class="reid-soft reid-loading">Reading the cameras…</p>'
            f'</div></div><div id="reid-camera-jobs"></div><div class="reid-grid">{checks}{self._network.form_html()}'
            '<div id="reid-network"></div></div>'
        )
        return page_html("cameras", "Cameras", content, load="show")

    def show(self, _values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the cameras."""
        served = self._data.main
        if not len(served.gallery):
            note = present.note_html("This gallery is empty, so it has no cameras yet. Add the first one below.")
            return PageParts({"cameras": note, "camera-jobs": self._jobs_html(), **self._network.parts()})
        cameras, similarity = overview_of(served)
        found = {kind: answers_of(self._service, kind) for kind in (REPORT, DRIFT)}
        cards = "".join(self._card_html(one, _answers_html(found, one.name)) for one in cameras)
        html = f'<div class="reid-grid">{cards}</div>{_matrix_html(cameras, similarity)}'
        parts = {"cameras": html + present.hint_html(IN_A_TERMINAL), "camera-jobs": self._jobs_html()}
        parts |= self._network.parts()
        return PageParts(parts, status=f"{len(cameras)} cameras", again="jobs" if self._is_busy() else "")

    def _starter(self, kind: str) -> PageAction:
        def start(_values: PageValues, visit: PageVisit) -> PageParts:
            require(visit.user, Role.OPERATOR)
            submit_job(self._service, visit.user, kind, {})
            return self._jobs_shown()

        return start

    def _is_busy(self) -> bool:
        return any(not job.has_ended and job.status is not JobStatus.PAUSED for job in self._jobs())

    def _jobs(self) -> list[Job]:
        return [job for job in self._service.jobs.jobs() if job.kind in SHOWN_KINDS][:JOBS_SHOWN]

    def _jobs_shown(self) -> PageParts:
        return PageParts({"camera-jobs": self._jobs_html()}, again="jobs")

    def _jobs_html(self) -> str:
        lines = "".join(job_html(self._service.jobs, job, with_result=False) for job in self._jobs())
        return f'<section class="reid-card"><h3>Jobs</h3><ul class="reid-jobs">{lines}</ul></section>' if lines else ""

    def show_jobs(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Show how far the jobs about cameras are; when they have ended, show what they found."""
        return self._jobs_shown() if self._is_busy() else self.show(values, visit)

    def _card_html(self, camera: CameraOverview, found: str) -> str:
        gallery = self._data.main.gallery
        table = gallery.table
        items = []
        for row in camera.samples:
            number = int(table.row_ids[row])
            crop = crop_of(table.samples[row], "", gallery, number)
            words = present.escape(present.describe(crop))
            items.append(
                f'<li class="reid-camera"><button type="button" class="reid-more" data-in="search" data-set="query"'
                f' data-value="r{number}"><img src="{crop.uri}" alt="{words}" title="{words}"></button></li>'
            )
        times = f", {camera.first} to {camera.last}" if camera.first else ", times unknown"
        times += f"; measured {camera.measured}" if camera.measured else ""
        near = ", ".join(f"{name} ({score:.2f})" for name, score in camera.neighbours)
        return (
            f'<section class="reid-card"><h3>{present.escape(camera.name or "unknown camera")}</h3>'
            f'<p class="reid-soft">{camera.rows:,} crops, {present.escape(camera.modality)}{times}</p>'
            f'<ul class="reid-crops">{"".join(items)}</ul>{found or f"<p>{camera.advice}</p>"}'
            f"{f'<p>Most like it: {present.escape(near)}.</p>' if near else ''}{self._measure_html(camera)}</section>"
        )

    def _measure_html(self, camera: CameraOverview) -> str:
        """Return the button that measures one camera again, where the network has statistics of cameras."""
        checkpoint = self._data.main.checkpoint
        if checkpoint is None or not checkpoint.domain_fields or not camera.name:
            return ""
        return (
            '<button type="button" class="reid-button" data-action="measure"'
            f' data-camera="{present.escape(camera.name)}">Measure it again</button>'
        )


def _answers_html(found: Mapping[str, tuple[Job, list[CameraAnswer]] | None], camera: str) -> str:
    """Return what the latest jobs found about a camera; "" where they found nothing."""
    lines = []
    for job, answers in filter(None, found.values()):
        own = [answer for answer in answers if answer.camera == camera]
        when = f"{job.ended[:16].replace('T', ' ')} UTC"
        for answer in own:
            where = f"{answer.domain}: " if len(own) > 1 else ""
            mark = "reid-is-wrong" if answer.verdict in ALARMS else "reid-is-right"
            lines.append(
                f'<p><span class="reid-chip {mark}">{present.escape(where + answer.verdict)}</span>'
                f' {present.escape(answer.reason)} <span class="reid-soft">({when})</span></p>'
            )
    return "".join(lines)


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
