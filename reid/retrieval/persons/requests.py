"""Turn what somebody says about persons and crops into a decision: "these are the same", "this is not her"."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.errors import GalleryError, unknown_name
from reid.retrieval.persons.decisions import NO_PERSON, CropKey, Decision, person_name, person_number
from reid.retrieval.persons.person_state import PersonState

SHOWN = 20  # names of persons that an error lists
LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class Subject:
    """What a word of a command stands for: a person, or one crop.

    Attributes:
        text: The word.
        person: The number of the person, or of the person that the crop shows; 0 where it is undecided.
        row: The row of the crop; -1 where the word stands for a person.
    """

    text: str
    person: int
    row: int = -1

    @property
    def is_crop(self) -> bool:
        """Whether the word stands for one crop."""
        return self.row >= 0


def find_subject(state: PersonState, text: str) -> Subject:
    """Find the person or the crop that a word stands for.

    Args:
        state: The persons of a gallery.
        text: An id such as "person-12", the name of a person, or the path of a crop.

    Raises:
        GalleryError: There is no such person and no such crop.
    """
    number = state.word.final(person_number(text)) or _named(state, text)
    if number and ((state.persons == number).any() or number in state.names_of_persons):
        return Subject(text, number)
    spelled = {text, os.path.abspath(text), os.path.relpath(text)} if text else set()  # noqa: PTH100 (links stay)
    rows = [row for row, path in enumerate(state.paths) if path in spelled]
    if rows:
        return Subject(text, int(state.persons[rows[0]]), rows[0])
    known = [person_name(one) for one in np.unique(state.persons).tolist() if one][:SHOWN]
    raise GalleryError(
        f"expected a person or the path of a crop of the gallery: {unknown_name('person or crop', text, known)}"
    )


def _named(state: PersonState, text: str) -> int:
    return next((number for number, name in state.names_of_persons.items() if name == text), NO_PERSON)


def _anchor(state: PersonState, subject: Subject, without: Sequence[int] = ()) -> int:
    """Return the row that stands for a subject in a decision."""
    row = subject.row if subject.is_crop else state.most_typical(subject.person, without)
    if row < 0:
        raise GalleryError(f"{subject.text}: has no other crop in the gallery, so nothing can be said about it")
    return row


def decide_same(state: PersonState, subjects: Sequence[Subject]) -> Decision:
    """Decide that persons or crops are one person; the first person keeps its id, before those of crops.

    Raises:
        GalleryError: Fewer than two different persons or crops are given.
    """
    rows = list(dict.fromkeys(_anchor(state, one) for one in subjects))
    if len(rows) < 2:
        raise GalleryError("expected two different persons or crops, got one")
    persons = [one.person for one in sorted(subjects, key=lambda one: one.is_crop) if one.person]
    person = persons[0] if persons else state.log.next_person
    absorbed = set(persons) - {person}
    for subject in subjects:  # of a person with confirmed crops, an unconfirmed one moves without the others
        if subject.is_crop and subject.person in absorbed and not state.confirmed[subject.row]:
            others = (state.persons == subject.person) & state.confirmed
            absorbed -= {subject.person} if others.any() else set()
    return Decision("same", person, _keys(state, rows), absorbed=tuple(sorted(absorbed)))


def decide_confirm(state: PersonState, person: Subject, crops: Sequence[Subject]) -> Decision:
    """Decide that crops show a person; without crops, all that it has now.

    Raises:
        GalleryError: The first subject is no person, or one of the others is no crop.
    """
    if person.is_crop:
        raise GalleryError(f"{person.text}: expected a person such as person-12, got a crop; name the person first")
    wrong = [one.text for one in crops if not one.is_crop]
    if wrong:
        raise GalleryError(f"{wrong[0]}: expected the path of a crop, got a person; use the verb same for two persons")
    rows = [one.row for one in crops] or np.flatnonzero(state.persons == person.person).tolist()
    if not rows:
        raise GalleryError(f"{person.text}: has no crop to confirm")
    return Decision("confirm", person.person, _keys(state, rows))


def decide_different(state: PersonState, first: Subject, second: Subject) -> Decision:
    """Decide that two persons or crops are different people.

    Where both are of one person now, the one that is a crop leaves it; of two crops, the one that belongs to it less
    clearly.  Crops that look more like the one that leaves go with it.

    Raises:
        GalleryError: Both are the same person or crop.
    """
    if first.is_crop and not second.is_crop:
        first, second = second, first  # the person stays
    if first.person == second.person and first.person and not second.is_crop:
        raise GalleryError(f"{first.text} and {second.text}: expected two persons, got one")
    stays, leaves = _anchor(state, first, [second.row] if second.is_crop else []), _anchor(state, second)
    if stays == leaves:
        raise GalleryError(f"{first.text} and {second.text}: expected two crops, got one")
    together = first.person == second.person != NO_PERSON
    if together and first.is_crop and _typicality(state, leaves) > _typicality(state, stays):
        stays, leaves = leaves, stays
    others = _keys(state, [stays])
    if together:
        staying = first.person if not first.is_crop or state.confirmed[stays] else NO_PERSON
        return Decision("different", state.log.next_person, _keys(state, [leaves]), others, staying)
    if first.is_crop and second.is_crop:
        return Decision("different", NO_PERSON, _keys(state, [leaves]), others)
    leaving = NO_PERSON if second.is_crop else second.person
    return Decision("different", leaving, _keys(state, [leaves]), others, NO_PERSON if first.is_crop else first.person)


def decide_split(state: PersonState, crops: Sequence[Subject]) -> Decision:
    """Decide that crops leave their person and are a new one together.

    Raises:
        GalleryError: A subject is no crop, the crops are of several persons, or nothing would stay.
    """
    wrong = [one.text for one in crops if not one.is_crop]
    if wrong or not crops:
        raise GalleryError(f"{(wrong or ['split'])[0]}: expected the paths of the crops that leave their person")
    persons = {one.person for one in crops}
    if len(persons) > 1 or NO_PERSON in persons:
        raise GalleryError("expected crops of one person; use the verb same to join crops, and different to part two")
    rows = sorted({one.row for one in crops})
    stays = state.most_typical(crops[0].person, rows)
    if stays < 0:
        raise GalleryError(f"{person_name(crops[0].person)}: all its crops would leave; name some of them only")
    return Decision(
        "different", state.log.next_person, _keys(state, rows), _keys(state, [stays]), crops[0].person
    )  # fmt: skip


def decide_name(state: PersonState, subject: Subject, text: str) -> Decision:
    """Give a person a name; an empty name takes it away.

    Raises:
        GalleryError: The name looks like an id, is no line of text or too long, or another person has it.
    """
    if len(text) > LONGEST_NAME:
        raise GalleryError(f"expected a name of at most {LONGEST_NAME} characters, got {len(text):,}")
    if not text.isprintable():
        raise GalleryError(f"{text!r}: expected a name on one line, without tabs and other control characters")
    if person_number(text):
        raise GalleryError(f"{text}: expected a name, got an id of a person; choose another name")
    person = subject.person or state.log.next_person
    other = _named(state, text) if text else NO_PERSON
    if other and other != person:
        raise GalleryError(
            f'"{text}" is the name of {person_name(other)} already; say that both are the same, or choose another name'
        )
    return Decision("name", person, _keys(state, [_anchor(state, subject)]), text=text)


def _typicality(state: PersonState, row: int) -> float:
    return float(state.confirmed[row]) + float(state.confidence[row]) / 2


def _keys(state: PersonState, rows: Sequence[int]) -> tuple[CropKey, ...]:
    return tuple(state.key_of(row) for row in rows)
