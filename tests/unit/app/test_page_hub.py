"""The head of an open page and its lists of cameras follow the gallery."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from helpers.asking_pages import service_of
from helpers.person_crops import people
from helpers.threads import build_in_thread
from reid.app.opened_gallery import open_served_gallery
from reid.app.page_hub import FOLLOW, PageHub
from reid.app.page_values import PageVisit
from reid.app.pages import all_pages
from reid.app.uploads import UploadStore
from reid.records import Embeddings
from reid.retrieval.gallery import Gallery


def hub_of(folder: Path, state: Path) -> PageHub:
    def build() -> PageHub:
        data = open_served_gallery(folder)
        with gr.Blocks():
            return PageHub(data, all_pages(service_of(data, state), UploadStore()))

    return build_in_thread(build)


def asked(hub: PageHub, **question: Any) -> dict[str, Any]:
    answer, _ = hub.answer(PageVisit(), SimpleNamespace(_data=question), None)  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(answer)
    return found


def state_in(html: str) -> str:
    return html.partition('id="reid-head" data-state="')[2].partition('"')[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Gallery.build(people()).save(tmp_path / "crops")
    return tmp_path / "crops"


def test_the_page_follows_the_gallery(folder: Path, tmp_path: Path) -> None:
    hub = hub_of(folder, tmp_path / "state")
    known = state_in(hub.html())
    look = {"page": "", "action": FOLLOW, "seq": 0}
    assert asked(hub, **look, gallery_state=known) == {"page": "", "seq": 0, "parts": {}, "fields": {}}
    one = people().samples[0]
    added = Embeddings((replace(one, path=Path("new.jpg"), camera="roof"),), people().vectors[:1], people().fingerprint)
    gallery = Gallery.open(folder)
    gallery.add(added)
    gallery.save(folder)
    answer = asked(hub, **look, gallery_state=known)
    assert "<b>97</b> crops" in answer["follow"]["head"]
    assert "<b>3</b> cameras" in answer["follow"]["head"]
    assert 'value="roof"' in answer["follow"]["search-filters"]
    assert 'value="roof"' in answer["follow"]["upload-labels"]
    later = answer["gallery_state"]
    assert later != known
    assert "error" not in answer
    assert "follow" not in asked(hub, **look, gallery_state=later)
    query = f"r{Gallery.open(folder).table.row_ids[0]}"
    searched = asked(hub, page="search", action="search", query=query, seq=7, gallery_state=known)
    assert searched["seq"] == 7
    assert searched["parts"]["answers"]
    assert "<b>97</b>" in searched["follow"]["head"], "every answer brings the head along"
    assert "error" in asked(hub, page="", action="", seq=0)


def test_a_page_of_an_earlier_run_is_brought_up_to_date(folder: Path, tmp_path: Path) -> None:
    known = state_in(hub_of(folder, tmp_path / "state").html())
    answer = asked(hub_of(folder, tmp_path / "other"), page="", action=FOLLOW, gallery_state=known)
    assert "<b>96</b>" in answer["follow"]["head"]


def test_a_page_of_an_empty_gallery_gets_its_first_crops(tmp_path: Path) -> None:
    Gallery.create(tmp_path / "crops", people().fingerprint, 32)
    hub = hub_of(tmp_path / "crops", tmp_path / "state")
    html = hub.html()
    assert "This gallery is empty" in html
    gallery = Gallery.open(tmp_path / "crops")
    gallery.add(people())
    gallery.save(tmp_path / "crops")
    answer = asked(hub, page="search", action="search", query="", seq=1, gallery_state=state_in(html))
    assert answer["parts"]["picker"].count("<button") == 12
    assert answer["fields"]["query"].startswith("r")
    assert "<b>96</b>" in answer["follow"]["head"]
