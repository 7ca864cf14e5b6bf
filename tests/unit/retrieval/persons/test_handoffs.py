"""Hand-offs, against an obvious version, on drawn times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.errors import DataError
from reid.records import Sample
from reid.retrieval.persons.handoffs import find_handoffs, find_visits

NOON = datetime(2024, 5, 1, 12)


def crop(camera: str, second: int | None) -> Sample:
    return Sample("1.jpg", camera=camera, time=None if second is None else NOON + timedelta(seconds=second))


def seconds(time: datetime) -> float:
    return (time - NOON).total_seconds()


def test_who_left_and_where_they_appeared() -> None:
    crops = [crop("door", 0), crop("door", 20), crop("yard", 200), crop("hall", 900), crop("door", 30), crop("", 40)]
    visits = find_visits(crops, np.array([1, 1, 1, 1, 2, 1]))
    found = find_handoffs(visits, left="door")
    assert [(one.left.person, one.left.rows, one.appeared and one.appeared.camera, one.seconds) for one in found] == [
        (1, (0, 1), "yard", 180.0),
        (2, (4,), None, None),
    ]
    assert [one.left.person for one in find_handoffs(visits, left="door", appeared="yard")] == [1]
    assert [one.appeared for one in find_handoffs(visits, left="door", within=100)] == [None, None]
    assert find_handoffs(visits, left="door", appeared="yard", within=100) == []


def test_somebody_who_comes_back_to_the_same_camera_was_not_handed_over() -> None:
    visits = find_visits([crop("door", 0), crop("door", 500), crop("yard", 600)], np.ones(3, np.int64))
    assert [(one.left.rows, one.seconds) for one in find_handoffs(visits)] == [((1,), 100.0), ((2,), None)]


drawn = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", ""]), st.one_of(st.none(), st.integers(0, 500))),
    max_size=15,
)


@given(drawn, st.integers(0, 100))
def test_every_crop_is_in_one_visit_and_gaps_part_visits(rows: list[tuple[int, str, int | None]], gap: int) -> None:
    crops, persons = [crop(camera, second) for _, camera, second in rows], np.array([one[0] for one in rows], np.int64)
    visits = find_visits(crops, persons, gap)
    usable = [i for i, (person, camera, second) in enumerate(rows) if person and camera and second is not None]
    assert sorted(row for visit in visits for row in visit.rows) == usable
    for visit in visits:
        assert {(rows[row][0], rows[row][1]) for row in visit.rows} == {(visit.person, visit.camera)}
        times = [seconds(crops[row].time) for row in visit.rows]
        assert times == sorted(times)
        assert all(later - earlier <= gap for earlier, later in pairwise(times))
        assert (visit.start, visit.end) == (crops[visit.rows[0]].time, crops[visit.rows[-1]].time)
    for one, other in [(a, b) for a in visits for b in visits if a is not b]:
        if (one.person, one.camera) == (other.person, other.camera) and one.end <= other.start:
            assert seconds(other.start) - seconds(one.end) > gap


def test_times_with_and_without_a_zone_are_not_mixed() -> None:
    mixed = [crop("door", 0), Sample("2.jpg", camera="door", time=NOON.replace(tzinfo=UTC))]
    with pytest.raises(DataError):
        find_visits(mixed, np.array([1, 1]))
    with pytest.raises(DataError):
        find_visits([crop("door", 0)], np.array([1]), -1.0)
