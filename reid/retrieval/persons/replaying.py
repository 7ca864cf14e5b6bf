"""Replay a log of decisions, add one, and take one back.

:func:`replay` gives the state after all decisions.  It depends on nothing else, so removing a decision from the log
gives exactly the state without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reid.errors import GalleryError
from reid.retrieval.persons.decisions import Decision


@dataclass(frozen=True)
class HumanWord:
    """The state after some decisions.

    Attributes:
        person_of: The number of the person of every confirmed crop, by the name of its key.
        barred: The pairs of crops, by the names of their keys, that show different people.
        alias: For each person that was found to be another one, that other one.
        names_of_persons: The names of persons by their numbers.
    """

    person_of: Mapping[str, int]
    barred: frozenset[tuple[str, str]]
    alias: Mapping[int, int]
    names_of_persons: Mapping[int, str]

    def final(self, person: int) -> int:
        """Return the person that a person was found to be; itself where it is nobody else."""
        for _ in range(len(self.alias)):
            if person not in self.alias:
                break
            person = self.alias[person]
        return person

    def crops_of(self, person: int) -> list[str]:
        """Return the confirmed crops of a person, by the names of their keys."""
        return [name for name, number in self.person_of.items() if number == person]


class ContradictionError(GalleryError):
    """A decision says the opposite of an older one.

    Attributes:
        older: The positions of the older decisions in the log, the last one first.
    """

    def __init__(self, message: str, older: Sequence[int]) -> None:
        super().__init__(message)
        self.older = tuple(older)


def replay(decisions: Sequence[Decision]) -> HumanWord:
    """Return the state after some decisions.

    Args:
        decisions: The decisions, the oldest first.

    Returns:
        The state.

    Raises:
        ContradictionError: A decision says the opposite of older ones.

    Example:
        >>> from reid.retrieval.persons.decisions import CropKey
        >>> a, b = CropKey("a.jpg"), CropKey("b.jpg")
        >>> word = replay([Decision("same", 1, (a, b)), Decision("name", 1, (a,), text="Anna")])
        >>> word.person_of["b.jpg"], word.names_of_persons[1]
        (1, 'Anna')
    """
    state = _Replay(decisions)
    for position in range(len(decisions)):
        state.apply(position)
    barred = frozenset(_pair(first, second) for first, others in state.barred.items() for second in others)
    return HumanWord(state.person_of, barred, state.alias, state.names)


class _Replay:
    """The state while decisions are replayed."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.decisions = decisions
        self.person_of: dict[str, int] = {}
        self.members: dict[int, set[str]] = {}
        self.alias: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.barred: dict[str, dict[str, int]] = {}  # for each crop, others and the decision that told them apart

    def apply(self, position: int) -> None:
        decision = self.decisions[position]
        crops, others = ({key.name for key in keys} for keys in (decision.crops, decision.others))
        joined = {self.person_of[name] for name in crops if name in self.person_of} | set(decision.absorbed)
        moved = self._confirm(decision.person, crops, joined) if decision.person else crops
        if decision.other_person:
            known = {self.person_of[name] for name in others if name in self.person_of}
            moved = moved | self._confirm(decision.other_person, others, known)
        self._name(decision, joined)
        for crop in crops:
            for other in others:
                self.barred.setdefault(crop, {}).setdefault(other, position)
                self.barred.setdefault(other, {}).setdefault(crop, position)
        for name in sorted(moved):
            person = self.person_of.get(name)
            for other, barred_by in self.barred.get(name, {}).items():
                if name == other or (person is not None and self.person_of.get(other) == person):
                    raise self._contradiction(position, name, other, barred_by)

    def _confirm(self, person: int, crops: set[str], joined: set[int]) -> set[str]:
        """Note that crops, and all crops of the joined persons, show a person; return them."""
        joined = joined - {person}
        moved = crops.union(*(self.members.pop(one, set()) for one in joined))
        self.person_of |= dict.fromkeys(moved, person)
        self.members.setdefault(person, set()).update(moved)
        self.alias.pop(person, None)
        self.alias |= dict.fromkeys(joined, person)
        return moved

    def _name(self, decision: Decision, joined: set[int]) -> None:
        """Give the person the name of those that became one with it, or the name that the decision gives it."""
        for number in sorted(joined - {decision.person}) if decision.person else ():
            name = self.names.pop(number, "")
            if name:
                self.names.setdefault(decision.person, name)
        if decision.verb == "name":
            self.names.pop(decision.person, None)
            if decision.text:
                self.names[decision.person] = decision.text

    def _contradiction(self, position: int, first: str, second: str, barred_by: int) -> ContradictionError:
        paths = [self._path_of(name) for name in (first, second)]
        if first == second:
            return ContradictionError(f"{paths[0]}: a crop cannot differ from itself", ())
        older, said = [barred_by], "different people"
        if barred_by == position:
            touching = [{first, second} & _confirmed_by(one) for one in self.decisions[:position]]
            older = sorted((i for i, found in enumerate(touching) if found), key=lambda i: (len(touching[i]), i))[::-1]
            said = "one person"
        return ContradictionError(
            f"{paths[0]} and {paths[1]}: decision {older[0] + 1 if older else position + 1} says that they show {said};"
            ' take it back with "reid identify undo", or add --instead',
            older,
        )

    def _path_of(self, name: str) -> str:
        return next(key.path for one in reversed(self.decisions) for key in one.named_crops() if key.name == name)


def _confirmed_by(decision: Decision) -> set[str]:
    """Return the crops of which a decision says who they show, by the names of their keys."""
    crops = decision.crops if decision.person else ()
    others = decision.others if decision.other_person else ()
    return {key.name for key in (*crops, *others)}


def _pair(first: str, second: str) -> tuple[str, str]:
    return (first, second) if first <= second else (second, first)


def append(decisions: Sequence[Decision], new: Decision, *, instead: bool = False) -> tuple[Decision, ...]:
    """Return a log with one more decision.

    Args:
        decisions: The log.
        new: The decision.
        instead: Give up older decisions that say the opposite; they are kept in the new one, so that undoing it brings
            them back.

    Raises:
        ContradictionError: An older decision says the opposite, and ``instead`` is false.
    """
    log, given_up = dict(enumerate(decisions)), dict[int, Decision]()
    while True:
        try:
            replay([*log.values(), new])
            break
        except ContradictionError as error:
            if not instead or not error.older:
                raise
            position = list(log)[error.older[0]]
            given_up[position] = log.pop(position)
    if given_up:
        positions = tuple(sorted(given_up))
        new = replace(new, replaced=tuple(given_up[position] for position in positions), positions=positions)
    return (*log.values(), new)


def undone(decisions: Sequence[Decision], number: int | None = None) -> tuple[tuple[Decision, ...], Decision]:
    """Return a log without one decision, and this decision.

    Args:
        decisions: The log.
        number: The number of the decision, from 1; None takes the last one.

    Raises:
        GalleryError: There is no such decision, or later ones contradict what comes back.
    """
    if not decisions:
        raise GalleryError("no decision to undo; the log is empty")
    position = len(decisions) if number is None else number
    if not 1 <= position <= len(decisions):
        raise GalleryError(f"expected the number of a decision, 1 to {len(decisions)}, got {number}")
    taken = decisions[position - 1]
    left = [*decisions[: position - 1], *decisions[position:]]
    for where, one in zip(taken.positions, taken.replaced, strict=True):
        left.insert(where, one)
    replay(left)
    return tuple(left), taken
