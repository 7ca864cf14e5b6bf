"""Join the boxes of successive frames to tracks of the same person.

There are two rounds for each frame, as in ByteTrack (Zhang et al., ECCV 2022, arXiv 2110.06864): boxes with high scores
continue tracks first, boxes with low scores continue the tracks that remain, and only boxes with high scores begin a
track.  Boxes are assigned greedily by overlap, and motion is a straight line.  Appearance is not compared: two people
who cross while one is hidden may exchange their tracks, and a person who comes back after ``PATIENCE`` begins a new
track.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reid.records import FloatArray

OVERLAP = 0.3  # intersection over union from which a box continues a track
PATIENCE = 1.0  # seconds after its last box for which a track can be continued
WEAK = 0.5  # a box with this share of the least score may continue a track
_MEMORY = 5  # boxes from which the velocity is estimated, because a detector's boxes tremble


@dataclass(frozen=True)
class FrameDetections:
    """The boxes of one frame.

    Args:
        frame: The number of the frame.
        seconds: Its time.
        boxes: (N, 5) float32, left, top, right, bottom in pixels and score.
    """

    frame: int
    seconds: float
    boxes: FloatArray


@dataclass(frozen=True)
class TrackedBox:
    """One box of a track.

    Args:
        track: The number of the track; tracks are counted from 1 in the order in which they begin.
        frame: The number of the frame.
        seconds: Its time.
        box: Left, top, right and bottom in pixels.
        score: The score of the detector.
    """

    track: int
    frame: int
    seconds: float
    box: tuple[float, float, float, float]
    score: float


@dataclass
class _Track:
    number: int
    boxes: list[TrackedBox] = field(default_factory=list)

    def predict(self, seconds: float) -> FloatArray:
        """Move the last box (4,) float32 as its centre moved over the last boxes."""
        last, first = self.boxes[-1], self.boxes[-_MEMORY:][0]
        now, before = np.array(last.box, np.float32), np.array(first.box, np.float32)
        if last.seconds <= first.seconds:
            return now
        share = (seconds - last.seconds) / (last.seconds - first.seconds)
        step = (now[:2] + now[2:] - before[:2] - before[2:]) / 2 * share
        return np.asarray(now + np.concatenate([step, step]), np.float32)


def overlaps(first: FloatArray, second: FloatArray) -> FloatArray:
    """Compute the intersection over union of each pair of boxes.

    Args:
        first: (N, 4) or more columns, of which the first four are left, top, right, bottom.
        second: (M, 4).

    Returns:
        (N, M) float32; 0 where both boxes are empty.

    Example:
        >>> box = np.array([[0, 0, 2, 2]], np.float32)
        >>> overlaps(box, np.array([[0, 0, 2, 1], [5, 5, 6, 6]], np.float32)).tolist()
        [[0.5, 0.0]]
    """
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:4], second[None, :, 2:4])
    shared = np.prod(np.maximum(high - low, 0), axis=2)  # (N, M)
    areas = [np.prod(np.maximum(boxes[:, 2:4] - boxes[:, :2], 0), axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    ratio: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def track(frames: Iterable[FrameDetections], min_score: float) -> list[TrackedBox]:
    """Join boxes to tracks.

    Args:
        frames: The boxes of each frame, in the order of time.
        min_score: Boxes with this score may begin a track; boxes with half of it may continue one.

    Returns:
        Every box that belongs to a track, by frame and then by track.

    Example:
        >>> boxes = np.array([[0, 0, 20, 50, 0.9]], np.float32)
        >>> frames = [FrameDetections(number, number / 10, boxes) for number in range(3)]
        >>> [(box.track, box.frame) for box in track(frames, min_score=0.5)]
        [(1, 0), (1, 1), (1, 2)]
    """
    active: list[_Track] = []
    found: list[TrackedBox] = []
    count = 0
    for frame in frames:
        active = [one for one in active if frame.seconds - one.boxes[-1].seconds <= PATIENCE]
        strong = frame.boxes[:, 4] >= min_score
        weak = ~strong & (frame.boxes[:, 4] >= WEAK * min_score)
        assigned: dict[int, _Track] = {}
        for rows in (np.flatnonzero(strong), np.flatnonzero(weak)):
            free = [one for one in active if one not in assigned.values()]
            assigned |= _continue_tracks(free, frame, rows.tolist())
        for row in np.flatnonzero(strong).tolist():
            if row not in assigned:
                count += 1
                assigned[row] = _Track(count)
                active.append(assigned[row])
        for row, one in sorted(assigned.items(), key=lambda pair: pair[1].number):
            left, top, right, bottom, score = frame.boxes[row].tolist()
            one.boxes.append(TrackedBox(one.number, frame.frame, frame.seconds, (left, top, right, bottom), score))
            found.append(one.boxes[-1])
    return found


def _continue_tracks(tracks: Sequence[_Track], frame: FrameDetections, rows: Sequence[int]) -> dict[int, _Track]:
    """Assign the boxes ``rows`` to tracks, the greatest overlap first, and among equal ones the older track."""
    if not tracks or not rows:
        return {}
    predicted = np.stack([one.predict(frame.seconds) for one in tracks])
    values = overlaps(predicted, frame.boxes[list(rows), :4])  # (tracks, rows)
    assigned: dict[int, _Track] = {}
    used: set[int] = set()
    for position in np.argsort(-values, axis=None, kind="stable").tolist():
        which, column = divmod(position, len(rows))
        if values[which, column] < OVERLAP:
            break
        if which not in used and rows[column] not in assigned:
            used.add(which)
            assigned[rows[column]] = tracks[which]
    return assigned


def select_boxes(
    boxes: Iterable[TrackedBox], *, min_score: float, min_height: float, min_track: int, most: int
) -> list[TrackedBox]:
    """Select boxes of each track to cut out, spread evenly over the track.

    Args:
        boxes: All boxes of all tracks.
        min_score: The least score of a selected box.
        min_height: The least height of a selected box, in pixels.
        min_track: Tracks with fewer boxes are left out, because most errors of detectors are brief.
        most: At most so many boxes of a track are selected.

    Returns:
        The selected boxes, by track and then by frame.
    """
    tracks: dict[int, list[TrackedBox]] = {}
    for box in boxes:
        tracks.setdefault(box.track, []).append(box)
    selected: list[TrackedBox] = []
    for number in sorted(tracks):
        good = [s for s in tracks[number] if s.score >= min_score and s.box[3] - s.box[1] >= min_height]
        if len(tracks[number]) >= min_track and good:
            positions = np.linspace(0, len(good) - 1, min(most, len(good))).round().astype(int)
            selected += [good[position] for position in positions.tolist()]
    return selected
