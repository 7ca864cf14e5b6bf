"""Tracks agree with a slow tracker that compares boxes one by one.

The tests find a tracker that takes the first overlap instead of the greatest, lets boxes with low scores begin tracks,
ignores motion, or never ends a track.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.data.video.tracking import OVERLAP, PATIENCE, FrameDetections, TrackedBox, overlaps, select_boxes, track

SCORE = 0.5


def detections(frame: int, *boxes: tuple[float, ...], rate: float = 10.0) -> FrameDetections:
    return FrameDetections(frame, frame / rate, np.array(boxes, np.float32).reshape(-1, 5))


def at(x: float, score: float = 0.9, y: float = 0.0) -> tuple[float, ...]:
    return (x, y, x + 20, y + 50, score)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across * down
    return across * down / union if union > 0 else 0.0


def slow_track(
    found_boxes: list[FrameDetections],
    score: float,
    *,
    greatest: bool = True,
    weak_begin: bool = False,
    moving: bool = True,
    patience: float = PATIENCE,
) -> list[tuple[int, int, int]]:
    """Return (frame, row of the box, track) of every box in a track, sorted; the settings make it wrong."""
    tracks: list[list[tuple[float, tuple[float, ...]]]] = []  # seconds and boxes of the whole history of each track
    found = []
    for one in found_boxes:
        boxes = [tuple(box) for box in one.boxes.tolist()]
        free = {t for t, history in enumerate(tracks) if one.seconds - history[-1][0] <= patience}
        rows = set(range(len(boxes)))
        taken = {}
        for low, high in ((score, np.inf), (score / 2, score)):
            while True:
                pairs = []
                for t in sorted(free):
                    for row in sorted(rows):
                        if low <= boxes[row][4] < high:
                            value = overlap(expected(tracks[t], one.seconds, moving), boxes[row])
                            if value >= OVERLAP:
                                pairs.append((value, t, row))
                if not pairs:
                    break
                _, t, row = max(pairs, key=lambda p: (p[0], -p[1], -p[2])) if greatest else pairs[0]
                taken[row] = t
                free.remove(t)
                rows.remove(row)
        for row in sorted(rows):
            if boxes[row][4] >= (score / 2 if weak_begin else score):
                taken[row] = len(tracks)
                tracks.append([])
        for row, t in taken.items():
            tracks[t].append((one.seconds, boxes[row]))
            found.append((one.frame, row, t + 1))
    return sorted(found)


def expected(history: list[tuple[float, tuple[float, ...]]], seconds: float, moving: bool) -> tuple[float, ...]:
    (now, box), (before, old) = history[-1], history[max(0, len(history) - 5)]
    if not moving or now <= before:
        return box
    share = (seconds - now) / (now - before)
    across = ((box[0] + box[2]) - (old[0] + old[2])) / 2 * share
    down = ((box[1] + box[3]) - (old[1] + old[3])) / 2 * share
    return (box[0] + across, box[1] + down, box[2] + across, box[3] + down)


def fast_track(found_boxes: list[FrameDetections], score: float) -> list[tuple[int, int, int]]:
    """Return the result of :func:`track` in the form of :func:`slow_track`."""
    rows = {one.frame: [tuple(box) for box in one.boxes.tolist()] for one in found_boxes}
    return sorted((s.frame, rows[s.frame].index((*s.box, s.score)), s.track) for s in track(found_boxes, score))


def walking_people(seed: int, people: int, frames: int) -> list[FrameDetections]:
    """Make boxes of people on straight paths, who sometimes have low scores or no box, and some false boxes."""
    rng = np.random.default_rng(seed)
    start, step = rng.uniform(0, 200, (people, 2)), rng.uniform(-9, 9, (people, 2))
    found_boxes, frame = [], 0
    for _ in range(frames):
        frame += int(rng.choice([1, 1, 1, 2, 7]))
        boxes = []
        for person in range(people):
            if rng.random() < 0.85:
                x, y = start[person] + step[person] * frame + rng.normal(0, 1.5, 2)
                boxes.append((x, y, x + 20 + rng.normal(), y + 50, rng.choice([0.9, 0.8, 0.4, 0.1])))
        if rng.random() < 0.2:
            x, y = rng.uniform(0, 200, 2)
            boxes.append((x, y, x + 20, y + 50, 0.6))
        found_boxes.append(detections(frame, *boxes))
    return found_boxes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(1, 14))
def test_tracks_agree_with_the_slow_tracker(seed: int, people: int, frames: int) -> None:
    found_boxes = walking_people(seed, people, frames)
    assert fast_track(found_boxes, SCORE) == slow_track(found_boxes, SCORE)


@pytest.mark.parametrize(
    "wrong", [{"greatest": False}, {"weak_begin": True}, {"moving": False}, {"patience": 1e9}], ids=str
)
def test_wrong_trackers_give_other_tracks(wrong: dict[str, float]) -> None:
    many = [walking_people(seed, 5, 14) for seed in range(20)]
    assert any(slow_track(found_boxes, SCORE, **wrong) != fast_track(found_boxes, SCORE) for found_boxes in many)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 5))
def test_overlaps_of_each_pair(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (np.sort(rng.uniform(0, 9, (k, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32) for k in (n, m))
    found = overlaps(first, second)
    assert found.shape == (n, m)
    assert np.allclose(found, [[overlap(tuple(a), tuple(b)) for b in second] for a in first] or found, atol=1e-5)


def test_two_people_who_pass_each_other_keep_their_tracks() -> None:
    """Their boxes overlap for some frames, but each person keeps the direction."""
    found_boxes = [detections(n, at(4.0 * n), at(120.0 - 4.0 * n, y=12.0)) for n in range(30)]
    found = track(found_boxes, SCORE)
    for number, step in ((1, 4.0), (2, -4.0)):
        xs = [s.box[0] for s in found if s.track == number]
        assert np.allclose(np.diff(xs), step)
        assert len(xs) == 30


def test_boxes_with_low_scores_continue_a_track_but_begin_none() -> None:
    found = track([detections(n, at(2.0 * n, 0.9 if n in (2, 9) else 0.3)) for n in range(12)], SCORE)
    assert [s.frame for s in found] == list(range(2, 12))
    assert {s.track for s in found} == {1}
    assert not track([detections(n, at(0.0, 0.2)) for n in range(5)], SCORE)


def test_a_person_who_returns_after_a_second_begins_a_new_track() -> None:
    short = track([detections(0, at(0.0)), detections(10, at(0.0))], SCORE)
    long = track([detections(0, at(0.0)), detections(11, at(0.0))], SCORE)
    assert [s.track for s in short] == [1, 1]
    assert [s.track for s in long] == [1, 2]


def tracked_box(number: int, frame: int, score: float = 0.9, height: float = 100.0) -> TrackedBox:
    return TrackedBox(number, frame, frame / 10, (0.0, 0.0, 40.0, height), score)


def test_crops_are_spread_over_a_track() -> None:
    boxes = [tracked_box(1, frame) for frame in range(31)]
    rules = {"min_score": SCORE, "min_height": 64.0, "min_track": 2}
    assert [s.frame for s in select_boxes(boxes, most=4, **rules)] == [0, 10, 20, 30]
    assert [s.frame for s in select_boxes(boxes, most=1, **rules)] == [0]
    assert [s.frame for s in select_boxes(boxes, most=99, **rules)] == list(range(31))


def test_small_boxes_low_scores_and_short_tracks_are_left_out() -> None:
    boxes = [
        tracked_box(1, 0),
        tracked_box(1, 1, score=0.3),
        tracked_box(1, 2, height=63.0),
        tracked_box(1, 3),
        tracked_box(2, 3),
    ]
    picked = select_boxes(boxes, min_score=SCORE, min_height=64.0, min_track=2, most=9)
    assert [(s.track, s.frame) for s in picked] == [(1, 0), (1, 3)]
    assert len(select_boxes(boxes, min_score=SCORE, min_height=64.0, min_track=1, most=9)) == 3
