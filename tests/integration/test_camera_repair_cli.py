"""``reid cameras repair``: a dirty camera is cured, a clean one is left alone, and mistakes are one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.norm import Profiles
from tests.integration.conftest import Run

Fails = Callable[..., str]
PEOPLE = 48


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """People of flat colours with noise, once in each of three cameras, and their manifest."""
    random = np.random.default_rng(0)
    folder = tmp_path / "crops"
    folder.mkdir()
    lines = ["path,identity,camera,split"]
    for person in range(PEOPLE):
        colours = random.integers(40, 216, (4, 3))
        for camera in ("c0", "c1", "c2"):
            image = np.repeat(colours, 16, axis=0)[:, None].repeat(32, axis=1) + random.normal(0, 8, (64, 32, 3))
            name = f"p{person:02d}_{camera}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
            lines.append(f"{name},p{person:02d},{camera},gallery")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


@pytest.fixture
def profiles(reid: Run, crops: Path, plain_weights: Path, tmp_path: Path) -> Path:
    out = tmp_path / "cameras.safetensors"
    code, _, err = reid("calibrate", "--data", crops, "--weights", plain_weights, "--out", out)
    assert code == 0, err
    return out


def test_a_dirty_camera_is_cured(reid: Run, crops: Path, plain_weights: Path, profiles: Path, tmp_path: Path) -> None:
    dirty = tmp_path / "dirty"
    how = ("--camera", "c2", "--corruption", "contrast", "--severity", 5)
    assert reid("corrupt", "--data", crops, "--out", dirty, *how)[0] == 0
    out, manifest = tmp_path / "repaired.safetensors", dirty / "manifest.csv"
    common = ("--data", manifest, "--weights", plain_weights, "--profiles", profiles)
    code, said, err = reid("cameras", "repair", *common, "--camera", "c2", "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    tried = {one["name"]: one for one in found["tried"]}
    assert list(tried) == ["nothing", "statistics with prior", "statistics"]  # no camera is centered
    assert found["cure"] != "nothing"
    assert tried[found["cure"]]["gain"] > 0.05
    best = max(one["share"] for one in tried.values())
    assert tried[found["cure"]]["share"] > best - 0.15
    assert (found["others"], found["crops"]) == (["c0", "c1"], PEOPLE)
    before, after = Profiles.load(profiles), Profiles.load(out)
    assert after.domains == before.domains
    for layer, means in before.mean.items():
        assert torch.equal(means[:2], after.mean[layer][:2])  # the other cameras stay
    scores = {}
    for name, file in (("before", profiles), ("after", out)):
        json_file = tmp_path / f"{name}.json"
        evaluated = ("--data", manifest, "--weights", plain_weights, "--profiles", file, "--rule", "ignore=itself")
        assert reid("evaluate", *evaluated, "--json", json_file)[0] == 0
        scores[name] = json.loads(json_file.read_text())["results"][0]["mAP"]
    assert scores["after"] > scores["before"]


def test_a_clean_camera_is_left_alone(
    reid: Run, crops: Path, plain_weights: Path, profiles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "repaired.safetensors"
    common = ("--data", crops, "--weights", plain_weights, "--profiles", profiles)
    code, said, _ = reid("cameras", "repair", *common, "--camera", "c1", "--out", out)
    assert code == 0
    assert "stays as it is" in said
    before, after = Profiles.load(profiles), Profiles.load(out)
    assert all(torch.equal(before.mean[layer], after.mean[layer]) for layer in before.mean)


def test_a_gallery_brings_its_crops_and_its_network(
    reid: Run, crops: Path, plain_weights: Path, profiles: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "gallery", tmp_path / "repaired.safetensors"
    built = ("--data", crops, "--weights", plain_weights, "--profiles", profiles, "--out", folder)
    assert reid("index", "build", *built)[0] == 0
    common = ("cameras", "repair", "--gallery", folder, "--profiles", profiles, "--camera", "c1", "--out", out)
    code, said, err = reid(*common, "--json")
    assert code == 0, err
    assert json.loads(said)["crops"] == PEOPLE
    assert out.exists()


def test_centered_cameras_are_centered_again(reid: Run, crops: Path, plain_weights: Path, tmp_path: Path) -> None:
    before, out = tmp_path / "centered.safetensors", tmp_path / "repaired.safetensors"
    calibrated = ("calibrate", "--data", crops, "--weights", plain_weights, "--normalize", "statistics+centering")
    assert reid(*calibrated, "--out", before)[0] == 0
    dirty = tmp_path / "dirty"
    how = ("--camera", "c2", "--corruption", "contrast", "--severity", 5)
    assert reid("corrupt", "--data", crops, "--out", dirty, *how)[0] == 0
    common = ("--data", dirty / "manifest.csv", "--weights", plain_weights, "--profiles", before)
    code, said, err = reid("cameras", "repair", *common, "--camera", "c2", "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert len(found["tried"]) == 5
    assert found["cure"] != "nothing"
    centers = [Profiles.load(file).centers for file in (before, out)]
    assert centers[0] is not None
    assert centers[1] is not None
    assert torch.equal(centers[0][:2], centers[1][:2])
    assert not torch.equal(centers[0][2], centers[1][2])


def test_mistakes(fails: Fails, crops: Path, plain_weights: Path, profiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "repaired.safetensors"
    common = ("cameras", "repair", "--weights", plain_weights, "--profiles", profiles, "--out", out)
    assert "--gallery" in fails(*common, "--camera", "c1")
    assert "c0, c1, c2" in fails(*common, "--camera", "c9", "--data", crops)
    few = crops.parent / "few.csv"
    few.write_text("\n".join(crops.read_text().splitlines()[:31]) + "\n", encoding="utf-8")
    assert "10" in fails(*common, "--camera", "c1", "--data", few)
    assert not out.exists()
