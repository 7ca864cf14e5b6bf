"""The log of decisions: an obvious version of its replay, and that undoing takes back exactly what was done."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reid.errors import DataError, GalleryError
from reid.retrieval.persons.decisions import CropKey, Decision, person_number
from reid.retrieval.persons.replaying import ContradictionError, append, replay, undone

KEYS = [CropKey(f"{name}.jpg", f"hash-{name}" if name in "ab" else "") for name in "abcdef"]


def same(person: int, *crops: int, absorbed: tuple[int, ...] = ()) -> Decision:
    return Decision("same", person, tuple(KEYS[i] for i in crops), absorbed=absorbed)


def different(person: int, crop: int, other: int, other_person: int = 0) -> Decision:
    return Decision("different", person, (KEYS[crop],), (KEYS[other],), other_person)


crops = st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)
decisions = st.one_of(
    st.builds(lambda person, which: same(person, *which), st.integers(1, 4), crops),
    st.builds(
        lambda person, which, more: different(person, which[0], which[1], more and person + more),
        st.integers(0, 3),
        st.lists(st.integers(0, 5), min_size=2, max_size=2, unique=True),
        st.integers(0, 2),
    ),
)


def partition_by_hand(log: list[Decision]) -> tuple[set[frozenset[str]], set[frozenset[str]]] | None:
    """The groups of confirmed crops and the pairs told apart, by merging sets; None where they contradict."""
    groups: list[tuple[int, set[str]]] = []
    pairs: set[frozenset[str]] = set()
    for one in log:
        sides = [(one.person, one.crops)] if one.person else []
        sides += [(one.other_person, one.others)] if one.other_person else []
        for person, keys in sides:
            names = {key.name for key in keys}
            touched = [group for group in groups if group[0] == person or group[1] & names]
            groups = [group for group in groups if group not in touched]
            groups.append((person, names.union(*(group[1] for group in touched))))
        pairs |= {frozenset((a.name, b.name)) for a in one.crops for b in one.others}
        if any(pair <= names for pair in pairs for _, names in groups):
            return None
    return {frozenset(names) for _, names in groups}, pairs


@given(st.lists(decisions, max_size=8))
def test_replay_is_what_merging_sets_gives(log: list[Decision]) -> None:
    expected = partition_by_hand(log)
    if expected is None:
        with pytest.raises(ContradictionError):
            replay(log)
        return
    word = replay(log)
    groups = {frozenset(word.crops_of(person)) for person in word.person_of.values()}
    assert (groups, {frozenset(pair) for pair in word.barred}) == expected


def test_an_older_decision_that_tells_people_apart_is_given_up_for_whom_it_names() -> None:
    """The older one says that b.jpg is not person 1, who is on a.jpg; the new one says who else person 1 is."""
    older, new = different(0, 1, 0, 1), different(1, 2, 0)
    with pytest.raises(ContradictionError) as caught:
        append((older,), new)
    assert caught.value.older == (0,)
    (after,) = append((older,), new, instead=True)
    assert after.replaced == (older,)


@given(st.lists(decisions, max_size=6), decisions, st.booleans())
@example([same(1, 0), same(1, 0), different(0, 1, 0, 1)], different(1, 2, 0), True)
def test_undo_takes_back_exactly_one_decision(log: list[Decision], new: Decision, instead: bool) -> None:
    kept: tuple[Decision, ...] = ()
    for one in log:
        try:
            kept = append(kept, one)
        except ContradictionError:
            continue
    try:
        after = append(kept, new, instead=instead)
    except ContradictionError:
        assert not instead
        return
    before, taken = undone(after)
    assert taken.crops == new.crops
    assert before == kept


def test_an_older_decision_is_replaced_and_comes_back() -> None:
    log = append((), same(1, 0, 1))
    with pytest.raises(ContradictionError) as caught:
        append(log, different(2, 1, 0))
    assert caught.value.older == (0,)
    log = append(log, different(2, 1, 0), instead=True)
    assert [one.verb for one in log] == ["different"]
    assert [(one.verb, one.crops) for one in undone(log)[0]] == [("same", same(1, 0, 1).crops)]


def test_one_decision_in_the_middle_is_undone() -> None:
    log = (same(1, 0, 1), same(1, 1, 2), same(2, 3, 4))
    left, taken = undone(log, 2)
    assert (left, taken) == ((log[0], log[2]), log[1])
    assert dict(replay(left).person_of) == {"hash-a": 1, "hash-b": 1, "d.jpg": 2, "e.jpg": 2}
    with pytest.raises(GalleryError, match="1 to 3"):
        undone(log, 4)
    with pytest.raises(GalleryError):
        undone(())


def test_joined_persons_have_one_name_and_number() -> None:
    log = [
        Decision("name", 1, (KEYS[0],), text="Anna"),
        Decision("name", 2, (KEYS[1],), text="Ben"),
        same(1, 0, 1),
        same(3, 2, 0, absorbed=(4,)),
    ]
    word = replay(log)
    assert dict(word.names_of_persons) == {3: "Anna"}
    assert [word.final(number) for number in (1, 2, 3, 4, 5)] == [3, 3, 3, 3, 5]


@given(st.lists(decisions, max_size=4))
def test_decisions_survive_json(log: list[Decision]) -> None:
    for one in log:
        assert Decision.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"verb": "same", "person": 0, "crops": [{"path": "a"}], "time": ""},
        {"verb": "marry", "person": 1, "crops": [{"path": "a"}], "time": ""},
        {"verb": "same", "person": "1", "crops": [{"path": "a"}], "time": ""},
        {"verb": "same", "person": 1, "crops": [], "time": ""},
        {"verb": "same", "person": 1, "crops": [3], "time": ""},
        {"verb": "same", "person": 1, "crops": [{"path": "a"}], "time": "", "absorbed": [0]},
    ],
)
def test_what_is_no_decision_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Decision.from_json(table)


def test_an_erased_crop_leaves_no_trace() -> None:
    log = append((same(1, 0, 1),), different(2, 1, 0), instead=True)
    left = log[0].without({KEYS[0]})
    assert left is None
    kept = Decision("same", 1, (KEYS[0], KEYS[2]), replaced=(same(1, 0, 1),), positions=(0,)).without({KEYS[0]})
    assert kept is not None
    assert {key.path for key in kept.named_crops()} == {"b.jpg", "c.jpg"}


def test_ids_are_read_as_they_are_written() -> None:
    assert [person_number(text) for text in ("person-7", "person-07", "person-", "person-x", "7", "person-٣")] == [
        7, 0, 0, 0, 0, 0,
    ]  # fmt: skip
