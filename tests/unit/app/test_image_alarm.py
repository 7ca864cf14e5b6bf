"""The page and the REST interface say what the gates of a network say about an image."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers.asking_pages import asking
from helpers.served_galleries import make_gallery, serve_gallery
from helpers.tiny_page import SPEC
from reid.app import image_alarm
from reid.app.gallery_service import GalleryService
from reid.data.transforms import EvaluationTransform
from reid.errors import DataError
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder
from reid.norm import DomainPolicy, convert_norm
from reid.records import Sample
from reid.robustness.gate_alarm import ALARM, BRANCHES, GateAlarm, image_probabilities, probabilities_of


def gated_weights(path: Path, threshold: float) -> Path:
    """Save an untrained network whose gates raise the alarm above a threshold."""
    torch.manual_seed(0)
    network = convert_norm(Embedder(SPEC), DomainPolicy("attack", BRANCHES, "domain", "gated_first")).eval()
    extra = {ALARM: GateAlarm(threshold, 0.01, 50).text()}
    save_checkpoint(path, network, SPEC, EvaluationTransform(64, 32), (), BRANCHES, extra)
    return path


def service_with(samples: tuple[Sample, ...], folder: Path, threshold: float) -> GalleryService:
    gallery = make_gallery(samples[:12], gated_weights(folder / "w.safetensors", threshold), folder / "shop")
    return serve_gallery(gallery, folder / "state").service


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_raised_alarm_is_told(samples: tuple[Sample, ...], tmp_path: Path, picture: bytes, threshold: float) -> None:
    service = service_with(samples, tmp_path, threshold)
    client = serve_gallery(tmp_path / "shop", tmp_path / "other").client()
    found = client.post("/api/search?k=3", content=picture).json()
    raised = threshold == 0.0
    assert found["image_alarm"] is raised
    assert found["not_clean_threshold"] == threshold
    checkpoint = load_checkpoint(tmp_path / "w.safetensors")
    own = image_probabilities(checkpoint, [Image.open(io.BytesIO(picture)).convert("RGB")])
    assert found["not_clean"] == pytest.approx(float(own[0]), abs=1e-5)
    assert any("attacked or damaged" in note for note in found["notes"]) is raised
    crop = int(service.data.main.gallery.table.row_ids[2])
    of_crop = client.post(f"/api/search?crop={crop}&k=3").json()
    alone = probabilities_of(checkpoint, [service.sample_of(crop)])
    assert of_crop["not_clean"] == pytest.approx(float(alone[0]), abs=1e-5)
    assert of_crop["image_alarm"] is raised
    ask, _, _ = asking(service)
    shown = ask("search", "search", query=f"r{crop}")
    assert shown.error == ""
    assert ("attacked or damaged" in shown.parts["query"]) is raised


def test_nothing_is_told_without_gates_or_without_the_file(
    samples: tuple[Sample, ...], built: Path, tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve_gallery(built, tmp_path / "state").client()
    assert "image_alarm" not in client.post("/api/search?k=3", content=picture).json()
    service_with(samples, tmp_path, 0.0)
    client = serve_gallery(tmp_path / "shop", tmp_path / "other").client()

    def read_image(path: Path) -> Image.Image:
        raise DataError(f"{path}: is gone")

    monkeypatch.setattr(image_alarm, "read_image", read_image)
    found = client.post("/api/search?crop=0&k=3").json()
    assert found["answers"], "the stored embedding is searched for"
    assert "image_alarm" not in found


def test_searches_at_once_ask_the_gates_about_their_own_images(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    """The gates are asked by hooks on the network, which another thread uses at the same time."""
    checkpoint = load_checkpoint(gated_weights(tmp_path / "w.safetensors", 0.5))
    images = [Image.open(sample.path).convert("RGB") for sample in samples[:4]]
    expected = [float(image_probabilities(checkpoint, [image])[0]) for image in images]
    found: dict[int, list[float]] = {}

    def ask(number: int) -> None:
        found[number] = [float(image_probabilities(checkpoint, [images[number]])[0]) for _ in range(8)]

    threads: list[Any] = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, values in found.items():
        assert values == pytest.approx([expected[number]] * 8, abs=1e-6)
