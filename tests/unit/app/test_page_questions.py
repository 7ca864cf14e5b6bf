"""What the pages answer, without a browser: for every kind of gallery, for wrong questions, and for each role."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.person_crops import people
from reid.app.accounts import Role, User
from reid.app.audit_log import AuditLog
from reid.app.gallery_service import GalleryService
from reid.app.job_queue import JobQueue
from reid.app.opened_gallery import open_served_gallery
from reid.app.page_questions import FAULT, UNKNOWN, Page, answer_question, first_html_of
from reid.app.page_values import MOST_IMAGES, PageParts, PageValues, PageVisit
from reid.app.pages import all_pages
from reid.app.served_data import ServedData
from reid.app.terms import TERMS
from reid.app.uploads import UploadStore
from reid.data.manifest import read_manifest
from reid.data.video import detectors
from reid.models.checkpoint import load_checkpoint
from reid.pipeline import build_gallery
from reid.records import Embeddings, Sample, Split
from reid.retrieval.gallery import Gallery

ROOT = Path(__file__).parents[3]
SHOWN = (("people", "show"), ("cameras", "show"), ("gallery", "show"), ("evaluation", "show"), ("map", "show"))

Ask = Callable[..., PageParts]


class _Detector:
    """A detector that finds the same boxes everywhere."""

    min_score = 0.6

    def __init__(self, boxes: np.ndarray[Any, Any]) -> None:
        self._boxes = boxes

    def __call__(self, _pixels: object) -> np.ndarray[Any, Any]:
        return self._boxes


@pytest.fixture(scope="module")
def samples(tiny_street: Path) -> tuple[Sample, ...]:
    every_sample = read_manifest(tiny_street / "street-a" / "manifest.csv")
    return tuple(s for s in every_sample if s.split is Split.GALLERY and s.category == "person")


@pytest.fixture(scope="module")
def labelled(samples: tuple[Sample, ...], plain_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labelled") / "crops"
    build_gallery(load_checkpoint(plain_weights), samples, out)
    return out


def service_of(data: ServedData, state: Path, purposes: tuple[str, ...] = ()) -> GalleryService:
    state.mkdir(exist_ok=True)
    return GalleryService(data, JobQueue(state / "jobs"), AuditLog(state / "audit.jsonl", purposes), state)


def asking(service: GalleryService, uploads: UploadStore | None = None) -> tuple[Ask, PageVisit, dict[str, Page]]:
    """Return a function that asks as one visitor, the visitor, and the pages."""
    pages = {page.name: page for page in all_pages(service, UploadStore() if uploads is None else uploads)}
    visit = PageVisit()

    def ask(page: str, action: str, **values: Any) -> PageParts:
        return answer_question(pages, PageValues({"page": page, "action": action, **values}), visit)

    return ask, visit, pages


@pytest.mark.parametrize("kind", ["labelled", "unlabelled", "without network", "turtles", "one crop", "empty"])
def test_every_page_shows_every_gallery(
    samples: tuple[Sample, ...], labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = tmp_path / "gallery"
    if kind == "labelled":
        folder = labelled
    elif kind == "empty":
        Gallery.create(folder, "f00d", 8)
    else:
        rows = [replace(s, identity="" if kind == "unlabelled" else s.identity) for s in samples]
        rows = [replace(s, camera="", modality=s.modality, time=None) for s in rows] if kind == "turtles" else rows
        rows = [replace(s, category="turtle") for s in rows] if kind == "turtles" else rows
        rows = rows[:1] if kind == "one crop" else rows
        vectors = np.random.default_rng(0).normal(size=(len(rows), 16)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        Gallery.build(Embeddings(tuple(rows), vectors, "f00d")).save(folder)
    ask, _, pages = asking(service_of(open_served_gallery(folder), tmp_path / "state"))
    for page in pages.values():
        html = first_html_of(page)
        assert html.count("<section") == html.count("</section>")
    answers = {names: ask(*names) for names in SHOWN}
    assert FAULT not in {answer.error for answer in answers.values()}
    assert capsys.readouterr().err == ""
    found = ask("search", "search")
    if kind == "empty":
        assert "empty" in found.error
    elif kind == "one crop":
        assert found.error.startswith("No crop in the gallery fits these options")
    else:
        assert found.error == ""
        assert found.export
        assert ("identity unknown: not scored" in found.parts["answers"]) == (kind == "unlabelled")


def test_wrong_questions_are_one_line(labelled: Path, tmp_path: Path) -> None:
    ask, _, _ = asking(service_of(open_served_gallery(labelled), tmp_path / "state"))
    assert ask("search", "nothing").error == ask("nowhere", "show").error == UNKNOWN
    for values in (
        {"query": "r999999"}, {"query": "q0"}, {"query": "x"}, {"query": "r" + "9" * 30}, {"ranking": "other"},
        {"query": "upload"}, {"query": "upload", "images": ["upload-1"]}, {"query": "upload", "uploads": ["upload-1"]},
        {"after": "never"}, {"cameras": ["nowhere"]},
    ):  # fmt: skip
        found = ask("search", "search", **values)
        assert found.error
        assert "\n" not in found.error
        assert found.parts["answers"] == "", "nothing of an earlier query stays"
    assert ask("search", "search", count="none", cross=7, cameras="a1", query=3).error == ""
    assert ask("search", "enlarge", row="x").error


def test_an_answer_leads_to_the_next_query(labelled: Path, tmp_path: Path) -> None:
    ask, _, _ = asking(service_of(open_served_gallery(labelled), tmp_path / "state"))
    first = ask("search", "search", query="r3", count="5")
    assert first.export is not None
    row = first.export[0]["row"]
    second = ask("search", "search", query=f"r{row}", cross=False, count="50")
    assert second.export is not None
    assert 3 in {one["row"] for one in second.export}, "likeness is mutual"
    assert row not in {one["row"] for one in second.export}
    assert "dialog-content" in ask("search", "enlarge", row=str(row)).parts


def test_an_upload_belongs_to_one_visitor(labelled: Path, samples: tuple[Sample, ...], tmp_path: Path) -> None:
    uploads = UploadStore()
    service = service_of(open_served_gallery(labelled), tmp_path / "state")
    ask, visit, _ = asking(service, uploads)
    name = uploads.add("anna", samples[0].path.read_bytes())
    values = {"query": "upload", "images": [name], "upload_category": "person"}
    found = ask("search", "search", **values, uploads=[name])
    assert found.error == ""
    assert list(visit.images) == [name]
    assert ask("search", "search", **values).export == found.export, "it is remembered"
    other, _, _ = asking(service, uploads)
    assert other("search", "search", **values).error.startswith("Uploaded images are forgotten")
    for number in range(40):
        visit.keep(f"upload-{number}", Image.new("RGB", (8, 16)))
    assert len(visit.images) == MOST_IMAGES


def test_people_in_a_frame_are_offered(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both boxes of people that the detector is sure of become images that can be searched for."""
    boxes = np.array([[10, 10, 40, 90, 2.0], [60, 20, 90, 100, 1.0], [0, 0, 20, 40, 0.1]], np.float32)
    monkeypatch.setattr(detectors, "open_detector", lambda: _Detector(boxes))
    frame = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)).save(frame, "PNG")
    uploads = UploadStore()
    ask, visit, _ = asking(service_of(open_served_gallery(labelled), tmp_path / "state"), uploads)
    name = uploads.add("anna", frame.getvalue())
    found = ask("search", "search", query="upload", images=[name], uploads=[name])
    assert found.parts["query"].count("in the frame") == 2
    assert visit.images[f"{name}-1"].size == (33, 88)
    assert ask("search", "search", query="upload", images=[f"{name}-2"]).error == ""


def test_searches_are_logged_without_what_they_show(labelled: Path, tmp_path: Path) -> None:
    ask, visit, _ = asking(service_of(open_served_gallery(labelled), tmp_path / "state", ("lost child",)))
    visit.user = User("anna", Role.VIEWER)
    assert "purpose" in ask("search", "search", query="r1").error
    assert ask("search", "search", query="r1", purpose="lost child", without=["a2"]).error == ""
    (line,) = (tmp_path / "state" / "audit.jsonl").read_text().splitlines()
    assert "anna" in line
    assert "lost child" in line
    assert "a2" in line
    assert "data:image" not in line


def test_a_viewer_changes_nothing(labelled: Path, tmp_path: Path) -> None:
    ask, visit, _ = asking(service_of(open_served_gallery(labelled), tmp_path / "state"))
    visit.user = User("anna", Role.VIEWER)
    for page, action in (
        ("people", "identify"), ("people", "undo"), ("people", "confirm"), ("gallery", "job"), ("gallery", "preview"),
        ("gallery", "erase"), ("gallery", "cancel"),
    ):  # fmt: skip
        assert ask(page, action, persons="person-1", erase_camera="a1").error.startswith("Your role is viewer")


def test_an_erasure_needs_its_preview_and_gives_a_receipt(
    samples: tuple[Sample, ...], plain_weights: Path, tmp_path: Path
) -> None:
    build_gallery(load_checkpoint(plain_weights), samples, tmp_path / "crops")
    ask, _, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "state"))
    count = sum(sample.camera == "a1" for sample in samples)
    assert f"<b>{count} rows</b>" in ask("gallery", "preview", erase_camera="a1").parts["erasure"]
    assert ask("gallery", "erase", erase_camera="a1", rows="1").error
    done = ask("gallery", "erase", erase_camera="a1", rows=str(count))
    assert f"{count} rows were erased" in done.parts["erasure"]
    assert len(Gallery.open(tmp_path / "crops")) == len(samples) - count
    assert not any("a1" in json.dumps(row) for row in ask("search", "search", count="50", cross=False).export or ())


def test_a_job_is_started_watched_and_cancelled(labelled: Path, tmp_path: Path) -> None:
    service = service_of(open_served_gallery(labelled), tmp_path / "state")
    ask, _, _ = asking(service)
    assert "fill in the field source first" in ask("gallery", "job", kind="add").error
    assert "import-folder" in ask("gallery", "job", kind="add", source="/etc").error
    assert ask("gallery", "job", kind="none").error
    started = ask("gallery", "job", kind="verify")
    assert "waiting" in started.parts["jobs"]
    assert started.again == "jobs"
    _, _, pages = asking(service)  # the page is loaded again
    assert answer_question(pages, PageValues({"page": "gallery", "action": "show"}), PageVisit()).again == "jobs"
    assert "cancelled" in ask("gallery", "cancel", job="1").parts["jobs"]
    assert ask("gallery", "jobs").again == ""
    assert ask("gallery", "cancel", job="7").error


def test_persons_are_confirmed_named_joined_parted_and_undone(tmp_path: Path) -> None:
    Gallery.build(people()).save(tmp_path / "crops")
    ask, _, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "state"))
    assert "Group the crops" in ask("people", "show").parts["people-list"]
    shown = ask("people", "identify").parts["people-list"]
    first, second = re.findall(r'name="chosen" value="(person-\d+)"', shown)[:2]
    assert ask("people", "confirm", persons=first).error == ""
    named = ask("people", "name", persons=first, **{f"name_{first}".replace("-", "_"): "Anna"})
    assert f"Anna ({first})" in named.parts["people-list"]
    joined = ask("people", "same", chosen=[first, second])
    assert f'value="{second}"' not in joined.parts["people-list"]
    assert f'value="{second}"' in ask("people", "undo").parts["people-list"]
    assert ask("people", "different", persons=f"{first},{second}").error == ""
    assert ask("people", "same", chosen=[first, second]).error, "the opposite of an older decision"
    assert ask("people", "same", chosen=[first, second], instead=True).error == ""
    assert "dialog-content" in ask("people", "timeline", persons=first).parts


def test_the_words_of_the_page_are_those_of_the_glossary() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text().replace("`", "")
    for term, meaning in TERMS.items():
        assert f"| {term} | {meaning} |" in glossary
