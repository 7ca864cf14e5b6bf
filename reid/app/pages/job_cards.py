"""Long jobs as every page shows them, and what a visitor does with them."""

from __future__ import annotations

from collections.abc import Callable

from reid.app.access import require
from reid.app.accounts import Role
from reid.app.job_queue import JobQueue
from reid.app.job_records import Job, JobStatus
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.presentation import escape

VERBS = (("pause", "Pause"), ("resume", "Go on"), ("cancel", "Cancel"))
POSSIBLE = {
    JobStatus.WAITING: "pause cancel",
    JobStatus.RUNNING: "pause cancel",
    JobStatus.PAUSED: "resume cancel",
    JobStatus.FAILED: "resume",
    JobStatus.CANCELLED: "resume",
}


def is_working(queue: JobQueue) -> bool:
    """Whether a job waits or runs."""
    return any(job.status in (JobStatus.WAITING, JobStatus.RUNNING) for job in queue.jobs())


def job_html(queue: JobQueue, job: Job, *, with_result: bool = True) -> str:
    """Return one job: how far it is, the last line that it printed, and buttons for what can be done with it."""
    progress = queue.progress(job.number)
    bar = ""
    if progress.share is not None and not job.has_ended:
        left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left is not None else ""
        label = escape(f"{progress.stage} {100 * progress.share:.0f} %{left}")
        bar = f'<progress max="1" value="{progress.share:.3f}" aria-label="{label}"></progress>{label}'
    buttons = "".join(
        f'<button type="button" class="reid-button" data-action="{verb}" data-job="{job.number}">{words}</button>'
        for verb, words in VERBS
        if verb in POSSIBLE.get(job.status, "").split()
    )
    line = job.message or (" ".join(job.result[-1:]) if with_result else "")
    return (
        f"<li><b>{job.number}. {escape(job.title)}</b>: {job.status}. {bar}"
        f'<span class="reid-soft">{escape(line)}</span> {buttons}</li>'
    )


def job_actions(queue: JobQueue, shown: Callable[[], PageParts]) -> dict[str, PageAction]:
    """Return the actions by which a page pauses, resumes and cancels jobs; ``shown`` returns what it shows then."""

    def action(verb: str) -> PageAction:
        def act(values: PageValues, visit: PageVisit) -> PageParts:
            require(visit.user, Role.OPERATOR)
            getattr(queue, verb)(values.number("job", 0))
            return shown()

        return act

    return {verb: action(verb) for verb, _ in VERBS}
