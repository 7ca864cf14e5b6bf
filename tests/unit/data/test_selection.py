"""Selecting samples by domain, by track and by time."""

from __future__ import annotations

import time as time_module
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from reid.data.sample_tables import samples_from_frame, samples_to_frame
from reid.data.selection import calibration_samples, keep_min_gap, keep_one_of_each_track, select_domains
from reid.errors import DataError
from reid.records import Sample, Split
from reid.retrieval.row_table import RowTable

START = datetime(2024, 5, 1, 9)


@pytest.fixture
def crops() -> list[Sample]:
    """24 crops, one each minute: cameras b1 and b2, four tracks of three crops each, called the same in both."""
    return [
        Sample(
            Path(f"{number:02}.jpg"),
            camera=("b1", "b2")[number // 12],
            time=START + timedelta(minutes=number),
            track=f"t{number // 3 % 4}",
        )
        for number in range(24)
    ]


@pytest.fixture(params=["ascending", "descending", "shuffled"])
def rows(request: pytest.FixtureRequest, crops: list[Sample]) -> list[Sample]:
    """The crops in several orders."""
    orders = {
        "ascending": range(24),
        "descending": range(23, -1, -1),
        "shuffled": np.random.default_rng(0).permutation(24).tolist(),
    }
    return [crops[number] for number in orders[request.param]]


def test_the_selected_domains_stay_in_their_order(rows: list[Sample]) -> None:
    assert select_domains(rows, ("camera",), ["b2"]) == [crop for crop in rows if crop.camera == "b2"]
    assert select_domains(rows, ("camera",), ["b2", "b1"]) == rows
    assert select_domains(rows, ("category", "camera"), ["person/b1"]) == [crop for crop in rows if crop.camera == "b1"]


def test_a_domain_that_no_sample_has_is_refused(crops: list[Sample]) -> None:
    with pytest.raises(DataError, match='did you mean "b1"'):
        select_domains(crops, ("camera",), ["b11"])


def test_the_label_of_a_camera_stands_for_its_only_domain(crops: list[Sample]) -> None:
    """Catches a label that takes the crops of two domains, or that is refused where it is clear."""
    fields = ("category", "camera")
    assert select_domains(crops, fields, ["b1"]) == select_domains(crops, fields, ["person/b1"])
    both = [*crops, replace(crops[0], category="vehicle")]
    with pytest.raises(DataError, match=f"person/{crops[0].camera}, vehicle/{crops[0].camera}"):
        select_domains(both, fields, [crops[0].camera])
    assert select_domains(both, fields, [f"vehicle/{crops[0].camera}"]) == both[-1:]


def test_the_middle_crop_of_each_track_stays(rows: list[Sample]) -> None:
    """The middle is that of time in any order; catches the first of each, and tracks mixed between cameras."""
    found = keep_one_of_each_track(rows, ("camera",))
    assert found == [crop for crop in rows if crop.time and crop.time.minute % 3 == 1]
    assert len(found) == 8


def test_tracks_without_times_are_in_the_order_of_the_list(crops: list[Sample]) -> None:
    timeless = [replace(crop, time=None) for crop in crops]
    assert keep_one_of_each_track(timeless, ("camera",))[0].path == crops[1].path


def test_a_crop_without_a_track_is_refused(crops: list[Sample]) -> None:
    with pytest.raises(DataError) as caught:
        keep_one_of_each_track([replace(crops[0], track="")], ("camera",))
    assert "00.jpg" in str(caught.value)
    assert "reid ingest" in str(caught.value)


def test_crops_of_a_camera_have_the_minimal_gap(rows: list[Sample]) -> None:
    """The earliest of each camera stays; a gap of exactly the minimum counts."""
    kept = keep_min_gap(rows, ("camera",), 300)
    assert kept == [crop for crop in rows if int(crop.path.stem) % 12 in (0, 5, 10)]
    for camera in ("b1", "b2"):
        times = sorted(crop.time for crop in kept if crop.time and crop.camera == camera)
        assert all((later - earlier).total_seconds() >= 300 for earlier, later in pairwise(times))
    assert keep_min_gap(kept, ("camera",), 300) == kept
    assert len(keep_min_gap(rows, ("camera",), 1e9)) == 2  # one for each camera


def test_a_crop_without_a_time_is_refused(crops: list[Sample]) -> None:
    with pytest.raises(DataError, match=r"00\.jpg: no time"):
        keep_min_gap([replace(crops[0], time=None)], ("camera",), 1)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
def test_times_without_a_zone_do_not_depend_on_the_machine(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the night in which Berlin's clocks go forward, every minute counts as one minute."""
    monkeypatch.setenv("TZ", zone)
    time_module.tzset()
    begin = datetime(2024, 3, 31, 1, 50)
    crops = [
        Sample(Path(f"{minute:02}.jpg"), camera="yard", track="t", time=begin + timedelta(minutes=minute))
        for minute in range(90)
    ]
    try:
        assert len(keep_min_gap(crops, ("camera",), 30)) == 90
        assert len(keep_min_gap(crops, ("camera",), 600)) == 9
        assert keep_one_of_each_track(crops, ("camera",))[0].path.name == "44.jpg"
    finally:
        monkeypatch.undo()
        time_module.tzset()


def test_times_of_different_zones_are_compared_as_moments(crops: list[Sample]) -> None:
    moment = datetime(2024, 5, 1, 9, tzinfo=UTC)
    later = (moment + timedelta(seconds=20)).astimezone(timezone(timedelta(hours=2)))
    rows = [replace(crops[0], time=moment), replace(crops[1], time=later)]
    assert len(keep_min_gap(rows, ("camera",), 30)) == 1
    assert len(keep_min_gap(rows, ("camera",), 20)) == 2


def test_times_with_and_without_a_zone_in_one_camera(crops: list[Sample]) -> None:
    rows = [crops[0], replace(crops[1], time=START.replace(tzinfo=UTC))]
    for select in (lambda: keep_min_gap(rows, ("camera",), 1), lambda: keep_one_of_each_track(rows, ("camera",))):
        with pytest.raises(DataError) as caught:
            select()
        assert "b1" in str(caught.value)
        assert "00.jpg" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert len(keep_min_gap([crops[0], replace(rows[1], camera="b2")], ("camera",), 1)) == 2


def test_statistics_are_measured_on_recorded_crops() -> None:
    recorded = Sample(Path("1.jpg"), camera="door", split=Split.TRAIN)
    generated = Sample(Path("2.jpg"), camera="door", split=Split.TRAIN, generated=True)
    assert calibration_samples([recorded, generated]) == [recorded]
    with pytest.raises(DataError):
        calibration_samples([generated])
    with pytest.raises(DataError):
        RowTable.from_samples([recorded, generated])
    frame = samples_to_frame([recorded, generated])
    assert samples_from_frame(frame) == (recorded, generated)
    assert "generated" not in samples_to_frame([recorded])
