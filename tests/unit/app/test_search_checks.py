"""A search refuses what the gallery does not have, and says what was assumed about the camera of a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from helpers.served_galleries import make_gallery, serve_gallery
from reid.models.checkpoint import load_checkpoint
from reid.pipeline import build_gallery
from reid.records import Sample


def test_what_was_assumed_about_the_camera_is_said(
    client: TestClient, samples: tuple[Sample, ...], camera_weights: Path, tmp_path: Path, picture: bytes
) -> None:
    pooled = client.post("/api/search?camera=nowhere", content=picture).json()
    assert pooled["statistics"] == "pooled", "the network has one set of statistics"
    assert client.post("/api/search?crop=0").json()["statistics"] == "stored"

    folder = make_gallery(samples, camera_weights, tmp_path / "galleries" / "cameras")
    other = serve_gallery(folder, tmp_path / "other-state").client()
    own, mixed, nearest = (
        other.post(f"/api/search?k=100{more}", content=picture).json()
        for more in ("&camera=a1", "", "&unknown_camera=nearest")
    )
    assert [one["statistics"] for one in (own, mixed, nearest)] == ["own", "mixture", "nearest"]
    assert any("unknown" in note for note in mixed["notes"])
    assert any("nearest" in note for note in nearest["notes"])
    assert not any("statistics" in note for note in own["notes"])
    scores = {one["statistics"]: [row["score"] for row in one["answers"]] for one in (own, mixed, nearest)}
    assert scores["mixture"] not in (scores["own"], scores["nearest"]), "each embeds the picture differently"

    checkpoint = load_checkpoint(camera_weights).with_unseen_camera_policy("nearest")
    build_gallery(checkpoint, samples, tmp_path / "galleries" / "near")
    near = serve_gallery(tmp_path / "galleries" / "near", tmp_path / "near-state").client()
    for more in ("", "?camera=nowhere"):
        assert near.post(f"/api/search{more}", content=picture).json()["statistics"] == "nearest"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("camera=nowhere", "nowhere"),
        ("in_camera=a1&in_camera=nowhere", "nowhere"),
        ("category=turtle", "turtle"),
        ("unknown_camera=prior", "unknown_camera"),
    ],
)
def test_what_the_gallery_does_not_have_is_refused(
    samples: tuple[Sample, ...], camera_weights: Path, tmp_path: Path, picture: bytes, asked: str, named: str
) -> None:
    folder = make_gallery(samples, camera_weights, tmp_path / "galleries" / "cameras")
    client = serve_gallery(folder, tmp_path / "other-state").client()
    answer = client.post(f"/api/search?{asked}", content=picture)
    assert answer.status_code == 422
    assert named in answer.json()["detail"]


def test_options_that_leave_nothing_out_say_so(client: TestClient, picture: bytes) -> None:
    for asked in ("not_in_camera=nowhere", "cross_camera=true", "cross_camera=true&camera=nowhere"):
        notes = client.post(f"/api/search?{asked}", content=picture).json()["notes"]
        assert any("leaves nothing out" in note for note in notes), asked
    quiet = client.post("/api/search?cross_camera=true&camera=a1", content=picture).json()["notes"]
    assert not any("leaves nothing out" in note for note in quiet)
