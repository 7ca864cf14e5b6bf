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


def test_bad_images_are_left_out_of_calibration_and_of_added_rows(
    manifest: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, gallery = ["--data", manifest], tmp_path / "gallery"
    measured = ["calibrate", *data, "--weights", weights, "--out", tmp_path / "profiles.safetensors"]
    assert run(*measured) == 1
    assert "no such image" in capsys.readouterr().err
    assert run(*measured, "--bad-images", "list") == 0
    found = capsys.readouterr()
    assert "left out 2 images that cannot be read:" in found.err
    counts = [int(line.split("\t")[1].split()[0]) for line in found.out.splitlines()]
    assert sum(counts) == len(manifest.read_text().splitlines()) - 3
    assert run("index", "create", gallery, "--weights", weights) == 0
    assert run("index", "add", gallery, *data) == 1
    capsys.readouterr()
    assert run("index", "add", gallery, *data, "--bad-images", "list", "--json") == 0
    found = capsys.readouterr()
    assert "left out 2 images that cannot be read:" in found.err
    rows = sum(",gallery" in line for line in manifest.read_text().splitlines())
    assert json.loads(found.out)["added"] == rows - 2
    assert run("index", "add", gallery, *data, "--bad-images", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["added"] == 0


def test_near_duplicates_are_kept_listed_or_an_error(
    tiny_street: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (tiny_street / "street-b" / "manifest.csv").read_text().splitlines()
    first, second = (row.split(",") for row in [row for row in rows[1:] if ",gallery" in row][:2])
    path = rows[0].split(",").index("path")
    for number, row in enumerate((first, second, first)):
        target = tmp_path / f"{number}.jpg"
        target.write_bytes((tiny_street / "street-b" / row[path]).read_bytes())
    lines = [
        ",".join([*row[:path], f"{number}.jpg", *row[path + 1 :]]) for number, row in enumerate((first, second, first))
    ]
    (tmp_path / "three.csv").write_text("\n".join([rows[0], *lines]) + "\n")
    common = ["--data", tmp_path / "three.csv", "--weights", weights]
    out = tmp_path / "e.safetensors"
    assert run("embed", *common, "--out", out, "--near-duplicates", "stop") == 1
    assert "2.jpg: is nearly the same image as" in capsys.readouterr().err
    assert not out.exists()
    assert run("embed", *common, "--out", out, "--near-duplicates", "list") == 0
    captured = capsys.readouterr()
    assert "1 image is nearly the same as another:" in captured.err
    assert "\t3 vectors of" in captured.out
    assert run("embed", *common, "--out", out) == 0
    assert "nearly the same" not in capsys.readouterr().err
    assert run("embed", *common, "--out", out, "--near-duplicates", "drop") == 1
    assert "known: keep, list, stop" in capsys.readouterr().err


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
    common += ["--bad-images", "list"]
    assert run(*common, "--device", "cuda:99") == 1
    assert "--device auto takes the best" in capsys.readouterr().err
    assert run(*common, "--runtime", "tensorrt") == 1
    assert "known: eager, folded, onnx, openvino, auto" in capsys.readouterr().err
    assert run(*common, "--device", "auto") == 0
    assert "device: " in capsys.readouterr().err
