"""``reid corrupt`` and ``reid evaluate --corrupt``: files, columns, agreement of the two, and mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.conftest import Run

Fails = Callable[..., str]


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Twenty people of flat colours with noise in a visible and in an infrared camera, and their manifest."""
    random = np.random.default_rng(0)
    lines = ["path,identity,camera,modality,split"]
    for person in range(20):
        colours = random.integers(40, 216, (4, 3))
        for camera, modality in (("day", "visible"), ("street", "visible"), ("night", "infrared")):
            image = np.repeat(colours, 16, axis=0)[:, None].repeat(32, axis=1) + random.normal(0, 12, (64, 32, 3))
            found = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            name = f"p{person}_{camera}.png"
            (found if modality == "visible" else found.convert("L")).save(tmp_path / name)
            lines.append(f"{name},p{person},{camera},{modality},{'query' if camera == 'day' else 'gallery'}")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key != "category"} for row in csv.DictReader(file)]


def test_corrupt_writes_every_image_and_can_continue(reid: Run, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "dirty"
    code, said, _ = reid("corrupt", "--data", crops, "--out", out, "--seed", 3)
    assert (code, said.strip()) == (0, str(out / "manifest.csv"))
    before, after = rows(crops), rows(out / "manifest.csv")
    assert [{**row, "path": ""} for row in before] == [{**row, "path": ""} for row in after]
    files = [out / row["path"] for row in after]
    contents = [file.read_bytes() for file in files]
    for row, file in zip(after, files, strict=True):
        pixels = np.asarray(Image.open(file))
        assert pixels.shape == (64, 32, 3)
        if row["modality"] == "infrared":
            assert np.ptp(pixels, axis=2).max() == 0
    files[4].unlink()
    (out / "manifest.csv").unlink()
    assert reid("corrupt", "--data", crops, "--out", out, "--seed", 3)[0] == 0
    assert [file.read_bytes() for file in files] == contents
    assert rows(out / "manifest.csv") == after


def test_corrupt_leaves_other_cameras_alone(reid: Run, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "dirty"
    code, _, _ = reid(
        "corrupt", "--data", crops, "--out", out, "--camera", "street", "--corruption", "spatter", "--severity", 4
    )
    assert code == 0
    for before, after in zip(rows(crops), rows(out / "manifest.csv"), strict=True):
        same = (out / after["path"]).resolve() == (crops.parent / before["path"]).resolve()
        assert same == (before["camera"] != "street")


def test_corrupt_refuses_what_it_would_destroy(reid: Run, fails: Fails, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "dirty"
    assert reid("corrupt", "--data", crops, "--out", out)[0] == 0
    fails("corrupt", "--data", crops, "--out", out, "--seed", 1)
    fails("corrupt", "--data", crops, "--out", tmp_path)
    fails("corrupt", "--out", tmp_path / "new")
    assert "rain" in fails("corrupt", "--data", crops, "--out", tmp_path / "new", "--corruption", "sleet")
    assert "night" in fails("corrupt", "--data", crops, "--out", tmp_path / "new", "--camera", "c9")
    assert not (tmp_path / "new").exists()


def test_evaluate_has_the_four_columns(reid: Run, crops: Path, plain_weights: Path, tmp_path: Path) -> None:
    scores, page = tmp_path / "scores.json", tmp_path / "page.html"
    common = ("evaluate", "--data", crops, "--weights", plain_weights)
    code, out, _ = reid(*common, "--corrupt", "all", "--corrupt-repeats", 2, "--json", scores, "--html", page)
    assert code == 0
    entries = [entry for entry in json.loads(scores.read_text())["results"] if entry["direction"] == "visible->visible"]
    assert [entry["corruption"] for entry in entries] == ["", "both", "query", "gallery"]
    assert [len(entry["trials"]) for entry in entries] == [0, 2, 2, 2]
    for entry in entries[1:]:
        assert entry["mAP"] == pytest.approx(np.mean([one["mAP"] for one in entry["trials"]]))
        assert entry["deviations"]["mAP"] == pytest.approx(np.std([one["mAP"] for one in entry["trials"]], ddof=1))
        assert entry["queries"] == entries[0]["queries"]
    assert max(entry["mAP"] for entry in entries[1:]) < entries[0]["mAP"]
    assert "sd of 2" in out
    assert all(len(line) <= 80 for line in out.splitlines()[1:])
    text = page.read_text()
    assert text.count('<div class="maps corruptions">') == 4  # both and query, in two directions
    assert "glass blur" in text


def test_evaluate_agrees_with_images_on_disk(reid: Run, crops: Path, plain_weights: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    how = ("--corruption", "fog", "--corruption", "motion_blur", "--severity", 2)
    assert reid("corrupt", "--data", crops, "--out", tmp_path / "dirty", "--seed", 5, *how)[0] == 0
    weights = ("--weights", plain_weights)
    assert reid("evaluate", "--data", tmp_path / "dirty" / "manifest.csv", *weights, "--json", one)[0] == 0
    corrupt = ("--corrupt", "both", "--corrupt-seed", 5, *how)
    assert reid("evaluate", "--data", crops, *weights, *corrupt, "--json", other)[0] == 0
    found = [e for e in json.loads(other.read_text())["results"] if e["corruption"]]
    for entry, wanted in zip(found, json.loads(one.read_text())["results"], strict=True):
        assert entry["direction"] == wanted["direction"]
        assert entry["mAP"] == pytest.approx(wanted["mAP"], abs=1e-6)
    code, out, _ = reid("diff", other, other)
    assert code == 0
    assert "both" in out


def test_severity_0_changes_no_score(reid: Run, crops: Path, plain_weights: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    common = ("evaluate", "--data", crops, "--weights", plain_weights)
    assert reid(*common, "--corrupt", "query", "--severity", 0, "--json", scores)[0] == 0
    entries = json.loads(scores.read_text())["results"]
    for clean, changed in zip(entries[::2], entries[1::2], strict=True):
        assert clean["direction"] == changed["direction"]
        assert (clean["mAP"], changed["corruption"]) == (changed["mAP"], "query")


def test_mistakes_of_evaluate(fails: Fails, crops: Path, plain_weights: Path) -> None:
    common = ("evaluate", "--data", crops, "--weights", plain_weights)
    assert "gallery" in fails(*common, "--corrupt", "galery")
    assert "--corrupt" in fails(*common, "--severity", 2)
    assert "both" in fails(*common, "--corrupt", "query", "--rule", "ignore=itself")
    assert "saturate" in fails(*common, "--corrupt", "both", "--corruption", "saturate")
