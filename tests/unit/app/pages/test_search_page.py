"""Filters by who is known, a box on an uploaded image, and the purpose in what is saved."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.asking_pages import asking, service_of
from helpers.person_crops import people
from reid.adaptation.identify import identify
from reid.app.frame_box import FIELDS
from reid.app.opened_gallery import open_served_gallery
from reid.app.query import Query
from reid.app.uploads import UploadStore
from reid.records import Embeddings
from reid.retrieval.gallery import Gallery

NOBODY = {"cross": False, "count": "50"}


def test_answers_are_known_or_unknown_people(tmp_path: Path) -> None:
    """Half of the crops have identities; a person who gets a name is known from then on."""
    drawn = people(6)
    samples = tuple(
        sample if int(sample.identity[1:]) < 3 else type(sample)(sample.path, "", sample.camera, time=sample.time)
        for sample in drawn.samples
    )
    Gallery.build(Embeddings(samples, drawn.vectors, "f00d")).save(tmp_path / "crops")
    ask, _, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "state"))

    def rows(known: str) -> set[object]:
        return {one["row"] for one in ask("search", "search", query="r0", known=known, **NOBODY).export or []}

    unlabelled = {row for row, sample in enumerate(samples) if not sample.identity}
    everybody = set(range(1, len(samples)))
    assert rows("unknown") == unlabelled
    assert rows("known") == everybody - unlabelled
    assert rows("") == everybody
    identify(tmp_path / "crops")
    assert rows("unknown") == unlabelled, "a person without a name is unknown"
    state = service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "other").persons.current()
    assert state is not None
    number = int(state.persons[min(unlabelled)])
    assert number, "the case means something"
    of_person = set(np.flatnonzero(state.persons == number).tolist())
    named = ask("people", "name", persons=f"person-{number}", **{f"name_person_{number}": "Anna"})
    assert named.error == ""
    assert rows("unknown") == unlabelled - of_person
    assert rows("known") == everybody - (unlabelled - of_person)
    assert "choice of people" in ask("search", "search", query="r0", known="other").error


@pytest.fixture
def frame() -> bytes:
    """A grey image of 200 x 100 pixels with a red part from (50, 20) to (80, 90)."""
    pixels = np.full((100, 200, 3), 128, np.uint8)
    pixels[20:90, 50:80] = (200, 20, 20)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_box_on_an_image_is_searched_for(tmp_path: Path, frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    Gallery.build(people()).save(tmp_path / "crops")
    uploads = UploadStore()
    ask, visit, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "state"), uploads)
    asked: list[Query] = []

    def vector_of(_served: object, query: Query, _is_main: bool) -> np.ndarray:
        asked.append(query)
        return np.ones((1, 32), np.float32)

    monkeypatch.setattr("reid.app.query.vector_of", vector_of)
    name = uploads.add("anna", frame)
    shown = ask("search", "search", query="upload", images=[name], uploads=[name])
    assert f'data-frame="{name}"' in shown.parts["query"]
    assert 'max="200"' in shown.parts["query"]
    box = dict(zip(FIELDS, ("80", "90", "50", "20"), strict=True))  # any two corners that lie opposite
    found = ask("search", "box", frame=name, **box)
    assert found.error == ""
    assert found.fields == {"query": "upload", "images": f"{name}-box"}
    (image,) = asked[-1].uploads
    assert image.size == (30, 70)
    assert {colour for _, colour in image.getcolors()} == {(200, 20, 20)}
    assert 'value="80"' in found.parts["query"], "the corners stay in their fields"
    assert ask("search", "search", **found.fields | {"images": [f"{name}-box"]}).error == "", "it is remembered"
    wide = dict(zip(FIELDS, ("150", "50", "9000", "9000"), strict=True))
    assert ask("search", "box", frame=name, **wide).error == ""
    assert asked[-1].uploads[0].size == (50, 50), "what lies beyond the image is left out"
    for wrong in ({"box_left": ""}, {"box_left": "55"}, {"box_left": "x"}, {"frame": "upload-other"}):
        assert ask("search", "box", **{"frame": name, **box, **wrong}).error
    assert set(visit.images) == {name, f"{name}-box"}


def test_what_is_saved_names_its_purpose(tmp_path: Path) -> None:
    Gallery.build(people()).save(tmp_path / "crops")
    data = open_served_gallery(tmp_path / "crops")
    ask, _, _ = asking(service_of(data, tmp_path / "state", ("lost child",)))
    saved = ask("search", "search", query="r0", purpose="lost child").export
    assert saved is not None
    assert {one["purpose"] for one in saved} == {"lost child"}
    free, _, _ = asking(service_of(data, tmp_path / "other"))
    assert all("purpose" not in one for one in free("search", "search", query="r0").export or [{"purpose": ""}])
