"""Record decisions about the persons of a gallery folder, take them back, and read those of another folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reid.records import IntArray
from reid.retrieval.persons.decisions import NO_PERSON, Decision
from reid.retrieval.persons.person_files import DecisionLog
from reid.retrieval.persons.person_state import PersonState, add_decision, change_persons
from reid.retrieval.persons.replaying import undone
from reid.retrieval.persons.resolution import rows_of_crops
from reid.retrieval.tombstones import read_tombstones

Make = Callable[[PersonState], Decision]


def record_decision(folder: Path, make: Make, *, instead: bool = False) -> tuple[PersonState, int]:
    """Record what somebody decides about the persons of a gallery.

    Args:
        folder: The folder of the gallery.
        make: Returns the decision for the persons that the gallery has.
        instead: Give up older decisions that say the opposite.

    Returns:
        The persons then, and the number of crops that have another person now.

    Raises:
        ContradictionError: An older decision says the opposite, and ``instead`` is false.
        GalleryError: The gallery is damaged, or the folder cannot be written to.
    """
    before: list[IntArray] = []

    def change(state: PersonState) -> PersonState:
        before.append(state.persons)
        return add_decision(state, make(state), instead=instead)

    state = change_persons(folder, change)
    return state, int(np.count_nonzero(before[0] != state.persons))


def undo_decision(folder: Path, number: int | None = None) -> tuple[PersonState, Decision, int]:
    """Take a decision back, with all that followed from it.

    Args:
        folder: The folder of the gallery.
        number: The number of the decision, from 1; None takes the last one.

    Returns:
        The persons then, the decision, and its number.

    Raises:
        GalleryError: There is no such decision, the gallery is damaged, or the folder cannot be written to.
    """
    taken: list[tuple[Decision, int]] = []

    def change(state: PersonState) -> PersonState:
        left, decision = undone(state.log.decisions, number)
        taken.append((decision, len(state.log.decisions) if number is None else number))
        return state.with_log(replace(state.log, decisions=left))

    state = change_persons(folder, change)
    return state, *taken[0]


def import_decisions(folder: Path, log: DecisionLog, *, instead: bool = False) -> tuple[PersonState, int, int]:
    """Add decisions of another gallery, all or none.

    Where crops were erased from the gallery, decisions do not bring back the paths of crops that it does not have: it
    keeps no list of the erased crops, so each of these may be one.

    Args:
        folder: The folder of the gallery.
        log: The decisions.
        instead: Give up decisions of the gallery that say the opposite.

    Returns:
        The persons then, how many decisions were added, and how many were there already.

    Raises:
        ContradictionError: A decision of the gallery says the opposite, and ``instead`` is false.
        GalleryError: The gallery is damaged, or the folder cannot be written to.
    """
    counts = [0, 0]

    def change(state: PersonState) -> PersonState:
        known = {_meaning(one) for one in state.log.decisions}
        decisions = _of_crops_here(state, log.decisions) if read_tombstones(folder).bars_anything else log.decisions
        numbers = _matched_numbers(state, decisions)
        for decision in decisions:
            if _meaning(decision) in known:
                counts[1] += 1
                continue
            state = add_decision(state, _here(state, decision, numbers), instead=instead)
            counts[0] += 1
        return state

    state = change_persons(folder, change)
    return state, counts[0], counts[1]


def _of_crops_here(state: PersonState, decisions: Sequence[Decision]) -> list[Decision]:
    """Return decisions without the crops that the gallery does not have."""
    rows_of = rows_of_crops(decisions, state.paths, state.contents)
    missing = {key for one in decisions for key in one.named_crops() if not len(rows_of.get(key.name, _NO_ROWS))}
    return [kept for one in decisions if (kept := one.without(missing)) is not None]


def _here(state: PersonState, decision: Decision, numbers: dict[int, int]) -> Decision:
    """Return a decision of another gallery with the numbers that its persons have in this one."""
    person = numbers.get(decision.person, NO_PERSON)
    absorbed: set[int] = set()
    if decision.absorbed:  # here these are the persons of the same crops
        rows_of = rows_of_crops([decision], state.paths, state.contents)
        rows = [row for key in decision.crops for row in rows_of.get(key.name, _NO_ROWS).tolist()]
        absorbed = set(state.persons[rows].tolist()) - {NO_PERSON, person}
    other = numbers.get(decision.other_person, NO_PERSON)
    return replace(
        decision, person=person, other_person=other, absorbed=tuple(sorted(absorbed)), replaced=(), positions=()
    )  # fmt: skip


_NO_ROWS = np.zeros(0, np.int64)


def _meaning(decision: Decision) -> tuple[object, ...]:
    """Return what two records of the same decision have in common; numbers of persons differ between galleries."""
    crops, others = (frozenset(key.name for key in keys) for keys in (decision.crops, decision.others))
    return decision.verb, crops, others, decision.text, decision.time


def _matched_numbers(state: PersonState, decisions: Sequence[Decision]) -> dict[int, int]:
    """Return the number in a gallery of each person that decisions of another one name.

    A person is the one whose crops it has, its own number where nobody has it, or a new one.
    """
    rows_of = rows_of_crops(decisions, state.paths, state.contents)
    rows: dict[int, list[int]] = {}
    not_here: dict[int, set[int]] = {}  # persons of this gallery that a person of the file was told apart from
    for decision in decisions:
        sides = [(decision.person, decision.crops), (decision.other_person, decision.others)]
        found = [[row for key in keys for row in rows_of.get(key.name, _NO_ROWS).tolist()] for _, keys in sides]
        for (person, _), own in zip(sides, found, strict=True):
            if person:
                rows.setdefault(person, []).extend(own)
        not_here.setdefault(decision.person, set()).update(state.persons[found[1]].tolist())
    numbers: dict[int, int] = {}
    used = set(np.unique(state.persons).tolist()) | set(state.names_of_persons)
    next_person = max([state.log.next_person, *(one + 1 for decision in decisions for one in decision.numbers())])
    for number in sorted(rows):
        counts = np.bincount(state.persons[rows[number]], minlength=1)
        barred = {NO_PERSON, *numbers.values(), *not_here.get(number, ())}
        counts[[one for one in barred if one < len(counts)]] = 0
        if number < len(counts) and counts[number]:
            numbers[number] = number
        elif counts.any():
            numbers[number] = int(counts.argmax())
        elif number not in used and number not in numbers.values():
            numbers[number] = number
        else:
            numbers[number], next_person = next_person, next_person + 1
    return numbers
