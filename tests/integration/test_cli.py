"""The commands on a tiny street: from crops to embeddings, galleries, answers and scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.manifest_rows import write_changed
from reid.models.checkpoint import load_checkpoint
from reid.retrieval.embed import load_embeddings

DIRECTIONS = {"visible->visible", "infrared->visible", "visible->infrared", "infrared->infrared"}


def test_from_a_street_to_answers(reid, manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    """Embed, index, and search with a gallery image, which finds itself first."""
    common = ("--data", manifest, "--weights", camera_weights)
    code, out, _ = reid("embed", *common, "--out", tmp_path / "all.safetensors", "--split", "query")
    assert code == 0
    assert "36 vectors" in out
    assert len(load_embeddings(tmp_path / "all.safetensors")) == 36
    code, out, _ = reid("index", "build", *common, "--out", tmp_path / "gallery")
    assert code == 0
    assert "36 images of 6 identities in 6 cameras" in out
    image = next((manifest.parent / "images" / "gallery" / "person").glob("a-person-0001_a5_*.jpg"))
    options = ("--gallery", tmp_path / "gallery", "--camera", "a5", "--modality", "infrared", "--json")
    code, out, _ = reid("search", image, *options, "--k", 3)
    answers = json.loads(out)
    assert code == 0
    assert [answer["rank"] for answer in answers] == [1, 2, 3]
    assert answers[0]["path"] == str(image)
    assert answers[0]["score"] == pytest.approx(1, abs=1e-5)
    _, out, _ = reid("search", image, *options, "--cross-camera", "--answers", "visible")
    assert {answer["modality"] for answer in json.loads(out)} == {"visible"}
    _, out, _ = reid("search", image, *options, "--cross-camera", "--k", 100)
    assert "a5" not in {answer["camera"] for answer in json.loads(out)}


def test_evaluate_writes_the_documented_json(reid, manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    code, out, _ = reid("evaluate", "--data", manifest, "--weights", camera_weights, "--json", tmp_path / "scores.json")
    assert code == 0
    assert "rank-1" in out
    assert all(len(line) <= 80 for line in out.splitlines()[1:])
    results = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert {entry["direction"] for entry in results} == DIRECTIONS
    assert {entry["domain"] for entry in results} == {"person", "vehicle"}
    person = next(e for e in results if (e["domain"], e["direction"]) == ("person", "infrared->visible"))
    assert (person["queries"], person["gallery"], person["queries_without_match"]) == (8, 16, 0)
    for entry in results:
        scores = [entry[key] for key in ("mAP", "mINP", "rank1", "rank5", "rank10")]
        assert all(0 <= score <= 1 for score in scores)
        assert entry["rank1"] <= entry["rank5"] <= entry["rank10"]
        assert entry["protocol"] == "street-a"
        assert entry["fingerprint"]


def test_one_modality_is_direction_all(reid, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    """Cameras may be empty, and an image may be a query and in the gallery: it is no answer to itself."""

    def change(row: dict[str, str]) -> dict[str, str] | None:
        return {**row, "camera": ""} if row["modality"] == "visible" and row["category"] == "person" else None

    rows = write_changed(manifest, tmp_path / "visible.csv", change)
    text = rows.read_text().splitlines()
    repeated = [line.replace(",query,", ",gallery,") for line in text if ",query," in line]
    rows.write_text("\n".join(text + repeated) + "\n")
    reid("evaluate", "--data", rows, "--weights", plain_weights, "--json", tmp_path / "scores.json")
    (entry,) = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert entry["direction"] == "all"
    assert (entry["queries"], entry["gallery"]) == (16, 32)
    assert entry["mAP"] < 1


def test_erasing_a_person(reid, fails, manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    reid("index", "build", "--data", manifest, "--weights", camera_weights, "--out", gallery)
    code, out, _ = reid("index", "erase", gallery, "a-person-0002")
    assert (code, "erased 6 rows" in out) == (0, True)
    assert '"a-person-0002"' in fails("index", "erase", gallery, "a-person-0002")
    image = next((manifest.parent / "images" / "gallery" / "person").glob("a-person-0002_a1_*.jpg"))
    _, out, _ = reid("search", image, "--camera", "a1", "--gallery", gallery, "--k", 100)
    assert len(out.splitlines()) == 18
    assert "a-person-0002\t" not in out
    assert not any(b"a-person-0002" in path.read_bytes() for path in gallery.iterdir())
    assert len(list(gallery.glob("data-*.network.safetensors"))) == 1


def test_a_failed_rebuild_keeps_the_old_gallery(
    reid, fails, manifest: Path, camera_weights: Path, plain_weights: Path, tmp_path: Path, monkeypatch
) -> None:
    """The disk is full while the network is written: the old gallery keeps its index and its network."""
    gallery = tmp_path / "gallery"
    reid("index", "build", "--data", manifest, "--weights", camera_weights, "--out", gallery)
    files = sorted(path.name for path in gallery.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("reid.norm.tensor_file.save_file", full)
        line = fails("index", "build", "--data", manifest, "--weights", plain_weights, "--out", gallery)
    assert "No space left on device" in line
    assert sorted(path.name for path in gallery.iterdir()) == files
    image = next((manifest.parent / "images" / "query" / "person").glob("*_a1_*.jpg"))
    assert reid("search", image, "--camera", "a1", "--gallery", gallery)[0] == 0


def test_a_trained_network_is_evaluated_and_restored(reid, fails, manifest: Path, tmp_path: Path) -> None:
    """Train two epochs, evaluate the weights, damage them, and let the same command write them again."""
    experiment = tmp_path / "small.toml"
    experiment.write_text(
        f'[data]\nmanifests = ["{manifest}"]\ncategories = ["person"]\nsize = [64, 32]\n[norm]\naxis = "camera"\n'
        "[train]\nepochs = 2\nidentities_per_batch = 3\nimages_per_identity = 6\nvisits = 1\nthreads = 1\n"
    )
    code, out, _ = reid("train", experiment, "--out", tmp_path / "run", "--set", "train.warmup_epochs=0.5")
    assert code == 0
    weights = Path(out.strip())
    assert weights.is_file()
    people = write_changed(manifest, tmp_path / "people.csv", lambda row: row if row["category"] == "person" else None)
    assert reid("evaluate", "--data", people, "--weights", weights)[0] == 0
    again = ("train", experiment, "--out", tmp_path / "run", "--set", "train.warmup_epochs=0.5")
    trained = load_checkpoint(weights).fingerprint
    weights.write_bytes(weights.read_bytes()[:-1000])
    message = fails(*again)
    assert str(weights) in message
    assert "delete it" in message
    weights.unlink()
    code, out, _ = reid(*again)
    assert (code, load_checkpoint(Path(out.strip())).fingerprint) == (0, trained)
