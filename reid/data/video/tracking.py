"""Boxes of one frame after the other become tracks: the same person for as long as boxes overlap.

Two rounds a frame as in ByteTrack (Zhang et al., ECCV 2022, arXiv 2110.06864): strong boxes continue tracks first,
weak ones continue what is left, and only strong ones begin a track.  Association is greedy by overlap, motion is a
straight line.  Looks are never compared: two people who cross while hidden may swap, and one who comes back after
``PATIENCE`` is a new track.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reid.records import FloatArray

OVERLAP = 0.3  # intersection over union from which a box continues a track
PATIENCE = 1.0  # seconds for which a track is looked for after it was last seen
WEAK = 0.5  # a box of this share of the least score may continue a track
_MEMORY = 5  # sightings that the velocity is taken from: a detector's boxes tremble


@dataclass(frozen=True)
class FrameDetections:
    """One frame that was looked at: ``boxes`` (N, 5) float32: left, top, right, bottom in pixels, score."""

    frame: int
    seconds: float
    boxes: FloatArray


@dataclass(frozen=True)
class Sighting:
    """One box of a track, without its score.  Tracks count from 1 in the order in which they begin."""

    track: int
    frame: int
    seconds: float
    box: tuple[float, float, float, float]
    score: float


@dataclass
class _Track:
    number: int
    seen: list[Sighting] = field(default_factory=list)

    def expected(self, seconds: float) -> FloatArray:
        """(4,) float32: the last box, moved on as its middle moved over the last sightings."""
        last, first = self.seen[-1], self.seen[-_MEMORY:][0]
        now, before = np.array(last.box, np.float32), np.array(first.box, np.float32)
        if last.seconds <= first.seconds:
            return now
        share = (seconds - last.seconds) / (last.seconds - first.seconds)
        step = (now[:2] + now[2:] - before[:2] - before[2:]) / 2 * share
        return np.asarray(now + np.concatenate([step, step]), np.float32)


def overlaps(first: FloatArray, second: FloatArray) -> FloatArray:
    """(N, 4) and (M, 4) to float32 (N, M): intersection over union of each pair, 0 where both are empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:4], second[None, :, 2:4])
    shared = np.prod(np.maximum(high - low, 0), axis=2)  # (N, M)
    areas = [np.prod(np.maximum(boxes[:, 2:4] - boxes[:, :2], 0), axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    ratio: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def track(looks: Iterable[FrameDetections], min_score: float) -> list[Sighting]:
    """Every box that belongs to a track, in the order of ``looks``, within a look by track.

    A box of ``min_score`` or more is strong, one of half of that or more is weak.
    """
    alive: list[_Track] = []
    found: list[Sighting] = []
    begun = 0
    for look in looks:
        alive = [one for one in alive if look.seconds - one.seen[-1].seconds <= PATIENCE]
        strong = look.boxes[:, 4] >= min_score
        weak = ~strong & (look.boxes[:, 4] >= WEAK * min_score)
        taken: dict[int, _Track] = {}
        for rows in (np.flatnonzero(strong), np.flatnonzero(weak)):
            free = [one for one in alive if one not in taken.values()]
            taken |= _continued(free, look, rows.tolist())
        for row in np.flatnonzero(strong).tolist():
            if row not in taken:
                begun += 1
                taken[row] = _Track(begun)
                alive.append(taken[row])
        for row, one in sorted(taken.items(), key=lambda pair: pair[1].number):
            left, top, right, bottom, score = look.boxes[row].tolist()
            one.seen.append(Sighting(one.number, look.frame, look.seconds, (left, top, right, bottom), score))
            found.append(one.seen[-1])
    return found


def _continued(tracks: Sequence[_Track], look: FrameDetections, rows: Sequence[int]) -> dict[int, _Track]:
    """Which of the boxes ``rows`` continues which track: the greatest overlap first, then the older track."""
    if not tracks or not rows:
        return {}
    expected = np.stack([one.expected(look.seconds) for one in tracks])
    values = overlaps(expected, look.boxes[list(rows), :4])  # (tracks, rows)
    taken: dict[int, _Track] = {}
    used: set[int] = set()
    for place in np.argsort(-values, axis=None, kind="stable").tolist():
        which, column = divmod(place, len(rows))
        if values[which, column] < OVERLAP:
            break
        if which not in used and rows[column] not in taken:
            used.add(which)
            taken[rows[column]] = tracks[which]
    return taken


def chosen(
    sightings: Iterable[Sighting], *, min_score: float, min_height: float, min_track: int, most: int
) -> list[Sighting]:
    """At most ``most`` strong, tall sightings of each track, spread evenly over it, by track and frame.

    A track of fewer than ``min_track`` sightings is left out: detectors err most often for a moment.
    """
    tracks: dict[int, list[Sighting]] = {}
    for sighting in sightings:
        tracks.setdefault(sighting.track, []).append(sighting)
    picked: list[Sighting] = []
    for number in sorted(tracks):
        good = [s for s in tracks[number] if s.score >= min_score and s.box[3] - s.box[1] >= min_height]
        if len(tracks[number]) >= min_track and good:
            places = np.linspace(0, len(good) - 1, min(most, len(good))).round().astype(int)
            picked += [good[place] for place in places.tolist()]
    return picked
