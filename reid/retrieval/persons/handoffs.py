"""Hand-offs between cameras: who left a camera, and where did they appear next?  From times, one person at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.errors import DataError
from reid.records import IntArray, Sample
from reid.retrieval.persons.decisions import person_name

if TYPE_CHECKING:
    from reid.retrieval.persons.person_state import PersonState

VISIT_GAP = 60.0  # seconds without a crop after which somebody has left a camera


@dataclass(frozen=True)
class CameraVisit:
    """A stay of a person in front of one camera.

    Attributes:
        person: The number of the person.
        camera: The camera.
        start: The time of the first crop.
        end: The time of the last crop.
        rows: The gallery rows of its crops, in order of time.
    """

    person: int
    camera: str
    start: datetime
    end: datetime
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Handoff:
    """A person left one camera and appeared in front of another one.

    Attributes:
        left: The visit that ended.
        appeared: The next visit, of another camera; None where the person was not found again.
    """

    left: CameraVisit
    appeared: CameraVisit | None

    @property
    def seconds(self) -> float | None:
        """Seconds from the last crop of the one camera to the first crop of the other; below 0 where they overlap."""
        return None if self.appeared is None else (self.appeared.start - self.left.end).total_seconds()


def find_visits(samples: Sequence[Sample], persons: IntArray, gap: float = VISIT_GAP) -> list[CameraVisit]:
    """Find the visits of all persons.

    Args:
        samples: The crops (N,); those without a time or a camera are passed over.
        persons: (N,) int64, the person of each crop; 0, for an undecided crop, is passed over.
        gap: Seconds without a crop after which somebody has left a camera.

    Returns:
        The visits, ordered by person, then by time.

    Raises:
        DataError: Some times name their zone and others do not, or the gap is negative.

    Example:
        >>> from datetime import datetime, timedelta
        >>> noon = datetime(2024, 5, 1, 12)
        >>> times = [noon, noon + timedelta(seconds=5), noon + timedelta(minutes=9)]
        >>> crops = [Sample("1.jpg", camera="door", time=time) for time in times]
        >>> [visit.rows for visit in find_visits(crops, np.array([1, 1, 1]))]
        [(0, 1), (2,)]
    """
    if not gap >= 0:
        raise DataError(f"visits: expected a gap of at least 0 seconds, got {gap:g}")
    rows = [i for i in np.flatnonzero(persons > 0).tolist() if samples[i].time is not None and samples[i].camera]
    times = {row: _instant(samples[row]) for row in rows}
    zones = {samples[row].time.tzinfo is None for row in rows}  # type: ignore[union-attr]
    if len(zones) > 1:
        raise DataError("visits: some times name their zone and others do not; write all with a zone, or none")
    visits: list[list[int]] = []
    rows.sort(key=lambda row: (persons[row], samples[row].camera, times[row], row))
    for row in rows:
        last = visits[-1][-1] if visits else -1
        same = last >= 0 and persons[last] == persons[row] and samples[last].camera == samples[row].camera
        if same and times[row] - times[last] <= timedelta(seconds=gap):
            visits[-1].append(row)
        else:
            visits.append([row])
    found = [
        CameraVisit(int(persons[v[0]]), samples[v[0]].camera, times[v[0]], times[v[-1]], tuple(v)) for v in visits
    ]  # fmt: skip
    return sorted(found, key=lambda visit: (visit.person, visit.start, visit.end, visit.camera))


def find_handoffs(
    visits: Sequence[CameraVisit], left: str = "", appeared: str = "", within: float | None = None
) -> list[Handoff]:
    """Find who left a camera, and where they appeared next.

    Args:
        visits: The visits, as :func:`find_visits` returns them.
        left: The camera that they left; "" takes any.
        appeared: The camera where they appeared; "" takes any, and those who were not found again.
        within: The most seconds between both; somebody who appears later counts as not found again.

    Returns:
        The hand-offs in the order in which people left.

    Example:
        >>> from datetime import datetime, timedelta
        >>> noon = datetime(2024, 5, 1, 12)
        >>> one = CameraVisit(1, "door", noon, noon, (0,))
        >>> two = CameraVisit(1, "yard", noon + timedelta(minutes=2), noon + timedelta(minutes=3), (1,))
        >>> [(handoff.left.camera, handoff.seconds) for handoff in find_handoffs([one, two], left="door")]
        [('door', 120.0)]
    """
    found = []
    for position, visit in enumerate(visits):
        if left and visit.camera != left:
            continue
        after = visits[position + 1] if position + 1 < len(visits) else None
        if after is not None and after.person != visit.person:
            after = None
        if after is not None and after.camera == visit.camera:
            continue  # back in front of the same camera: nobody has taken over
        handoff = Handoff(visit, after)
        if within is not None and handoff.seconds is not None and handoff.seconds > within:
            handoff = Handoff(visit, None)
        if not appeared or (handoff.appeared is not None and handoff.appeared.camera == appeared):
            found.append(handoff)
    return sorted(found, key=lambda handoff: (handoff.left.end, handoff.left.person))


def _instant(sample: Sample) -> datetime:
    time = sample.time or datetime.min
    return time if time.tzinfo is None else time.astimezone(UTC)


def handoffs_of(
    state: PersonState, left: str = "", appeared: str = "", within: float | None = None, gap: float = VISIT_GAP
) -> list[Handoff]:
    """Find the hand-offs of a gallery, see :func:`find_visits` and :func:`find_handoffs`.

    Raises:
        DataError: No crop with a person has a time.
    """
    samples = state.table.samples_at(np.arange(len(state.persons)))
    visits = find_visits(samples, state.persons, gap)
    if not visits:
        why = (
            "no crop has a person" if not (state.persons > 0).any() else "no crop with a person has a time and a camera"
        )
        raise DataError(f'hand-offs: {why}; run "reid identify" on crops whose manifest has the column time')
    return find_handoffs(visits, left, appeared, within)


def handoff_json(state: PersonState, handoff: Handoff) -> dict[str, Any]:
    """Return a hand-off as JSON values; its confidence is the mean of the crops of both visits."""
    left, next_visit = handoff.left, handoff.appeared
    rows = [*left.rows, *(next_visit.rows if next_visit else ())]
    return {
        "person": person_name(left.person),
        "name": state.names_of_persons.get(left.person, ""),
        "left_camera": left.camera,
        "left_time": left.end.isoformat(),
        "left_path": state.paths[left.rows[-1]],
        "appeared_camera": next_visit.camera if next_visit else None,
        "appeared_time": next_visit.start.isoformat() if next_visit else None,
        "appeared_path": state.paths[next_visit.rows[0]] if next_visit else None,
        "seconds": handoff.seconds,
        "confidence": round(float(state.sureness[rows].mean()), 4),
    }
