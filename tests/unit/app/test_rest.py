"""The REST interface: every address does what the page and the command line do, for those who may."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from helpers.served_galleries import Served, make_users, serve_gallery
from reid.app.job_records import JobStatus
from reid.records import Sample
from reid.retrieval.gallery import Gallery


def test_the_gallery_describes_itself(client: TestClient, samples: tuple[Sample, ...]) -> None:
    assert client.get("/api/health").json()["status"] == "ok"
    facts = client.get("/api/gallery").json()
    assert (facts["name"], facts["crops"], facts["persons"]) == ("shop", len(samples), 0)
    cameras = client.get("/api/cameras").json()
    assert {one["camera"]: one["crops"] for one in cameras} == {
        camera: sum(s.camera == camera for s in samples) for camera in {s.camera for s in samples}
    }
    paths = client.get("/api/openapi.json").json()["paths"]
    assert {"/api/search", "/api/crops", "/api/identify", "/api/cameras", "/api/jobs", "/api/erase"} <= set(paths)


def test_a_picture_finds_its_own_crop(client: TestClient, samples: tuple[Sample, ...]) -> None:
    query = samples[5]
    answer = client.post(f"/api/search?camera={query.camera}&k=3&ranking=plain", content=query.path.read_bytes())
    assert answer.status_code == 200
    best, *others = answer.json()["answers"]
    assert len(others) == 2
    assert (best["identity"], best["camera"]) == (query.identity, query.camera)
    assert best["score"] == pytest.approx(1, abs=1e-4)
    assert str(query.path.parent) not in answer.text, "no path of the machine is told"
    image = client.get(best["image"])
    assert image.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(image.content)) as sent, Image.open(query.path) as kept:
        assert sent.size == kept.size


def test_a_crop_is_searched_for_and_filters_hold(client: TestClient) -> None:
    found = client.post("/api/search?crop=0&k=200").json()
    assert 0 not in [one["crop"] for one in found["answers"]]
    cameras = {one["camera"] for one in found["answers"]}
    assert len(cameras) > 1
    other = sorted(cameras - {found["camera"]})[0]
    for option, wanted in (
        (f"in_camera={other}", {other}),
        (f"not_in_camera={other}", cameras - {other}),
        ("cross_camera=true", cameras - {found["camera"]}),
    ):
        answers = client.post(f"/api/search?crop=0&k=200&{option}").json()["answers"]
        assert {one["camera"] for one in answers} == wanted
    lights = client.post("/api/search?crop=0&k=200&answers=infrared").json()["answers"]
    assert {one["modality"] for one in lights} == {"infrared"}
    together = client.post("/api/search?crop=0&crop=1&k=5").json()
    assert len(together["answers"]) == 5


def test_searches_are_logged_without_the_picture(served: Served, picture: bytes) -> None:
    client = served.client()
    client.post("/api/search?camera=a1&in_camera=a2&purpose=lost", content=picture)
    (entry,) = client.get("/api/audit").json()
    assert (entry["action"], entry["who"], entry["purpose"]) == ("search", "", "lost")
    assert (entry["facts"]["camera"], entry["facts"]["in_cameras"]) == ("a1", ["a2"])
    log = (served.service.state_folder / "audit.jsonl").read_bytes()
    assert len(log) < 1000
    assert b"PNG" not in log


def test_a_search_without_its_purpose_is_refused(folder: Path, tmp_path: Path) -> None:
    client = serve_gallery(folder, tmp_path / "state", purposes=("lost child",)).client()
    assert client.post("/api/search?crop=0").status_code == 422
    assert client.post("/api/search?crop=0&purpose=lost child").status_code == 200
    assert len(client.get("/api/audit").json()) == 1


def test_a_search_that_cannot_be_logged_does_not_happen(served: Served) -> None:
    log = served.service.state_folder / "audit.jsonl"
    log.mkdir()
    answer = served.client().post("/api/search?crop=0")
    assert answer.status_code == 503
    assert "answers" not in answer.json()


def test_a_picture_is_added_once_and_found(client: TestClient, picture: bytes, folder: Path, tmp_path: Path) -> None:
    labels = "camera=a1&modality=visible&identity=anna&time=2024-05-31T16:20:00&track=t1"
    added = client.post(f"/api/crops?{labels}", content=picture)
    assert added.status_code == 201
    assert added.json()["added"] == 1
    again = client.post(f"/api/crops?{labels}", content=picture).json()
    assert (again["added"], again["known"], again["crop"]) == (0, 1, added.json()["crop"])
    best = client.post("/api/search?camera=a1&modality=visible&k=1&ranking=plain", content=picture).json()["answers"][0]
    assert (best["crop"], best["identity"], best["time"]) == (added.json()["crop"], "anna", "2024-05-31T16:20:00")
    (kept,) = (tmp_path / "state" / "crops").iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    assert Gallery.open(folder).samples[-1].path == kept


def test_erasing_crops_answers_with_the_receipt_of_the_erasure(client: TestClient) -> None:
    erased = client.post("/api/erase", json={"crops": [1, 2], "rows": 2}).json()
    assert (erased["receipt"]["action"], erased["receipt"]["rows"]) == ("remove", 2)


def test_erasing_shows_first_and_takes_the_picture_along(
    client: TestClient, picture: bytes, folder: Path, tmp_path: Path, samples: tuple[Sample, ...]
) -> None:
    client.post("/api/crops?camera=a1&identity=anna", content=picture)
    rows = len(samples) + 1
    preview = client.post("/api/erase/preview", json={"identity": "anna"}).json()
    assert (preview["rows"], preview["cameras"], len(preview["crops"])) == (1, ["a1"], 1)
    assert client.post("/api/erase", json={"identity": "anna"}).status_code == 422
    assert client.post("/api/erase", json={"identity": "anna", "rows": 2}).status_code == 422
    assert len(Gallery.open(folder)) == rows
    erased = client.post("/api/erase", json={"identity": "anna", "rows": 1}).json()
    assert (erased["rows"], erased["images"], erased["remaining"]) == (1, 1, 0)
    assert erased["receipt"]["action"] == "erase"
    assert len(Gallery.open(folder)) == rows - 1
    assert not list((tmp_path / "state" / "crops").iterdir())
    assert client.post("/api/crops?camera=a1&identity=anna", content=picture).json()["barred"] == 1
    assert not list((tmp_path / "state" / "crops").iterdir())
    assert b"anna" not in (tmp_path / "state" / "audit.jsonl").read_bytes()


def test_rows_are_erased_by_camera_and_by_crop(client: TestClient, folder: Path, samples: tuple[Sample, ...]) -> None:
    count = sum(sample.camera == "a2" for sample in samples)
    assert client.post("/api/erase", json={"camera": "a2", "rows": count}).json()["rows"] == count
    assert "a2" not in Gallery.open(folder).table.distinct("camera")
    crop = client.post("/api/search?crop=0&k=1").json()["answers"][0]["crop"]
    assert client.post("/api/erase", json={"crops": [crop], "rows": 1}).json()["rows"] == 1
    assert client.get(f"/api/crops/{crop}/image").status_code == 422
    for nothing in ({}, {"rows": 0}, {"identity": "nobody", "rows": 0}):
        assert client.post("/api/erase", json=nothing).status_code == 422


def test_persons_are_found_by_a_job_and_named(folder: Path, tmp_path: Path) -> None:
    served = serve_gallery(folder, tmp_path / "state")
    client, queue = served.client(), served.service.jobs
    assert client.get("/api/persons").status_code == 422
    job = client.post("/api/identify", json={"again": False})
    assert job.status_code == 202
    queue.start()
    try:
        assert queue.wait(job.json()["number"], 120).status is JobStatus.DONE
    finally:
        queue.close()
    assert client.get(f"/api/jobs/{job.json()['number']}").json()["share"] == 1
    same = {"verb": "same", "subjects": ["crop-0", "crop-1"]}
    assert client.post("/api/persons", json=same).json()["changed_crops"] == 2
    (person,) = client.get("/api/persons").json()["persons"]
    assert (person["name"], person["crops"]) == ("", [0, 1])
    name = {"verb": "name", "subjects": [person["person"]], "text": "Anna"}
    assert client.post("/api/persons", json=name).status_code == 200
    assert client.get("/api/persons?limit=1").json()["persons"][0]["name"] == "Anna"
    answers = client.post("/api/search?crop=2&k=50&one_per=person").json()["answers"]
    assert [one["person_name"] for one in answers if one["person"]] == ["Anna"]
    assert client.post("/api/erase/preview", json={"person": "Anna"}).json()["rows"] == 2
    assert client.post("/api/persons", json={"verb": "undo"}).json()["verb"] == "name"
    assert client.post("/api/persons", json={"verb": "undo", "text": "9"}).status_code == 422
    assert client.post("/api/persons", json={**same, "subjects": ["crop-0", "/etc/passwd"]}).status_code == 422


VIEWER = [("get", "/api/gallery"), ("get", "/api/cameras"), ("get", "/api/jobs"), ("post", "/api/search?crop=0"),
          ("get", "/api/crops/0/image")]  # fmt: skip
OPERATOR = [("post", "/api/identify"), ("post", "/api/jobs"), ("post", "/api/crops"), ("post", "/api/persons")]
ADMIN = [("post", "/api/erase"), ("post", "/api/erase/preview"), ("get", "/api/audit")]


def test_roles(folder: Path, tmp_path: Path) -> None:
    served = serve_gallery(folder, tmp_path / "state", make_users(tmp_path / "users.toml"))
    clients = {name: served.client(name) for name in ("viewer", "operator", "admin")}
    allowed = {"viewer": VIEWER, "operator": [*VIEWER, *OPERATOR], "admin": [*VIEWER, *OPERATOR, *ADMIN]}
    for name, client in clients.items():
        for method, path in (*VIEWER, *OPERATOR, *ADMIN):
            body = {} if method == "get" else {"json": {"kind": "identify", "verb": "undo"}}
            status = client.request(method, path, **body).status_code if "search" not in path else (
                client.post(path).status_code
            )  # fmt: skip
            assert (status != 403) == ((method, path) in allowed[name]), (name, path, status)
            assert status < 500
            assert served.client().request(method, path).status_code == 401
    assert {entry["who"] for entry in clients["admin"].get("/api/audit").json()} >= {"viewer", "operator", "admin"}


def test_jobs_read_data_only_below_allowed_folders(folder: Path, tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    inbox = tmp_path / "inbox"
    (inbox / "new" / "door" / "bo").mkdir(parents=True)
    shutil.copy(samples[0].path, inbox / "new" / "door" / "bo" / "1.jpg")
    (inbox / "link").symlink_to("/etc")
    (tmp_path / "outside").mkdir()
    closed = serve_gallery(folder, tmp_path / "state").client()
    assert "--import-folder" in closed.post("/api/jobs", json=job("add", source="new")).json()["detail"]
    served = serve_gallery(folder, tmp_path / "state", sources=(inbox,))
    client = served.client()
    for source in (
        "",
        " ",
        "../outside",
        str(tmp_path / "outside"),
        "/etc/passwd",
        "link/passwd",
        "nothing",
        "\0",
        "a" * 5000,
    ):
        answer = client.post("/api/jobs", json=job("add", source=source))
        assert answer.status_code == 422, source
        assert "/etc" not in answer.text
    for source in ("new", str(inbox / "new")):
        answer = client.post("/api/jobs", json=job("add", source=source))
        assert answer.status_code == 202
    words = served.service.jobs.job(answer.json()["number"]).commands
    assert [command[0] for command in words] == ["init", "index", "identify"]


@pytest.mark.parametrize(
    "wish",
    [{"kind": "rm"}, {"kind": "identify", "parameters": {"other": 1}}, {"kind": "switch"}, {},
     {"kind": "identify", "parameters": {"again": []}}, {"kind": "ingest", "parameters": {"source": "x.mp4"}},
     {"kind": "identify", "more": 1}],
)  # fmt: skip
def test_a_job_that_nobody_knows_is_refused(served: Served, wish: dict[str, object]) -> None:
    assert served.client().post("/api/jobs", json=wish).status_code == 422
    assert not served.service.jobs.jobs()


def test_jobs_are_stopped_and_go_on(served: Served) -> None:
    client = served.client()
    number = client.post("/api/jobs", json=job("verify")).json()["number"]
    assert client.post(f"/api/jobs/{number}/pause").json()["status"] == "paused"
    assert client.post(f"/api/jobs/{number}/resume").json()["status"] == "waiting"
    assert client.post(f"/api/jobs/{number}/cancel").json()["status"] == "cancelled"
    assert client.post(f"/api/jobs/{number}/cancel").status_code == 422
    assert client.post("/api/jobs/99/cancel").status_code == 422
    assert [one["number"] for one in client.get("/api/jobs").json()] == [number]


def job(kind: str, **parameters: object) -> dict[str, object]:
    return {"kind": kind, "parameters": parameters}


@pytest.mark.parametrize(
    "path",
    ["/api/search", "/api/search?crop=999999", "/api/search?crop=-1", "/api/search?crop=0&k=0",
     "/api/search?crop=0&k=9999",
     "/api/search?crop=0&after=yesterday", "/api/search?crop=0&in_camera=nowhere", "/api/search?crop=0&ranking=best",
     "/api/search?crop=0&camera=" + "a" * 300, "/api/search?modality=ultraviolet", "/api/crops?camera=a1"],
)  # fmt: skip
def test_wrong_requests_are_one_line(client: TestClient, path: str, folder: Path) -> None:
    answer = client.post(path, content=b"no picture" if "crop=" not in path else b"")
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert set(answer.json()) == {"detail"}
    assert "\n" not in detail
    assert str(folder.parent) not in detail
    assert json.dumps(detail) != '""'
