"""Decisions are obeyed by every group, and a group is divided by similarity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.retrieval.persons.decisions import CropKey, Decision
from reid.retrieval.persons.replaying import ContradictionError, append, replay
from reid.retrieval.persons.resolution import resolve, rows_of_crops

COUNT = 12


def paths() -> list[str]:
    return [str(Path("crops") / f"{row}.jpg") for row in range(COUNT)]


def key(row: int) -> CropKey:
    return CropKey(paths()[row])


def persons(base: list[int], *log: Decision, vectors: np.ndarray | None = None) -> list[int]:
    near = np.ones((COUNT, 2), np.float32) if vectors is None else vectors
    word, rows_of = replay(log), rows_of_crops(log, paths())
    return resolve(np.array(base), word, rows_of, lambda rows: near[rows]).tolist()


def two_directions(second: list[int]) -> np.ndarray:
    """Vectors of two people: rows in ``second`` look like the second one."""
    angles = np.where(np.isin(np.arange(COUNT), second), 80, 10) + np.arange(COUNT) / 2
    return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1).astype(np.float32)


def test_without_decisions_the_groups_are_the_persons() -> None:
    base = [1, 1, 2, 2, 0, 0, 3, 3, 3, 3, 0, 1]
    assert persons(base) == base


def test_joined_groups_are_one_person() -> None:
    joined = persons([1] * 6 + [2] * 6, Decision("same", 1, (key(0), key(6)), absorbed=(2,)))
    assert joined == [1] * 12


def test_a_confirmed_crop_moves_by_itself_where_its_group_has_another_person() -> None:
    base = [1] * 6 + [2] * 6
    log = [Decision("confirm", 2, (key(7),)), Decision("same", 1, (key(0), key(6)))]
    assert persons(base, *log) == [1] * 7 + [2] * 5


def test_a_group_of_two_people_is_divided_by_similarity() -> None:
    second = [3, 5, 8, 9]
    rejected = Decision("different", 9, (key(3),), (key(0),), 1)
    found = persons([1] * 12, rejected, vectors=two_directions(second))
    assert [row for row, person in enumerate(found) if person == 9] == second


def test_one_wrong_crop_leaves_and_nobody_follows() -> None:
    rejected = Decision("different", 9, (key(3),), (key(0),), 1)
    found = persons([1] * 12, rejected, vectors=two_directions([3]))
    assert found == [1, 1, 1, 9, *[1] * 8]


def test_two_crops_told_apart_are_never_one_person() -> None:
    found = persons([1] * 12, Decision("different", 0, (key(3),), (key(4),)))
    assert sorted({found[3], found[4]}) == [0, 1]


def test_crops_are_found_by_content_where_images_were_moved() -> None:
    decision = Decision("confirm", 4, (CropKey("old/1.jpg", "aa"), CropKey("new/2.jpg", "bb")))
    found = rows_of_crops([decision], ["new/1.jpg", "new/2.jpg", "x.jpg"], ["aa", "cc", None])
    assert {name: rows.tolist() for name, rows in found.items()} == {"aa": [0]}


sides = st.lists(st.integers(0, COUNT - 1), min_size=2, max_size=4, unique=True)


@st.composite
def logs(draw: st.DrawFn) -> list[Decision]:
    log: tuple[Decision, ...] = ()
    for number in range(draw(st.integers(0, 6))):
        rows = draw(sides)
        if draw(st.booleans()):
            new = Decision("same", draw(st.integers(1, 3)), tuple(map(key, rows)))
        else:
            new = Decision("different", draw(st.sampled_from([0, 20 + number])), (key(rows[0]),), (key(rows[1]),))
        try:
            log = append(log, new)
        except ContradictionError:
            continue
    return list(log)


@given(st.lists(st.integers(0, 3), min_size=COUNT, max_size=COUNT), logs(), st.integers(0, 5))
def test_every_decision_is_obeyed(base: list[int], log: list[Decision], seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((COUNT, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found, word = persons(base, *log, vectors=vectors), replay(log)
    for row in range(COUNT):
        if key(row).name in word.person_of:
            assert found[row] == word.person_of[key(row).name]
    for first, second in word.barred:
        one, other = (found[paths().index(name)] for name in (first, second))
        assert one != other or one == 0


@given(st.permutations(range(COUNT)), logs())
def test_the_order_of_the_rows_decides_nothing(order: list[int], log: list[Decision]) -> None:
    base, vectors = [1 + row % 2 for row in range(COUNT)], two_directions([1, 4, 5])
    word = replay(log)
    here = resolve(np.array(base), word, rows_of_crops(log, paths()), lambda rows: vectors[rows])
    moved = [paths()[row] for row in order]
    there = resolve(
        np.array(base)[order], word, rows_of_crops(log, moved), lambda rows: vectors[order][rows]
    )  # fmt: skip
    assert here[order].tolist() == pytest.approx(there.tolist())
