"""The persons of a gallery, as a page shows them, and what a visitor decides about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.errors import GalleryError
from reid.records import IntArray, Sample
from reid.retrieval.persons.decisions import Decision, person_name
from reid.retrieval.persons.handoffs import CameraVisit, find_visits
from reid.retrieval.persons.person_changes import record_decision, undo_decision
from reid.retrieval.persons.person_state import PersonState, read_persons
from reid.retrieval.persons.requests import (
    Subject,
    decide_confirm,
    decide_different,
    decide_name,
    decide_same,
    decide_split,
)

COMPARED = 400  # of the largest persons are compared to find those that may be one
COMPARED_ROWS = 100_000  # of the gallery; in a larger one, nobody is asked
QUESTIONS = 6  # pairs that are asked for at a time


@dataclass(frozen=True)
class PersonCard:
    """One person.

    Args:
        number: Its number.
        name: The name that people gave it; "" without one.
        rows: The positions of its crops in the gallery, the surest first.
        confirmed: How many of them somebody has confirmed.
        cameras: The cameras that took them, sorted.
        first: When it was first taken, as text; "" when unknown.
        last: When it was last taken.
    """

    number: int
    name: str
    rows: IntArray
    confirmed: int
    cameras: tuple[str, ...]
    first: str
    last: str

    @property
    def title(self) -> str:
        """Its id, and its name where it has one."""
        return f"{self.name} ({person_name(self.number)})" if self.name else person_name(self.number)


def person_cards(state: PersonState, numbers: Sequence[int]) -> list[PersonCard]:
    """Return what is known of some persons."""
    return [_card(state, number) for number in numbers]


def persons_by_size(state: PersonState) -> list[int]:
    """Return the numbers of the persons: those with names first, then those with most crops."""
    numbers, counts = np.unique(state.persons[state.persons > 0], return_counts=True)
    names = state.names_of_persons
    keys = [
        (number not in names, -count, number) for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    ]
    return [number for _, _, number in sorted(keys)]


def _card(state: PersonState, number: int) -> PersonCard:
    rows = np.flatnonzero(state.persons == number)
    rows = rows[np.lexsort((rows, -state.confidence[rows], ~state.confirmed[rows]))]
    samples = state.table.samples_at(rows)
    times = sorted(sample.time.isoformat(sep=" ", timespec="minutes") for sample in samples if sample.time)
    cameras = tuple(sorted({sample.camera or "unknown" for sample in samples}))
    name = state.names_of_persons.get(number, "")
    confirmed = int(state.confirmed[rows].sum())
    return PersonCard(number, name, rows, confirmed, cameras, *((times[0], times[-1]) if times else ("", "")))


def pairs_to_ask(state: PersonState, count: int = QUESTIONS) -> list[tuple[int, int, float]]:
    """Return pairs of persons that may be one, the one whose answer tells most first.

    An answer about two large persons that are very similar tells most. Pairs that somebody has judged are left out.

    Returns:
        The numbers of both, and the similarity of their mean embeddings.
    """
    numbers = persons_by_size(state)[:COMPARED]
    if len(numbers) < 2 or len(state.table) > COMPARED_ROWS:
        return []
    sizes = np.array([int((state.persons == number).sum()) for number in numbers])
    means = np.stack([state.centered[state.persons == number].mean(axis=0) for number in numbers])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
    scores = means @ means.T
    categories = np.array([state.table.codes("category")[0][state.persons == number][0] for number in numbers])
    scores[categories[:, None] != categories] = -1
    worth = scores * np.log1p(np.minimum(sizes[:, None], sizes))
    worth[np.tril_indices(len(numbers))] = -np.inf
    judged = _judged_pairs(state)
    order = np.argsort(-worth, axis=None, kind="stable")[: count + 4 * len(judged) + 4]
    found = []
    for first, second in zip(*np.unravel_index(order, worth.shape), strict=True):
        pair = (numbers[int(first)], numbers[int(second)])
        if worth[first, second] > 0 and frozenset(pair) not in judged:
            found.append((*pair, float(scores[first, second])))
    return found[:count]


def _judged_pairs(state: PersonState) -> set[frozenset[int]]:
    """Return the pairs of persons that somebody said are different."""

    def persons_of(name: str) -> set[int]:
        return set(state.persons[state.rows_of.get(name, np.zeros(0, np.int64))].tolist())

    return {
        frozenset((one, other))
        for first, second in state.word.barred
        for one in persons_of(first)
        for other in persons_of(second)
    }


def crop_subjects(state: PersonState, row_ids: Sequence[int]) -> list[Subject]:
    """Return crops by the lasting ids of their rows.

    Raises:
        GalleryError: A row is not there any more.
    """
    ids = state.table.row_ids
    subjects = []
    for number in row_ids:
        row = int(np.searchsorted(ids, number))
        if row == len(ids) or ids[row] != number:
            raise GalleryError("a crop is not in the gallery any more; load the page again")
        subjects.append(Subject(state.paths[row], int(state.persons[row]), row))
    return subjects


def _person(state: PersonState, number: int) -> Subject:
    if not (state.persons == number).any():
        raise GalleryError(f"{person_name(number)}: there is no such person any more; load the page again")
    return Subject(person_name(number), number)


def same_persons(state: PersonState, persons: Sequence[int], _crops: Sequence[int], _text: str) -> Decision:
    """Decide that persons are one."""
    return decide_same(state, [_person(state, number) for number in persons])


def different_persons(state: PersonState, persons: Sequence[int], _crops: Sequence[int], _text: str) -> Decision:
    """Decide that two persons are different people."""
    if len(persons) != 2:
        raise GalleryError(f"expected two persons that are not the same, got {len(persons)}")
    return decide_different(state, _person(state, persons[0]), _person(state, persons[1]))


def confirm_person(state: PersonState, persons: Sequence[int], crops: Sequence[int], _text: str) -> Decision:
    """Decide that crops show a person; without crops, all that it has."""
    own = [one for one in crop_subjects(state, crops) if one.person == persons[0]]
    return decide_confirm(state, _person(state, persons[0]), own)


def split_person(state: PersonState, persons: Sequence[int], crops: Sequence[int], _text: str) -> Decision:
    """Decide that crops of a person leave it and are a new one."""
    own = [one for one in crop_subjects(state, crops) if one.person == persons[0]]
    if not own:
        raise GalleryError("choose the crops that show somebody else first")
    return decide_split(state, own)


def rename_person(state: PersonState, persons: Sequence[int], _crops: Sequence[int], text: str) -> Decision:
    """Give a person a name."""
    return decide_name(state, _person(state, persons[0]), text.strip())


Decide = Callable[[PersonState, Sequence[int], Sequence[int], str], Decision]
DECISIONS: dict[str, Decide] = {
    "same": same_persons,
    "different": different_persons,
    "confirm": confirm_person,
    "split": split_person,
    "name": rename_person,
}


def decide(
    folder: Path, verb: str, persons: Sequence[int], crops: Sequence[int], text: str, *, instead: bool = False
) -> str:
    """Record what a visitor decides.

    Args:
        folder: The folder of the gallery.
        verb: A key of ``DECISIONS``.
        persons: The numbers of the persons.
        crops: The lasting ids of rows.
        text: The name, for the verb "name".
        instead: Give up older decisions that say the opposite.

    Returns:
        What has changed, in one sentence.

    Raises:
        GalleryError: The decision is not possible, or an older one says the opposite.
    """
    _, changed = record_decision(folder, lambda state: DECISIONS[verb](state, persons, crops, text), instead=instead)
    return _changed_words(changed)


def join_crops(folder: Path, row_ids: Sequence[int]) -> str:
    """Record that some crops show one person, whatever persons they have now.

    Args:
        folder: The folder of the gallery.
        row_ids: The lasting ids of their rows.

    Returns:
        What has changed, in one sentence.

    Raises:
        GalleryError: A crop is gone, there are fewer than two, or an older decision says the opposite.
    """
    _, changed = record_decision(folder, lambda state: decide_same(state, crop_subjects(state, row_ids)))
    return _changed_words(changed)


def _changed_words(changed: int) -> str:
    return f"Recorded. {changed} crop{'s have' if changed != 1 else ' has'} another person now."


def answer_several(state: PersonState, folder: Path, answers: Sequence[tuple[int, int, str]], *, instead: bool) -> str:
    """Record several answers to :func:`pairs_to_ask`, one after the other.

    An answer may join persons that a later one names, so each person is found again by one of its crops.

    Args:
        state: The persons as they were when they were asked for.
        folder: The folder of the gallery.
        answers: Two persons and the verb "same" or "different", each.
        instead: Give up older decisions that say the opposite.

    Returns:
        What has changed, in one sentence.

    Raises:
        GalleryError: An answer is not possible; those before it are recorded, and the message says how many.
    """
    anchors = {}
    for number in {number for first, second, _ in answers for number in (first, second)}:
        rows = _card(state, number).rows
        if not len(rows):
            raise GalleryError(f"{person_name(number)}: there is no such person any more; load the page again")
        anchors[number] = int(state.table.row_ids[rows[0]])
    for done, (first, second, verb) in enumerate(answers):
        try:
            now = read_persons(folder)
            persons = [subject.person for subject in crop_subjects(now, [anchors[first], anchors[second]])]
            if verb == "same" and persons[0] == persons[1]:
                continue  # an answer before this one has joined them
            decide(folder, verb, persons, (), "", instead=instead)
        except GalleryError as error:
            said = f"{done} of {len(answers)} answers are recorded; {person_name(first)} and {person_name(second)}"
            raise GalleryError(f"{said} not: {error}") from error
    return f"Recorded {len(answers)} answer{'s' * (len(answers) != 1)}."


def undo(folder: Path) -> str:
    """Take back the last decision; return what was taken back, in one sentence."""
    _, decision, number = undo_decision(folder)
    return f'Taken back: decision {number}, "{decision.verb}".'


def visits_of(state: PersonState, number: int) -> tuple[list[Sample], list[CameraVisit]]:
    """Return the crops of a person with known times, and its stays in front of cameras, in order of time."""
    rows = np.flatnonzero(state.persons == number)
    samples = [sample for sample in state.table.samples_at(rows) if sample.time]
    return samples, find_visits(samples, np.full(len(samples), number, np.int64))
