"""What the page "Cameras" says about cameras after its jobs have run, on a sample and without labels."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.asking_pages import asking, service_of
from helpers.person_crops import people
from reid.app.accounts import Role, User
from reid.app.camera_jobs import MANIFESTS
from reid.app.job_records import JobStatus, has_succeeded, path_of_job, write_job
from reid.app.opened_gallery import open_served_gallery
from reid.data.manifest import read_manifest
from reid.models.checkpoint import load_checkpoint
from reid.pipeline import build_gallery
from reid.records import Split
from reid.retrieval.gallery import Gallery

CAMERAS = ("a1", "a2")


@pytest.fixture(scope="module")
def watched(tiny_street: Path, camera_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with crops of two cameras, each of them three times, so that there are enough."""
    folder = tmp_path_factory.mktemp("watched")
    samples = []
    for sample in read_manifest(tiny_street / "street-a" / "manifest.csv"):
        if sample.category == "person" and sample.camera in CAMERAS:
            for number in range(3):
                path = folder / f"{sample.path.stem}-{number}{sample.path.suffix}"
                shutil.copy(sample.path, path)
                samples.append(replace(sample, path=path, split=Split.GALLERY))
    build_gallery(load_checkpoint(camera_weights), samples, folder / "crops")
    return folder / "crops"


def test_every_camera_gets_a_verdict_with_its_reason(watched: Path, tmp_path: Path) -> None:
    service = service_of(open_served_gallery(watched), tmp_path / "state")
    ask, visit, _ = asking(service)
    assert "The network has statistics" in ask("cameras", "show").parts["cameras"]
    assert ask("cameras", "judge").again == "jobs"
    rows = read_manifest(tmp_path / "state" / MANIFESTS[0])
    assert {sample.camera for sample in rows} == set(CAMERAS)
    assert {sample.identity for sample in rows} == {""}, "no label is used"
    assert ask("cameras", "watch").error == ""
    service.jobs.start()
    try:
        ended = [service.jobs.wait(number, 240) for number in (1, 2)]
    finally:
        service.jobs.close()
    assert [job.status for job in ended] == [JobStatus.DONE] * 2, [job.message for job in ended]
    shown = ask("cameras", "jobs")
    assert shown.again == ""
    for name in CAMERAS:
        card = shown.parts["cameras"].partition(f"<h3>{name}</h3>")[2].partition("</section>")[0]
        verdicts = re.findall(r'reid-chip[^>]*>([^<]*)</span> ([^<]*)<span class="reid-soft">\(20', card)
        (verdict, _), (change, _) = verdicts
        assert verdict in ("calibrate", "leave", "more crops")
        assert change in ("drifted", "as before")
        assert all(len(reason) > 20 for _, reason in verdicts)
    assert not [name for name in MANIFESTS if (tmp_path / "state" / name).exists()], "no list of crops stays behind"
    visit.user = User("anna", Role.VIEWER)
    assert ask("cameras", "judge").error.startswith("Your role is viewer")


def test_a_drifted_camera_is_said_and_a_damaged_answer_is_one_line(watched: Path, tmp_path: Path) -> None:
    service = service_of(open_served_gallery(watched), tmp_path / "state")
    ask, _, _ = asking(service)
    ask("cameras", "watch")
    folder = tmp_path / "state" / "jobs"
    found = [{"camera": "person/a2", "alarm": True, "crops": 9, "drift": 0.7, "threshold": 0.3}]
    path_of_job(folder, 1, "out").write_text(json.dumps(found))
    write_job(folder, replace(service.jobs.job(1), status=JobStatus.DONE, ended="2026-01-02T03:04:05+00:00"))
    ask, _, _ = asking(service_of(open_served_gallery(watched), tmp_path / "state"))
    html = ask("cameras", "show").parts["cameras"]
    assert html.count("drifted</span>") == 1
    assert "its 9 latest crops lie 0.70 from its earlier ones" in html
    path_of_job(folder, 1, "out").write_text("[{}]")
    assert "start it again" in ask("cameras", "show").error


def test_a_gallery_without_a_network_is_not_measured(tmp_path: Path) -> None:
    Gallery.build(people()).save(tmp_path / "crops")
    ask, _, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "state"))
    assert "no network" in ask("cameras", "judge").error
    assert "no network" in ask("cameras", "watch").error


def test_only_the_watch_may_end_with_its_code() -> None:
    assert has_succeeded(("cameras", "watch", "--json"), 3)
    assert not has_succeeded(("cameras", "watch"), 1)
    assert not has_succeeded(("cameras", "report"), 3)
