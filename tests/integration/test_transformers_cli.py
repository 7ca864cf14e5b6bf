"""A file of TransReID from the command line: its own cameras, cameras that it does not know, and what it cannot do."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from helpers import transformer_tables as tables
from helpers.published_tables import filled

BACKBONE = "transreid_deit_small"
SIZE = ("--size", 64, 32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TransReID of Market-1501's six cameras, with random numbers, for images of 64x32 pixels."""
    path = tmp_path_factory.mktemp("transreid") / "transformer_120.pth"
    torch.save(filled(tables.transreid(patches=8, cameras=6)), path)
    return path


@pytest.fixture
def renamed(manifest: Path, tmp_path: Path) -> Path:
    """The street with the camera names of Market-1501."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cameras = sorted({row["camera"] for row in rows})
    names = {camera: f"c{number}" for number, camera in enumerate(cameras, 1)}
    path = tmp_path / "renamed.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "path": manifest.parent / row["path"], "camera": names[row["camera"]]} for row in rows)
    return path


def test_cameras_of_the_training_are_known(reid, weights: Path, renamed: Path, tmp_path: Path) -> None:
    asked = ("evaluate", "--data", renamed, "--weights", weights, *SIZE)
    scores = {}
    for name, backbone in (("with", BACKBONE), ("without", f"{BACKBONE}+sie0")):
        code, _, err = reid(*asked, "--backbone", backbone, "--json", tmp_path / f"{name}.json")
        assert code == 0, err
        scores[name] = json.loads((tmp_path / f"{name}.json").read_text())["results"][0]
    assert scores["with"]["fingerprint"] != scores["without"]["fingerprint"]
    assert scores["with"]["mAP"] != scores["without"]["mAP"]


def test_other_cameras_need_a_policy(reid, fails, weights: Path, other_manifest: Path, tmp_path: Path) -> None:
    asked = ("embed", "--data", other_manifest, "--weights", weights, "--backbone", BACKBONE, *SIZE)
    out = ("--out", tmp_path / "e.safetensors")
    assert "c1, c2, c3, c4, c5, c6" in fails(*asked, *out)
    assert not (tmp_path / "e.safetensors").exists()
    assert "prior or mixture" in fails(*asked, *out, "--unseen-camera", "nearest")
    code, _, err = reid(*asked, *out, "--unseen-camera", "prior")
    assert code == 0, err
    assert (tmp_path / "e.safetensors").exists()


def test_a_size_that_the_file_does_not_have(fails, weights: Path, renamed: Path) -> None:
    line = fails("evaluate", "--data", renamed, "--weights", weights, "--backbone", BACKBONE, "--size", 128, 64)
    assert "8 positions" in line
    assert "128x64" in line
