"""What galleries exchange: rows come with the decisions about persons."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from helpers.person_crops import of_people, people
from reid.adaptation.identify import identify
from reid.errors import GalleryError
from reid.retrieval.exchange import export_rows, merge_galleries
from reid.retrieval.gallery import Gallery
from reid.retrieval.persons.person_changes import record_decision
from reid.retrieval.persons.person_files import read_decisions
from reid.retrieval.persons.person_state import read_persons
from reid.retrieval.persons.requests import decide_different, decide_name, decide_same, find_subject

ONE, OTHER = "p01_door_0.jpg", "p02_door_0.jpg"


def gallery_of(folder: Path, numbers: range) -> Path:
    Gallery.build(of_people(people(noise=0.1), list(numbers))).save(folder)
    identify(folder)
    return folder


def test_a_merged_gallery_knows_what_people_have_decided(tmp_path):
    north, south = gallery_of(tmp_path / "north", range(6)), gallery_of(tmp_path / "south", range(6, 12))
    record_decision(north, lambda at: decide_name(at, find_subject(at, "p03_door_0.jpg"), "Anna"))
    record_decision(south, lambda at: decide_name(at, find_subject(at, "p08_door_0.jpg"), "Ben"))
    merged = merge_galleries(tmp_path / "all", [north, south])
    assert [one.decisions for one in merged] == [1, 1]
    identify(tmp_path / "all")
    state = read_persons(tmp_path / "all")
    assert sorted(state.names_of_persons.values()) == ["Anna", "Ben"]
    assert merge_galleries(tmp_path / "all", [north])[0].decisions == 0  # they are there already


def test_decisions_that_contradict_each_other_are_one_line_and_change_nothing(tmp_path):
    north, south = gallery_of(tmp_path / "north", range(6)), gallery_of(tmp_path / "south", range(6))
    record_decision(north, lambda at: decide_same(at, [find_subject(at, ONE), find_subject(at, OTHER)]))
    record_decision(south, lambda at: decide_different(at, find_subject(at, ONE), find_subject(at, OTHER)))
    with pytest.raises(GalleryError) as caught:
        merge_galleries(north, [south])
    assert "\n" not in str(caught.value)
    assert str(south) in str(caught.value)
    assert len(read_decisions(north).decisions) == 1


def test_exported_rows_name_their_persons(tmp_path):
    folder = gallery_of(tmp_path / "g", range(4))
    export_rows(folder, tmp_path / "rows.parquet")
    found = parquet.read_table(tmp_path / "rows.parquet").column("person").to_pylist()
    assert found == read_persons(folder).labels()
