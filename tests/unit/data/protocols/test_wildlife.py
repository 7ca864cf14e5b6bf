"""Splits of animal data never divide a day, and agree with a slow version of the toolkit's rule.

The tests find these errors: images divided instead of days; queries from the only day of an identity; hours taken for
days; an unknown identity left in the gallery.
"""

from __future__ import annotations

import runpy
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.published_archives import animal_metadata as metadata
from reid.data.protocols.data_sets import open_data
from reid.data.protocols.wildlife import open_split, read_metadata, time_split
from reid.errors import DataError
from reid.evaluation.analysis.validation import validate
from reid.records import Sample, Split

ROOT = Path(__file__).parents[4]


def names(samples: tuple[Sample, ...], split: Split) -> list[str]:
    return sorted(sample.path.stem for sample in samples if sample.split is split)


def test_metadata(tmp_path: Path) -> None:
    samples = read_metadata(metadata(tmp_path))
    assert [s.path.stem for s in samples] == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        "8",
    ]  # the row with the identity "unknown" is left out
    assert samples[0].path == tmp_path / "a/0.jpg"
    assert (samples[1].time, samples[4].time) == (datetime(2012, 5, 1, 17), datetime(2012, 1, 1))
    assert {s.category for s in samples} == {"animal"}
    assert read_metadata(tmp_path / "metadata.csv", Path("/images"))[0].path == Path("/images/a/0.jpg")


def test_time_split_by_hand(tmp_path: Path) -> None:
    """Of t1's three days min(2, round(1.5) = 2) are gallery, of t2's two days one is, and t3 has one day."""
    samples = time_split(read_metadata(metadata(tmp_path)))
    assert names(samples, Split.GALLERY) == names(samples, Split.TRAIN) == ["0", "1", "2", "4", "6"]
    assert names(samples, Split.QUERY) == ["3", "5"]


days_of_individuals = st.dictionaries(st.sampled_from("abcde"), st.lists(st.integers(1, 9), min_size=1), min_size=1)


@given(days_of_individuals)
def test_time_split_agrees_with_the_rule_of_the_toolkit(days: dict[str, list[int]]) -> None:
    """The rule is TimeProportionSplit(0.5), applied to one row after the other."""
    samples = [
        Sample(Path(f"{name}-{i}.jpg"), name, time=datetime(2020, 1, day, 8 + i % 9))
        for name, listed in days.items()
        for i, day in enumerate(listed)
    ]
    expected = {}
    for sample in samples:
        ordered = sorted({other.time.date() for other in samples if other.identity == sample.identity})
        many = len(ordered)
        known = many == 1 or ordered.index(sample.time.date()) < min(many - 1, round(0.5 * many))
        expected[sample.path] = Split.GALLERY if known else Split.QUERY
    rows = time_split(samples)
    assert {s.path: s.split for s in rows if s.split is not Split.TRAIN} == expected
    for name in days:  # no day is in both splits, and every query has its identity in the gallery
        known, asked = (
            {s.time.date() for s in rows if s.identity == name and s.split is split}
            for split in (Split.GALLERY, Split.QUERY)
        )
        assert known
        assert not known & asked


def test_open_split(tmp_path: Path) -> None:
    samples = read_metadata(metadata(tmp_path))
    rows = open_split(samples, unknown=0.5, seed=1)
    assert rows == open_split(samples, unknown=0.5, seed=1)
    asked = {s.identity for s in rows if s.split is Split.QUERY}
    known = {s.identity for s in rows if s.split is Split.GALLERY}
    assert asked == {"t1", "t2"}
    assert len(asked - known) == 1
    assert len({s.identity for s in rows if s.split is Split.TRAIN} & (asked - known)) == 0
    assert {frozenset(asked - {s.identity for s in open_split(samples, 0.5, seed) if s.split is Split.GALLERY})
            for seed in range(9)} == {frozenset({"t1"}), frozenset({"t2"})}  # fmt: skip


def test_prepare_and_read(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "datasets/wildlife/prepare.py"))["main"](metadata(tmp_path), tmp_path / "out")
    time, unknown = open_data("wildlife", tmp_path / "out"), open_data("wildlife:split=open", tmp_path / "out")
    assert names(time.samples, Split.QUERY) == ["3", "5"]
    assert time.samples[0].path.resolve() == (tmp_path / "a/0.jpg").resolve()
    reasons = [f.message for f in validate(unknown, images=False) if "no right answer" in f.message]
    assert reasons == ["1 of 2 queries have no right answer: their identity is not in the gallery"]


def test_data_that_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column identity"):
        read_metadata(metadata(tmp_path, "path,name\na.jpg,x\n"))
    with pytest.raises(DataError, match='line 2: date "May"'):
        read_metadata(metadata(tmp_path, "path,identity,date\na.jpg,x,May\n"))
    undated = read_metadata(metadata(tmp_path, "path,identity\na.jpg,x\n"))
    with pytest.raises(DataError, match="date"):
        time_split(undated)
    with pytest.raises(DataError, match="0 "):
        open_split([Sample(Path("a"), "x", time=datetime(2020, 1, 1))])
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        read_metadata(tmp_path / "nowhere.csv")
