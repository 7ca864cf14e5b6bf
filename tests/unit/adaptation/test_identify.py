"""Persons stay when crops are added, whatever grouping finds, and no label is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.person_crops import of_people, people
from reid.adaptation.identify import extended, identify, regrouped
from reid.adaptation.person_groups import group_crops
from reid.errors import GalleryError
from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery
from reid.retrieval.persons.decisions import Decision
from reid.retrieval.persons.person_changes import record_decision, undo_decision
from reid.retrieval.persons.person_files import DecisionLog
from reid.retrieval.persons.person_state import PersonState, read_persons
from reid.retrieval.persons.replaying import ContradictionError, append
from reid.retrieval.persons.requests import decide_different, decide_name, decide_same, find_subject

COUNT, ADDED = 16, 8
DRAWN = people(6, crops=2)


def state_of_rows(rows: int, base: list[int], log: list[Decision], next_person: int) -> PersonState:
    gallery = Gallery.build(DRAWN.select(np.arange(rows)))
    full = np.zeros(rows, np.int64)
    full[: len(base)] = base
    return PersonState(gallery._rows, full, DecisionLog(tuple(log), next_person), np.zeros(rows, np.float32))


@st.composite
def states(draw: st.DrawFn) -> tuple[list[int], list[Decision]]:
    base = draw(st.lists(st.integers(0, 4), min_size=COUNT, max_size=COUNT))
    state, log = state_of_rows(COUNT, base, [], 5), ()
    for _ in range(draw(st.integers(0, 4))):
        first, second = draw(st.lists(st.integers(0, COUNT - 1), min_size=2, max_size=2, unique=True))
        subjects = [find_subject(state, state.paths[row]) for row in (first, second)]
        decide = draw(st.sampled_from([decide_same, lambda at, both: decide_different(at, *both)]))
        try:
            log = append(log, decide(state, subjects))
        except ContradictionError:
            continue
        next_person = max([state.log.next_person, *(one + 1 for item in log for one in item.numbers())])
        state = state.with_log(DecisionLog(log, next_person))
    return base, list(log)


@given(states(), st.lists(st.integers(-1, 5), min_size=COUNT + ADDED, max_size=COUNT + ADDED), st.booleans())
@settings(max_examples=60)
def test_added_crops_never_rename_a_person_with_a_confirmed_crop(
    drawn: tuple[list[int], list[Decision]], labels: list[int], again: bool
) -> None:
    base, log = drawn
    number = max([5, *(one + 1 for item in log for one in item.numbers())])
    before = state_of_rows(COUNT, base, log, number)
    larger = state_of_rows(COUNT + ADDED, base, log, number)
    new_base, next_person = (regrouped if again else extended)(larger, np.array(labels))
    after = PersonState(larger.rows, new_base, DecisionLog(tuple(log), next_person), larger.confidence)
    rows = np.flatnonzero(before.confirmed)
    assert after.persons[rows].tolist() == before.persons[rows].tolist()
    assert next_person >= number
    assert int(after.persons.max(initial=0)) < max(next_person, number)
    if not again:  # what was decided stays in its group, and what was not gets one
        kept = np.flatnonzero(before.persons)
        assert new_base[kept].tolist() == larger.base[kept].tolist()


@given(states())
@settings(max_examples=40)
def test_undoing_every_decision_gives_the_groups_back(drawn: tuple[list[int], list[Decision]]) -> None:
    base, log = drawn
    states_before = [state_of_rows(COUNT, base, log[:length], 99).persons.tolist() for length in range(len(log) + 1)]
    assert states_before[0] == base
    for length in range(len(log), -1, -1):
        assert state_of_rows(COUNT, base, log[:length], 99).persons.tolist() == states_before[length]


def test_new_crops_get_existing_persons_new_ones_or_none(tmp_path: Path) -> None:
    embeddings = people(12)
    known = of_people(embeddings, range(8)).select(np.arange(64)[np.arange(64) % 4 != 3])
    Gallery.build(known).save(tmp_path)
    first = identify(tmp_path)
    assert (first.existing, first.new_persons) == (0, 8)
    before = dict(zip(first.state.paths, first.state.labels(), strict=True))
    assert Gallery.open(tmp_path).add(embeddings).added == len(embeddings) - len(known)
    second = identify(tmp_path)
    after = dict(zip(second.state.paths, second.state.labels(), strict=True))
    assert {path: after[path] for path in before if before[path]} == {p: who for p, who in before.items() if who}
    assert second.existing > 10
    assert second.new_persons == 4
    assert second.existing + second.new + second.undecided >= len(embeddings) - len(known)
    assert identify(tmp_path).new == 0


def test_labels_are_never_looked_at(tmp_path: Path) -> None:
    embeddings = people(10)
    random = np.random.default_rng(3)
    shuffled = [
        Sample(s.path, str(name), s.camera, time=s.time)
        for s, name in zip(
            embeddings.samples, random.permutation([s.identity for s in embeddings.samples]), strict=True
        )
    ]
    found = []
    for name, samples in (("true", embeddings.samples), ("shuffled", tuple(shuffled))):
        Gallery.build(Embeddings(samples, embeddings.vectors, "f00d")).save(tmp_path / name)
        state = identify(tmp_path / name).state
        found.append((state.persons.tolist(), state.confidence.tolist()))
    assert found[0] == found[1]


def test_decisions_and_persons_survive_that_the_gallery_is_built_again(tmp_path: Path) -> None:
    embeddings = people(10)
    Gallery.build(embeddings).save(tmp_path)
    identify(tmp_path)

    def join(state: PersonState) -> Decision:
        return decide_same(state, [find_subject(state, f"person-{number}") for number in (2, 5)])

    state, changed = record_decision(tmp_path, join)
    assert changed == 8
    order = np.random.default_rng(0).permutation(len(embeddings))
    Gallery.build(embeddings.select(order)).save(tmp_path)
    again = read_persons(tmp_path)
    assert dict(zip(again.paths, again.labels(), strict=True)) == dict(zip(state.paths, state.labels(), strict=True))
    undone, _, number = undo_decision(tmp_path)
    assert (number, len(set(undone.labels()))) == (1, len(set(state.labels())) + 1)


def test_grouping_anew_keeps_numbers_of_persons_that_stay_together(tmp_path: Path) -> None:
    Gallery.build(people(10)).save(tmp_path)
    first = identify(tmp_path).state
    again = identify(tmp_path, again=True).state
    assert again.persons.tolist() == first.persons.tolist()


def test_an_erased_person_leaves_no_path_behind(tmp_path: Path) -> None:
    Gallery.build(people(10)).save(tmp_path)
    identify(tmp_path)

    def confirm(state: PersonState) -> Decision:
        return decide_same(state, [find_subject(state, f"p0{number}_door_0.jpg") for number in (3, 4)])

    record_decision(tmp_path, confirm)
    assert Gallery.open(tmp_path).erase("p03") == 8
    Gallery.open(tmp_path).compact()
    for path in tmp_path.rglob("*"):
        assert b"p03_" not in path.read_bytes(), path
    state = read_persons(tmp_path)
    assert [key.path for one in state.log.decisions for key in one.named_crops()] == ["p04_door_0.jpg"]
    assert state.confirmed.sum() == 1
    Gallery.open(tmp_path).verify()


def test_a_name_stays_when_the_crop_that_it_was_given_by_is_removed(tmp_path: Path) -> None:
    Gallery.build(people(10)).save(tmp_path)
    identify(tmp_path)
    record_decision(tmp_path, lambda at: decide_name(at, find_subject(at, "p03_door_0.jpg"), "Anna"))
    with pytest.raises(GalleryError, match="at most 200 characters, got 201"):
        record_decision(tmp_path, lambda at: decide_name(at, find_subject(at, "p03_door_0.jpg"), "x" * 201))
    assert Gallery.open(tmp_path).remove("path = 'p03_door_0.jpg'") == 1
    assert list(read_persons(tmp_path).names_of_persons.values()) == ["Anna"]
    Gallery.open(tmp_path).erase("p03")
    assert read_persons(tmp_path).names_of_persons == {}


def test_a_gallery_without_crops_is_one_line(tmp_path: Path) -> None:
    Gallery.create(tmp_path / "g", "f00d", 32)
    with pytest.raises(GalleryError, match="empty"):
        identify(tmp_path / "g")
    with pytest.raises(GalleryError):
        identify(tmp_path / "none")


def test_another_program_that_changes_the_gallery_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = people(10)
    Gallery.build(embeddings.select(np.arange(60))).save(tmp_path)

    def slow(*arguments: object, **options: object) -> object:
        Gallery.open(tmp_path).add(embeddings)
        return group_crops(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("reid.adaptation.identify.group_crops", slow)
    with pytest.raises(GalleryError, match="changed by another program"):
        identify(tmp_path)
    assert len(Gallery.open(tmp_path)) == 80
