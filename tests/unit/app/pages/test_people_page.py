"""Several questions about persons are answered at once, also where one answer changes the persons of the next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.asking_pages import asking, service_of
from helpers.person_crops import people
from reid.app.opened_gallery import open_served_gallery
from reid.retrieval.gallery import Gallery
from reid.retrieval.persons.person_state import read_persons

Asked = tuple[Any, list[int]]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    Gallery.build(people()).save(tmp_path / "crops")
    ask, _, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "state"))
    shown = ask("people", "identify")
    pairs = re.findall(r'name="answer_(\d+)_(\d+)" value="same"', shown.parts["people-questions"])
    assert len(pairs) == len(set(pairs)) > 1, "several are asked at once"
    return ask, [
        int(number) for number in re.findall(r'name="chosen" value="person-(\d+)"', shown.parts["people-list"])
    ]


def test_several_answers_are_recorded_at_once(asked: Asked, tmp_path: Path) -> None:
    """A is B, B is C, and A is not D: the first answer leaves no person B, which the second one names."""
    ask, numbers = asked
    a, b, c, d, e = numbers[:5]
    state = read_persons(tmp_path / "crops")
    rows = {number: set((state.persons == number).nonzero()[0].tolist()) for number in (a, b, c, d, e)}
    answers = {f"answer_{a}_{b}": "same", f"answer_{b}_{c}": "same", f"answer_{a}_{d}": "different"}
    found = ask("people", "answer", **answers, **{f"answer_{d}_{e}": ""})
    assert found.parts["people-done"] == "Recorded 3 answers."
    now = read_persons(tmp_path / "crops").persons
    joined = {int(now[row]) for row in rows[a] | rows[b] | rows[c]}
    assert len(joined) == 1
    assert not joined & {int(now[row]) for row in rows[d]}
    refused = ask("people", "same", chosen=[f"person-{joined.pop()}", f"person-{d}"])
    assert refused.error, "they are known to be different"
    for _ in range(3):
        assert ask("people", "undo").error == ""
    assert read_persons(tmp_path / "crops").persons.tolist() == state.persons.tolist()


def test_what_cannot_be_recorded_is_said(asked: Asked, tmp_path: Path) -> None:
    ask, numbers = asked
    a, b, c = numbers[:3]
    assert "hoose an answer" in ask("people", "answer", answer_x_y="same", **{f"answer_{a}_{b}": ""}).error
    assert "there is no such person" in ask("people", "answer", **{f"answer_{a}_999999": "same"}).error
    contrary = {f"answer_{a}_{b}": "same", f"answer_{b}_{c}": "same", f"answer_{a}_{c}": "different"}
    assert "2 of 3 answers are recorded" in ask("people", "answer", **contrary).error.lower()
