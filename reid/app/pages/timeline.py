"""Where and when a person was: a line for each camera, a bar for each stay."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from reid.app.presentation import escape, note_html
from reid.records import Sample
from reid.retrieval.persons.handoffs import CameraVisit

WIDTH, LEFT, LINE = 680, 90, 26  # pixels
NARROWEST = 5.0  # pixels of the bar of a short stay
NO_TIMES = "No crop of it has a time, so there is no timeline; the column time of a manifest gives times."


def timeline_html(title: str, samples: Sequence[Sample], visits: Sequence[CameraVisit]) -> str:
    """Draw the stays of a person.

    Args:
        title: The person.
        samples: Its crops with known times.
        visits: Its stays in front of cameras.
    """
    if not visits:
        return note_html(NO_TIMES)
    cameras = sorted({visit.camera for visit in visits})
    start, end = min(visit.start for visit in visits), max(visit.end for visit in visits)
    span = max((end - start).total_seconds(), 1.0)
    height = LINE * len(cameras) + 40

    def across(time: datetime) -> float:
        return LEFT + (WIDTH - LEFT - 12) * (time - start).total_seconds() / span

    lines = "".join(
        f'<text x="4" y="{LINE * n + 18}">{escape(camera or "unknown")}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{LINE * n + 14}" y2="{LINE * n + 14}" stroke="var(--line)"/>'
        for n, camera in enumerate(cameras)
    )
    bars = "".join(
        f'<rect x="{across(visit.start):.1f}" y="{LINE * cameras.index(visit.camera) + 6}" height="16" rx="3"'
        f' width="{max(across(visit.end) - across(visit.start), NARROWEST):.1f}" fill="var(--accent)"><title>'
        f"{escape(visit.camera)}, {visit.start:%d %b %H:%M:%S} to {visit.end:%H:%M:%S}, {len(visit.rows)} crops"
        "</title></rect>"
        for visit in visits
    )
    ends = (
        f'<text x="{LEFT}" y="{height - 10}">{start:%d %b %H:%M}</text>'
        f'<text x="{WIDTH - 8}" y="{height - 10}" text-anchor="end">{end:%d %b %H:%M}</text>'
    )
    words = f"{escape(title)}: {len(samples)} crops in {len(cameras)} cameras, {len(visits)} stays"
    return (
        f'<figure class="reid-timeline"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{words}">'
        f"{lines}{bars}{ends}</svg></figure>"
    )
