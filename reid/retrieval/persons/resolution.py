"""Apply what people have decided to the groups that the program found: which person does every crop show?

The program's group of a crop is kept as a number.  Decisions come first: a confirmed crop shows the person that it was
confirmed for.  The other crops of a group show the person of the group, unless a confirmed crop of somebody else is in
the group.  Then they are divided: each goes to the person whose crops it is more similar to.  A crop that was told
apart from a person never goes to this person.

The result depends on the groups, the decisions and the vectors only, so undoing a decision undoes all that it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from reid.records import FloatArray, IntArray
from reid.retrieval.persons.decisions import NO_PERSON, Decision
from reid.retrieval.persons.replaying import HumanWord

ROUNDS = 10  # of dividing a group, at most
Vectors = Callable[[IntArray], FloatArray]
"""rows (K,) -> their vectors (K, D) float32 of unit length."""


def rows_of_crops(
    decisions: Iterable[Decision], paths: Sequence[str], contents: Sequence[str | None] | None = None
) -> dict[str, IntArray]:
    """Find the rows of a gallery that show the crops of some decisions.

    Args:
        decisions: The decisions.
        paths: The path of each row (N,).
        contents: The hash of the file of each row (N,), None where it is unknown.

    Returns:
        For the name of each key its rows, ascending; keys that no row shows are left out.

    Example:
        >>> from reid.retrieval.persons.decisions import CropKey
        >>> decision = Decision("confirm", 1, (CropKey("moved.jpg", "f00d"), CropKey("b.jpg")))
        >>> found = rows_of_crops([decision], ["a.jpg", "b.jpg"], ["f00d", None])
        >>> found["f00d"].tolist(), found["b.jpg"].tolist()
        ([0], [1])
    """
    keys = {key for decision in decisions for key in decision.named_crops()}
    by_path = {key.path: key.name for key in keys}
    by_content = {key.content: key.name for key in keys if key.content}
    found: dict[str, list[int]] = {}
    for row, path in enumerate(paths if keys else ()):
        content = contents[row] if contents is not None else None
        name = by_content.get(content or "")
        if name is None and path in by_path:
            known = by_path[path]
            if content is None or known == path:  # a file that was replaced by another one is another crop
                name = known
        if name is not None:
            found.setdefault(name, []).append(row)
    return {name: np.array(rows, np.int64) for name, rows in found.items()}


def resolve(base: IntArray, word: HumanWord, rows_of: Mapping[str, IntArray], vectors: Vectors) -> IntArray:
    """Return the person that every crop shows.

    Args:
        base: (N,) int64, the number of the program's group of each crop, 0 for none.
        word: The state after all decisions.
        rows_of: The rows of every crop that a decision names.
        vectors: The vectors of the crops.

    Returns:
        (N,) int64, the number of the person, 0 where it is undecided.

    Example:
        >>> word = HumanWord({"a": 1, "b": 2}, frozenset({("a", "b")}), {}, {})
        >>> near = np.float32([[1, 0], [0, 1], [0.28, 0.96], [0.8, 0.6]])
        >>> rows_of = {"a": np.array([0]), "b": np.array([1])}
        >>> resolve(np.array([1, 1, 1, 1]), word, rows_of, lambda rows: near[rows]).tolist()
        [1, 2, 2, 1]
    """
    numbers, inverse = np.unique(base, return_inverse=True)
    persons = np.array([word.final(number) for number in numbers.tolist()], np.int64)[inverse]
    default = persons.copy()
    confirmed = np.zeros(len(base), np.int64)
    for name, person in word.person_of.items():
        confirmed[rows_of.get(name, _NO_ROWS)] = person
    persons = np.where(confirmed > 0, confirmed, persons)
    barred = _barred_persons(word, rows_of)
    contested = {(group, one) for group, one in _pairs(default, confirmed) if group not in (NO_PERSON, one)}
    for group in sorted({group for group, _ in contested}):
        rivals = sorted({one for other, one in contested if other == group})
        _divide(persons, default, confirmed, group, rivals, barred, vectors)
    for row, persons_barred in barred.items():
        if not confirmed[row] and int(persons[row]) in persons_barred:
            persons[row] = NO_PERSON
    _expel(persons, word, rows_of, confirmed, vectors)
    return persons


_NO_ROWS = np.zeros(0, np.int64)


def _pairs(default: IntArray, confirmed: IntArray) -> set[tuple[int, int]]:
    rows = np.flatnonzero(confirmed)
    return set(zip(default[rows].tolist(), confirmed[rows].tolist(), strict=True))


def _barred_persons(word: HumanWord, rows_of: Mapping[str, IntArray]) -> dict[int, set[int]]:
    """Return for rows the persons that they were told apart from."""
    barred: dict[int, set[int]] = {}
    for first, second in word.barred:
        for one, other in ((first, second), (second, first)):
            person = word.person_of.get(other, NO_PERSON)
            for row in rows_of.get(one, _NO_ROWS).tolist():
                if person:
                    barred.setdefault(row, set()).add(person)
    return barred


def _expel(
    persons: IntArray, word: HumanWord, rows_of: Mapping[str, IntArray], confirmed: IntArray, vectors: Vectors
) -> None:
    """Leave it undecided which person a crop shows that was told apart from another free crop of the same person.

    Of both crops, this is the one that is less similar to the mean of the person.
    """
    for pair in sorted(word.barred):
        for one in rows_of.get(pair[0], _NO_ROWS).tolist():
            for other in rows_of.get(pair[1], _NO_ROWS).tolist():
                if persons[one] == NO_PERSON or persons[one] != persons[other] or confirmed[one] or confirmed[other]:
                    continue
                points = vectors(np.flatnonzero(persons == persons[one]))
                first, second = vectors(np.array([one, other], np.int64)) @ points.mean(axis=0)
                persons[other if first >= second else one] = NO_PERSON


def _divide(
    persons: IntArray,
    default: IntArray,
    confirmed: IntArray,
    group: int,
    rivals: Sequence[int],
    barred: Mapping[int, set[int]],
    vectors: Vectors,
) -> None:
    """Divide the free crops of a group between its person and others that were confirmed in it; changes ``persons``.

    Each crop is compared with the mean of the other crops of each person, until nothing changes.
    """
    candidates = np.array([group, *rivals], np.int64)
    fixed = np.flatnonzero(np.isin(confirmed, candidates))
    free = np.flatnonzero((default == group) & (confirmed == 0))
    if not len(free):
        return
    rows = np.concatenate([free, fixed])
    points = vectors(rows).astype(np.float64)
    known = np.searchsorted(candidates, confirmed[fixed], sorter=np.argsort(candidates))
    owner = np.concatenate([np.zeros(len(free), np.int64), np.argsort(candidates)[known]])
    allowed = np.ones((len(free), len(candidates)), np.bool_)
    for position, row in enumerate(free.tolist()):
        allowed[position] = ~np.isin(candidates, list(barred.get(row, ())))
    for _ in range(ROUNDS):
        better = _nearest(points, owner, len(free), len(candidates), allowed)
        if np.array_equal(better, owner[: len(free)]):
            break
        owner[: len(free)] = better
    persons[free] = candidates[owner[: len(free)]]


def _nearest(
    points: npt.NDArray[np.float64], owner: IntArray, free: int, count: int, allowed: npt.NDArray[np.bool_]
) -> IntArray:
    """Return for each free crop the person with the nearest mean; its present person wins a tie."""
    sums = np.zeros((count, points.shape[1]))
    np.add.at(sums, owner, points)
    sizes = np.bincount(owner, minlength=count)
    own = owner[:free]
    scores = points[:free] @ (sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)).T
    left = sums[own] - points[:free]  # without the crop itself
    scores[np.arange(free), own] = np.einsum("nd,nd->n", points[:free], left) / np.linalg.norm(left, axis=1).clip(1e-12)
    scores[np.arange(free)[sizes[own] == 1], own[sizes[own] == 1]] = np.inf  # nobody else shows its person
    scores[:, sizes == 0] = -np.inf
    scores[~allowed] = -np.inf
    best = scores.argmax(axis=1)
    stays = scores[np.arange(free), own] >= scores[np.arange(free), best]
    nearest: IntArray = np.where(stays, own, best).astype(np.int64)
    return nearest
