"""A new camera is measured and added, an adapted network is taken, and both are undone; other rows stay as they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from helpers.asking_pages import asking
from helpers.served_galleries import JobsHere, Served, make_gallery, make_users, serve_gallery
from reid.app.accounts import OWNER, Role, User
from reid.app.gallery_service import GalleryService
from reid.app.job_kinds import submit_job
from reid.app.job_records import JobStatus
from reid.app.network_changes import KEPT_CHANGES, network_changes
from reid.data.manifest import read_manifest
from reid.errors import ConfigError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm import Profiles
from reid.pipeline import gallery_checkpoint
from reid.records import Sample, Split
from reid.retrieval.embed import embed
from reid.retrieval.gallery import Gallery


@pytest.fixture(scope="module")
def crops(tiny_street: Path) -> dict[str, tuple[Sample, ...]]:
    """Crops of two cameras of people."""
    rows = [s for s in read_manifest(tiny_street / "street-a" / "manifest.csv") if s.category == "person"]
    unique = list({s.path: replace(s, split=Split.GALLERY) for s in rows}.values())
    return {name: tuple(s for s in unique if s.camera == name) for name in ("a1", "a2")}


@pytest.fixture(scope="module")
def built(crops: dict[str, tuple[Sample, ...]], camera_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gallery(crops["a1"], camera_weights, tmp_path_factory.mktemp("built") / "shop")


@pytest.fixture
def served(built: Path, tmp_path: Path) -> Served:
    folder = Path(shutil.copytree(built, tmp_path / "galleries" / "shop"))
    return serve_gallery(folder, tmp_path / "state", sources=(tmp_path,), queue=JobsHere)


def run_jobs(service: GalleryService, *numbers: int) -> None:
    service.jobs.start()
    ended = [service.jobs.wait(number, 240) for number in numbers]
    assert [job.status for job in ended] == [JobStatus.DONE] * len(numbers), [job.message for job in ended]


def send_crops(client: TestClient, crops: tuple[Sample, ...], camera: str) -> Any:
    for sample in crops:
        answer = client.post("/api/cameras/crops", content=sample.path.read_bytes(), params={"camera": camera})
        assert answer.status_code == 201, answer.text
    return answer.json()


def vectors_by_path(gallery: Gallery) -> dict[str, bytes]:
    paths = gallery.table.column("path").to_pylist()
    vectors = gallery.rows.vectors_at(np.arange(len(gallery)))
    return {path: vector.tobytes() for path, vector in zip(paths, vectors, strict=True)}


def test_a_new_camera_is_added_and_undone(served: Served, crops: dict[str, tuple[Sample, ...]], tmp_path: Path) -> None:
    client, service = served.client(), served.service
    folder = service.folder
    before, fingerprint = vectors_by_path(Gallery.open(folder)), service.data.main.gallery.fingerprint
    unknown = client.post("/api/crops", content=crops["a2"][0].path.read_bytes(), params={"camera": "dock"})
    assert unknown.status_code == 422
    assert "no statistics" in unknown.json()["detail"]

    few = client.post("/api/cameras", json={"camera": "dock"})
    assert few.status_code == 422
    assert "0 new crops" in few.json()["detail"]
    assert send_crops(client, crops["a2"], "dock")["crops"] == len(crops["a2"])
    assert send_crops(client, crops["a2"][:1], "dock")["crops"] == len(crops["a2"]), "the same picture is kept once"
    assert client.get("/api/cameras/crops").json() == [
        {"camera": "dock", "category": "person", "crops": len(crops["a2"])}
    ]
    started = client.post("/api/cameras", json={"camera": "dock"})
    assert started.status_code == 202, started.text
    busy = client.post("/api/cameras/undo")
    assert busy.status_code == 422
    assert "job 1" in busy.json()["detail"]
    run_jobs(service, 1)

    after = service.data.main
    assert after.gallery.fingerprint not in (fingerprint, "")
    assert after.checkpoint is not None
    assert after.checkpoint.fingerprint == after.gallery.fingerprint, "the page took the new network over"
    assert "person/dock" in after.checkpoint.domains
    now = vectors_by_path(Gallery.open(folder))
    assert {path: now[path] for path in before} == before, "rows of other cameras stay bit for bit"
    added = [sample for sample in after.gallery.table.samples if sample.camera == "dock"]
    assert len(added) == len(crops["a2"])
    oracle = gallery_checkpoint(folder)
    np.testing.assert_allclose(
        np.stack([np.frombuffer(now[str(s.path)], np.float32) for s in added]), embed(oracle, added).vectors, atol=1e-5
    )
    measured = Profiles.load(tmp_path / "state" / "changes" / "change-000001" / "profiles.safetensors")
    assert measured.domains == ("person/dock",), "only the new camera was measured"
    assert client.get("/api/cameras/crops").json() == []
    found = client.post("/api/search?camera=dock&k=3", content=crops["a2"][0].path.read_bytes())
    assert found.json()["answers"][0]["camera"] == "dock"

    (change,) = client.get("/api/cameras/changes").json()
    assert not list((tmp_path / "state" / "changes").rglob("*.csv")), "no list of crops stays behind"
    assert (change["camera"], change["status"], change["fingerprint_before"]) == ("dock", "done", fingerprint)
    assert change["fingerprint_after"] == after.gallery.fingerprint
    pairs = client.get("/api/cameras/changes/1/neighbours").json()
    assert pairs
    for one in pairs:
        for when in ("before", "after"):
            assert {near["camera"] for near in one[when]} == {"a1"}
            scores = [near["score"] for near in one[when]]
            assert scores == sorted(scores, reverse=True)

    assert client.post("/api/cameras/undo").status_code == 202
    run_jobs(service, 2)
    assert vectors_by_path(Gallery.open(folder)) == before
    assert service.data.main.gallery.fingerprint == fingerprint
    assert client.get("/api/cameras/changes").json()[0]["status"] == "undone"
    assert client.get("/api/cameras/crops").json()[0]["crops"] == len(crops["a2"]), "its crops wait again"
    assert client.post("/api/cameras/undo").status_code == 422, "nothing is left to undo"
    assert client.delete("/api/cameras/crops?camera=dock").json()["discarded"] == len(crops["a2"])
    assert client.delete("/api/cameras/crops?camera=dock").status_code == 422
    assert not list((tmp_path / "state" / "new-cameras").iterdir())
    service.jobs.close()


def test_an_undo_that_would_leave_crops_without_statistics_is_refused(
    served: Served, crops: dict[str, tuple[Sample, ...]], tmp_path: Path
) -> None:
    client, service = served.client(), served.service
    source = tmp_path / "dock"
    source.mkdir()
    for sample in crops["a2"][1:]:
        shutil.copy(sample.path, source)
    assert client.post("/api/cameras", json={"camera": "dock", "source": "dock"}).status_code == 202
    run_jobs(service, 1)
    more = client.post("/api/crops", content=crops["a2"][0].path.read_bytes(), params={"camera": "dock"})
    assert more.status_code == 201, more.text
    refused = client.post("/api/cameras/undo")
    assert refused.status_code == 422
    assert "1 crops of this camera were added since" in refused.json()["detail"]
    assert client.post("/api/erase", json={"crops": [more.json()["crop"]], "rows": 1}).status_code == 200
    assert client.post("/api/cameras/undo").status_code == 202
    run_jobs(service, 2)
    assert "dock" not in service.data.main.gallery.table.distinct("camera")
    assert len(list(source.iterdir())) == len(crops["a2"]) - 1, "images of the user's own stay"
    service.jobs.close()


def test_an_adapted_network_is_taken_for_every_row_and_undone(
    served: Served, crops: dict[str, tuple[Sample, ...]], camera_weights: Path, tmp_path: Path
) -> None:
    client, service = served.client(), served.service
    before = vectors_by_path(Gallery.open(service.folder))
    refused = client.post("/api/jobs", json={"kind": "switch"})
    assert "adapt the network first" in refused.json()["detail"]
    plan = client.post("/api/jobs", json={"kind": "adapt", "parameters": {"epochs": 1}}).json()
    assert plan["title"] == "Adapt the network to the crops of this gallery"
    service.jobs.cancel(plan["number"])
    listed = read_manifest(tmp_path / "state" / "adapted.csv")
    assert len(listed) == len(before)
    assert {sample.identity for sample in listed} == {""}, "no label is used"

    checkpoint = load_checkpoint(camera_weights)
    other = checkpoint.with_flip()
    other.save(tmp_path / "state" / "adapted.network.safetensors")
    assert client.post("/api/jobs", json={"kind": "switch"}).status_code == 202
    run_jobs(service, 2)
    now = service.data.main
    assert now.gallery.fingerprint == other.fingerprint
    assert now.checkpoint is not None
    assert now.checkpoint.fingerprint == other.fingerprint
    assert vectors_by_path(now.gallery).keys() == before.keys()
    assert vectors_by_path(now.gallery) != before
    assert "has this network already" in client.post("/api/jobs", json={"kind": "switch"}).json()["detail"]
    assert "page Map" in client.get("/api/cameras/changes/1/neighbours").json()["detail"]
    assert client.post("/api/cameras/undo").status_code == 202
    run_jobs(service, 3)
    assert vectors_by_path(Gallery.open(service.folder)) == before
    service.jobs.close()


def test_a_network_without_statistics_of_cameras_only_gets_the_crops(
    crops: dict[str, tuple[Sample, ...]], plain_weights: Path, tmp_path: Path
) -> None:
    folder = make_gallery(crops["a1"], plain_weights, tmp_path / "galleries" / "plain")
    served = serve_gallery(folder, tmp_path / "state", queue=JobsHere)
    client, service = served.client(), served.service
    fingerprint = service.data.main.gallery.fingerprint
    send_crops(client, crops["a2"], "dock")
    assert client.post("/api/cameras", json={"camera": "dock"}).status_code == 202
    one = client.post("/api/jobs", json={"kind": "calibrate", "parameters": {"camera": "a1"}})
    assert one.status_code == 422, "another job changes the network"
    run_jobs(service, 1)
    one = client.post("/api/jobs", json={"kind": "calibrate", "parameters": {"camera": "a1"}})
    assert "one set of statistics for all cameras" in one.json()["detail"]
    assert service.data.main.gallery.fingerprint == fingerprint
    assert len(service.data.main.gallery) == len(crops["a1"]) + len(crops["a2"])
    assert client.post("/api/cameras/undo").status_code == 202
    run_jobs(service, 2)
    assert len(service.data.main.gallery) == len(crops["a1"])
    service.jobs.close()


def test_queries_that_came_with_the_data_follow_the_network(
    crops: dict[str, tuple[Sample, ...]], camera_weights: Path, served: Served, tmp_path: Path
) -> None:
    from reid.retrieval.query_file import load_queries, save_queries

    checkpoint = load_checkpoint(camera_weights)
    queries = [replace(sample, split=Split.QUERY) for sample in crops["a1"][:3]]
    save_queries(served.service.folder, embed(checkpoint, queries))
    service = serve_gallery(served.service.folder, tmp_path / "other-state", queue=JobsHere).service
    assert service.data.main.queries is not None
    submit_job(service, OWNER, "calibrate", {"camera": "a1"})
    run_jobs(service, 1)
    now = service.data.main
    assert now.queries is not None
    assert len(now.queries) == 3
    assert now.queries.fingerprint == now.gallery.fingerprint
    assert now.checkpoint is not None
    fresh = embed(now.checkpoint, load_queries(service.folder).samples).vectors
    np.testing.assert_allclose(now.queries.vectors, fresh, atol=1e-5)
    service.jobs.close()


def test_only_operators_change_cameras(built: Path, tmp_path: Path, crops: dict[str, tuple[Sample, ...]]) -> None:
    served = serve_gallery(built, tmp_path / "state", make_users(tmp_path / "users.toml"))
    viewer, picture = served.client("viewer"), crops["a2"][0].path.read_bytes()
    assert viewer.get("/api/cameras/crops").status_code == 200
    for answer in (
        viewer.post("/api/cameras/crops?camera=dock", content=picture),
        viewer.delete("/api/cameras/crops?camera=dock"),
        viewer.post("/api/cameras", json={"camera": "dock"}),
        viewer.post("/api/cameras/undo"),
    ):
        assert answer.status_code == 403
    operator = served.client("operator")
    assert operator.post("/api/cameras/crops?camera=dock", content=picture).status_code == 201
    assert operator.post("/api/cameras/crops?camera=", content=picture).status_code == 422
    assert operator.post("/api/cameras/crops?camera=dock", content=b"no picture").status_code == 422


def test_few_networks_of_before_are_kept(served: Served, crops: dict[str, tuple[Sample, ...]], tmp_path: Path) -> None:
    service = served.service
    for number in range(1, KEPT_CHANGES + 3):
        job = submit_job(service, OWNER, "calibrate", {"camera": "a1"})
        service.jobs.cancel(job.number)
        assert network_changes(service)[0].number == number
    assert len(network_changes(service)) == KEPT_CHANGES
    assert len(list((tmp_path / "state" / "changes").iterdir())) == KEPT_CHANGES


def test_a_stopped_change_does_not_go_on_after_another_one(served: Served) -> None:
    service = served.service
    first = submit_job(service, OWNER, "calibrate", {"camera": "a1"})
    service.jobs.cancel(first.number)
    assert service.jobs.resume(first.number).status is JobStatus.WAITING
    service.jobs.cancel(first.number)
    second = submit_job(service, OWNER, "calibrate", {"camera": "a1"})
    service.jobs.cancel(second.number)
    with pytest.raises(ConfigError, match="start it anew"):
        service.jobs.resume(first.number)


def test_a_full_disk_is_told_on_the_page_and_leaves_nothing(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, _, _ = asking(served.service)

    def fail(_self: Checkpoint, _path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", fail)
        assert "full disk" in ask("cameras", "measure", camera="a1").error
        answer = served.client().post("/api/jobs", json={"kind": "calibrate", "parameters": {"camera": "a1"}})
    assert answer.status_code == 503
    assert not list((tmp_path / "state" / "changes").iterdir())
    assert served.service.jobs.jobs() == []
    assert ask("cameras", "measure", camera="a1").error == ""


def test_the_page_adds_a_camera_shows_both_neighbourhoods_and_undoes(
    served: Served, crops: dict[str, tuple[Sample, ...]]
) -> None:
    ask, visit, _ = asking(served.service)
    assert "write the name" in ask("cameras", "add").error.lower()
    send_crops(served.client(), crops["a2"], "<dock>")
    shown = ask("cameras", "show").parts
    assert "&lt;dock&gt;" in shown["waiting"]
    assert "<dock>" not in shown["waiting"] + shown["network"]
    assert ask("cameras", "add", camera="<dock>", category="person").again == "jobs"
    assert "crops wait for the job" in ask("cameras", "waiting").parts["waiting"]
    assert "Job 1" in ask("cameras", "measure").error
    run_jobs(served.service, 1)
    network = ask("cameras", "show").parts["network"]
    assert 'data-action="undo"' in network
    assert "Before and after" in network
    near = ask("cameras", "neighbours", change="1")
    assert near.parts["neighbours"].count("reid-before-after") >= 1
    assert "<b>Before</b>" in near.parts["neighbours"]
    assert ask("cameras", "neighbours", change="7").error
    visit.user = User("anna", Role.VIEWER)
    assert ask("cameras", "undo").error.startswith("Your role is viewer")
    visit.user = OWNER
    assert ask("cameras", "undo").error == ""
    run_jobs(served.service, 2)
    assert "undone" in ask("cameras", "show").parts["network"]
    served.service.jobs.close()
