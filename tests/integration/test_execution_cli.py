"""The options of commands that run a network, and images that cannot be read, from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from helpers.small_checkpoints import plain_network, save_network
from reid.cli import main


@pytest.fixture
def manifest(tiny_street: Path, tmp_path: Path) -> Path:
    """The manifest of a street of which one gallery image is missing and one is no image."""
    source = tiny_street / "street-b"
    with (source / "manifest.csv").open(newline="") as file:
        rows = [{**row, "path": str(source / row["path"])} for row in csv.DictReader(file)]
    rows = [row for row in rows if row["split"] != "train"]
    first, second = [row for row in rows if row["split"] == "gallery"][:2]
    first["path"], second["path"] = str(tmp_path / "none.jpg"), str(tmp_path / "text.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    path = tmp_path / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_network(tmp_path, plain_network())


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_bad_images_stop_or_are_listed(
    manifest: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", manifest, "--weights", weights]
    assert run("evaluate", *common) == 1
    assert "no such image" in capsys.readouterr().err
    scores = tmp_path / "scores.json"
    assert run("evaluate", *common, "--bad-images", "list", "--json", scores) == 0
    assert "left out 2 images that cannot be read:" in capsys.readouterr().err
    assert '"unreadable images": 2' in json.dumps(json.loads(scores.read_text()))
    assert run("embed", *common, "--bad-images", "list", "--out", tmp_path / "e.safetensors") == 0
    rows = len(manifest.read_text().splitlines()) - 1
    assert f"\t{rows - 2} vectors of" in capsys.readouterr().out
    assert run("index", "build", *common, "--bad-images", "list", "--out", tmp_path / "gallery") == 0
    captured = capsys.readouterr()
    assert "left out 2 images" in captured.err
    assert "erased" not in captured.err
    assert run("evaluate", *common, "--bad-images", "skip") == 1
    assert "known: stop, list" in capsys.readouterr().err


def test_a_gallery_keeps_the_precision_of_its_embeddings(
    tiny_street: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, gallery = tiny_street / "street-b", tmp_path / "gallery"
    built = ["index", "build", "--data", source / "manifest.csv", "--weights", weights, "--out", gallery]
    assert run(*built, "--precision", "bfloat16", "--runtime", "folded") == 0
    assert "folded bfloat16 on cpu" in capsys.readouterr().err
    with (source / "manifest.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["split"] == "query")
    query = ["search", source / row["path"], "--gallery", gallery, "--json"]
    assert run(*query) == 0
    assert run(*built) == 0  # again, in float32
    capsys.readouterr()
    assert run(*query, "--precision", "bfloat16") == 1
    assert "was embedded in float32, not in bfloat16" in capsys.readouterr().err


def test_values_are_checked_and_auto_says_what_it_took(
    manifest: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["embed", "--data", manifest, "--weights", weights, "--out", tmp_path / "e.safetensors"]
    assert run(*common, "--device", "cuda:99") == 1
    assert "--device auto takes the best" in capsys.readouterr().err
    assert run(*common, "--runtime", "tensorrt") == 1
    assert "known: eager, folded, onnx, openvino, auto" in capsys.readouterr().err
    assert run(*common, "--bad-images", "list", "--device", "auto") == 0
    assert "device: " in capsys.readouterr().err
