"""Give the crops of a gallery persons, and keep the persons when crops are added.

Without anything known, every group of crops becomes a new person.  Later, crops that have a person keep it.  A new crop
gets the person of the group that it falls into, a group of new crops becomes a new person, and other new crops stay
undecided.  The program never joins or parts persons that it has named; it suggests which persons may be the same.
Identities are never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reid.adaptation.person_groups import JOIN_RATE, GroupFigures, confidence_of, group_crops
from reid.errors import GalleryError
from reid.records import IntArray
from reid.retrieval.persons.decisions import NO_PERSON, person_name
from reid.retrieval.persons.person_state import PersonState, state_of, write_state
from reid.retrieval.storage import write_gallery
from reid.retrieval.stored_gallery import read_gallery, under_lock

MOST_SUGGESTIONS = 100


@dataclass(frozen=True)
class Suggestion:
    """Two persons that may be one.

    Attributes:
        persons: Their numbers.
        crops: The crops of both that fell into one group.
    """

    persons: tuple[int, int]
    crops: int

    @property
    def text(self) -> str:
        """The suggestion as a sentence."""
        first, second = map(person_name, self.persons)
        return f"{first} and {second} may be one person: {self.crops} of their crops are in one group"


@dataclass(frozen=True, eq=False)
class Identified:
    """What :func:`identify` has done.

    Attributes:
        state: The persons of the gallery now.
        existing: New crops that got an existing person.
        new: New crops that became new persons.
        undecided: New crops that stay undecided.
        new_persons: Persons that are new.
        figures: What was found in each category and light.
        suggestions: Persons that may be one.
    """

    state: PersonState
    existing: int
    new: int
    undecided: int
    new_persons: int
    figures: tuple[GroupFigures, ...]
    suggestions: tuple[Suggestion, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what was done as JSON values; the persons themselves are left out."""
        return {
            "added": {
                "existing": self.existing,
                "new": self.new,
                "undecided": self.undecided,
                "new_persons": self.new_persons,
            },
            "groups": [one.to_json() for one in self.figures],
            "suggestions": [
                {"persons": [person_name(number) for number in one.persons], "crops": one.crops}
                for one in self.suggestions
            ],
        }


def identify(
    folder: Path | str,
    *,
    method: str = "auto",
    false_match_rate: float = JOIN_RATE,
    again: bool = False,
) -> Identified:
    """Group the crops of a gallery into persons, and write the persons to its folder.

    Args:
        folder: The folder of the gallery.
        method: How crops are grouped, see :func:`reid.adaptation.person_groups.group_crops`.
        false_match_rate: The share of pairs of different people that score as high as two groups that are joined.
        again: Group all crops anew.  Persons keep their ids where most of their crops stay together, and confirmed
            crops keep their persons; other crops may change theirs.

    Returns:
        The persons, and what became of the new crops.

    Raises:
        DataError: The method is unknown, or the rate is out of range.
        GalleryError: The gallery is missing, empty or damaged, another program has changed it meanwhile, or the folder
            cannot be written to.
    """
    folder = Path(folder)
    before = read_gallery(folder)
    state = state_of(before)
    if not len(state.table):
        raise GalleryError(f'{folder}: the gallery is empty; add crops to it first ("reid index add")')
    cameras, groups = _columns(state)
    found = group_crops(
        state.rows.vectors(), cameras, groups, method=method, false_match_rate=false_match_rate
    )  # fmt: skip
    facts = {"method": method, "false_match_rate": false_match_rate}
    with write_gallery(folder, before.generation) as writer:
        stored = under_lock(writer)
        now = state_of(stored)
        state = PersonState(state.rows, now.base, now.log, now.confidence, now.facts)
        new_base, next_person = (regrouped if again else extended)(state, found.labels)
        decided = state.persons > 0
        log = replace(state.log, next_person=next_person)
        after = PersonState(state.rows, new_base, log, state.confidence, {**facts, "next_person": next_person})
        confidence = confidence_of(after.persons, after.centered, groups)
        after = PersonState(after.rows, after.base, after.log, confidence, after.facts)
        write_state(writer, stored, after)
    old = set(np.unique(state.persons).tolist())
    fresh = ~decided & (after.persons > 0)
    known = np.isin(after.persons, list(old - {NO_PERSON}))
    return Identified(
        after,
        existing=int((fresh & known).sum()),
        new=int((fresh & ~known).sum()),
        undecided=int((after.persons == 0).sum()),
        new_persons=len(set(np.unique(after.persons).tolist()) - old - {NO_PERSON}),
        figures=found.figures,
        suggestions=suggest(after, found.labels),
    )


def _columns(state: PersonState) -> tuple[list[str], list[str]]:
    """Return the camera of each crop, and the name of its category and light."""
    texts = {}
    for name in ("camera", "category", "modality"):
        codes, words = state.table.codes(name)
        texts[name] = [words[code] for code in codes.tolist()]
    groups = [f"{category} {light}" for category, light in zip(texts["category"], texts["modality"], strict=True)]
    return texts["camera"], groups


def extended(state: PersonState, labels: IntArray) -> tuple[IntArray, int]:
    """Give crops without a person the one of the group that they fall into; all others keep theirs.

    Args:
        state: The persons so far.
        labels: (G,) int64, the group of each crop that was found now, -1 for none.

    Returns:
        (G,) int64, the numbers of the program's groups, and the number of the next new person.
    """
    base, number = state.base.copy(), state.log.next_person
    for label in range(int(labels.max(initial=-1)) + 1):
        rows = np.flatnonzero(labels == label)
        persons = state.persons[rows]
        open_rows = rows[persons == 0]
        if not len(open_rows):
            continue
        known = np.unique(persons[persons > 0])
        if not len(known):
            if len(open_rows) > 1:
                base[open_rows] = number
                number += 1
            continue
        numbers = np.array([_group_number(state, rows, person) for person in known.tolist()])
        base[open_rows] = numbers[_nearest_person(state, open_rows, rows, known)]
    return base, number


def _group_number(state: PersonState, rows: IntArray, person: int) -> int:
    """Return the number for crops that join a person in a group: that of a group that decisions made this person.

    So the crops go where the other crops of the group go when these decisions are undone.
    """
    numbers, counts = np.unique(state.base[rows], return_counts=True)
    same = [(count, number) for number, count in zip(numbers.tolist(), counts.tolist(), strict=True) if number]
    same = [(count, number) for count, number in same if state.word.final(number) == person]
    return max(same, key=lambda one: (one[0], -one[1]))[1] if same else person


def _nearest_person(state: PersonState, open_rows: IntArray, rows: IntArray, known: IntArray) -> IntArray:
    """Return for each open row the position in ``known`` of the person whose crops in the group are most similar."""
    if len(known) == 1:
        return np.zeros(len(open_rows), np.int64)
    means = np.stack([state.centered[rows[state.persons[rows] == one]].mean(axis=0) for one in known])
    means /= np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
    nearest: IntArray = (state.centered[open_rows] @ means.T).argmax(axis=1).astype(np.int64)
    return nearest


def regrouped(state: PersonState, labels: IntArray) -> tuple[IntArray, int]:
    """Take over groups that were found anew; persons keep their numbers where most of their crops stay together.

    A group with confirmed crops gets the number of their person, whatever else is in it.

    Args:
        state: The persons so far.
        labels: (G,) int64, the group of each crop that was found now, -1 for none.

    Returns:
        (G,) int64, the numbers of the program's groups, and the number of the next new person.
    """
    numbers: dict[int, int] = {}
    taken = set(np.unique(state.persons[state.confirmed]).tolist())
    for label in np.unique(labels[state.confirmed & (labels >= 0)]).tolist():
        inside = labels == label
        there = state.persons[inside & np.isin(state.persons, state.persons[inside & state.confirmed])]
        numbers[label] = int(np.bincount(there).argmax())
    free = (labels >= 0) & ~state.confirmed & (state.persons > 0)
    pairs, counts = np.unique(np.stack([labels[free], state.persons[free]]), axis=1, return_counts=True)
    for position in np.lexsort((pairs[1], -counts)).tolist():
        label, person = pairs[:, position].tolist()
        if label not in numbers and person not in taken:
            numbers[label] = person
            taken.add(person)
    number = state.log.next_person
    base = np.zeros(len(labels), np.int64)
    for label in range(int(labels.max(initial=-1)) + 1):
        rows = np.flatnonzero(labels == label)
        if label in numbers:
            base[rows] = _group_number(state, rows, numbers[label])
        else:
            base[rows], number = number, number + 1
    return base, number


def suggest(state: PersonState, labels: IntArray) -> tuple[Suggestion, ...]:
    """Return the persons whose crops fell into one group, those with the most crops first.

    Persons of which somebody has said that they are different are not suggested.
    """
    barred = {
        _ordered(int(state.persons[one]), int(state.persons[other]))
        for first, second in state.word.barred
        for one in state.rows_of.get(first, _NO_ROWS).tolist()
        for other in state.rows_of.get(second, _NO_ROWS).tolist()
    }
    counts: dict[tuple[int, int], int] = {}
    for label in range(int(labels.max(initial=-1)) + 1):
        persons = state.persons[labels == label]
        numbers, sizes = np.unique(persons[persons > 0], return_counts=True)
        for i, one in enumerate(numbers.tolist()):
            for j in range(i + 1, len(numbers)):
                pair = (one, int(numbers[j]))
                if pair not in barred:
                    counts[pair] = counts.get(pair, 0) + int(sizes[i] + sizes[j])
    best = sorted(counts, key=lambda pair: (-counts[pair], pair))[:MOST_SUGGESTIONS]
    return tuple(Suggestion(pair, counts[pair]) for pair in best)


_NO_ROWS = np.zeros(0, np.int64)


def _ordered(first: int, second: int) -> tuple[int, int]:
    return (first, second) if first <= second else (second, first)
