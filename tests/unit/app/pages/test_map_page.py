"""The map before and after adaptation, and several points as one query."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from helpers.asking_pages import asking, service_of
from helpers.person_crops import people, unit
from reid.app.accounts import Role, User
from reid.app.opened_gallery import open_served_gallery
from reid.records import Embeddings
from reid.retrieval.gallery import Gallery


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Gallery.build(people()).save(tmp_path / "crops")
    return tmp_path / "crops"


def shares(html: str) -> list[int]:
    return [int(number) for number in re.findall(r"Cameras explain (\d+) % of", html)]


def test_the_map_shows_both_networks(folder: Path, tmp_path: Path) -> None:
    """The adapted network has embedded some of the crops, without any difference between the cameras."""
    ask, _, pages = asking(service_of(open_served_gallery(folder), tmp_path / "state"))
    assert 'name="adapted"' not in pages["map"].first_html()
    drawn = people()
    chosen = np.arange(0, len(drawn.samples), 2)
    directions = np.random.default_rng(5).standard_normal((12, 32))
    persons = [int(drawn.samples[row].identity[1:]) for row in chosen.tolist()]
    samples = tuple(drawn.samples[row] for row in chosen.tolist())
    Gallery.build(Embeddings(samples, unit(directions[persons]), "ad0b")).save(tmp_path / "crops-adapted")
    assert 'name="adapted"' in pages["map"].first_html()
    html = ask("map", "show", adapted=True).parts["map"]
    assert html.count("<circle") == 2 * len(chosen)
    assert html.index("Before adaptation") < html.index("After adaptation")
    before, after = shares(html)
    assert before > 5
    assert after == 0
    assert ask("map", "show").parts["map"].count("<circle") == 2 * len(drawn.samples)


def test_several_points_are_one_query(folder: Path, tmp_path: Path) -> None:
    """The answers are those of the mean of the vectors, and none of the chosen crops is among them."""
    ask, _, _ = asking(service_of(open_served_gallery(folder), tmp_path / "state"))
    drawn = people()
    rows = [0, 4, 9]
    found = ask("search", "search", query=",".join(f"r{row}" for row in rows), cross=False, count="50")
    assert found.error == ""
    assert "The mean of 3 crops" in found.parts["query"]
    scores = drawn.vectors @ unit(drawn.vectors[rows].mean(axis=0, keepdims=True))[0]
    expected = [row for row in np.argsort(-scores, kind="stable").tolist() if row not in rows][:50]
    assert [one["row"] for one in found.export or []] == expected
    np.testing.assert_allclose([one["score"] for one in found.export or []], scores[expected], atol=1e-5)
    twice = ask("search", "search", query="r0,r4,r9,r4", cross=False, count="50")
    assert twice.export == found.export, "a crop counts once"
    for wrong in ("r0,q1", "r0,r999999", ",".join(f"r{row}" for row in range(9)), "r0,", ",r0"):
        assert ask("search", "search", query=wrong).error


def test_chosen_crops_are_shown_and_searched_for(folder: Path, tmp_path: Path) -> None:
    ask, _, _ = asking(service_of(open_served_gallery(folder), tmp_path / "state"))
    shown = ask("map", "choose", rows=["r1", "r3", "r5"]).parts["map-chosen"]
    assert "3 crops chosen" in shown
    assert 'data-value="r1,r3,r5"' in shown
    assert "show one person</button>" not in shown, "nobody has grouped the crops"
    many = ask("map", "choose", rows=[f"r{row}" for row in range(96)]).parts["map-chosen"]
    query = re.findall(r'data-value="(r\d+(?:,r\d+)+)"', many)
    assert [len(one.split(",")) for one in query] == [8]
    assert query[0].startswith("r0,r12,r24,")
    assert many.count("<img") == 24
    assert ask("search", "search", query=query[0]).error == ""
    for nothing in ([], ["r9999"], ["", "x", "r", "r-1", "q1", "r1e3", "r" + "9" * 30], "r1"):
        assert ask("map", "choose", rows=nothing).parts == {"map-chosen": ""}
    assert "1 crop chosen" in ask("map", "choose", rows=["r1", "r1", "r9999"]).parts["map-chosen"]


def test_chosen_crops_become_one_person(folder: Path, tmp_path: Path) -> None:
    from reid.adaptation.identify import identify
    from reid.retrieval.persons.person_state import read_persons

    service = service_of(open_served_gallery(folder), tmp_path / "state")
    ask, visit, _ = asking(service)
    assert "People" in ask("map", "group", rows=["r0", "r1"]).error
    before = identify(folder).state.persons
    first, second = np.flatnonzero(before == before[0])[0], np.flatnonzero(before != before[0])[0]
    rows = [f"r{first}", f"r{second}"]
    assert "show one person</button>" in ask("map", "choose", rows=rows).parts["map-chosen"]
    assert "two crops at least" in ask("map", "group", rows=rows[:1]).error
    visit.user = User("eve", Role.VIEWER)
    assert "role" in ask("map", "group", rows=rows).error
    np.testing.assert_array_equal(read_persons(folder).persons, before)
    visit.user = User("olga", Role.OPERATOR)
    done = ask("map", "group", rows=rows)
    assert "Recorded." in done.parts["map-chosen"]
    after = read_persons(folder).persons
    assert after[first] == after[second] != 0
    ask("people", "undo")
    np.testing.assert_array_equal(read_persons(folder).persons, before)
    assert '"verb": "same"' in (tmp_path / "state" / "audit.jsonl").read_text()
