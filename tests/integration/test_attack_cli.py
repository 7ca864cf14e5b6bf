"""``reid attack``: files, scores, transfer, continuing, the warning of a search, and mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.small_checkpoints import SPEC, TRANSFORM, plain_network, randomize_norms, save_network
from reid.models.checkpoint import save_checkpoint
from reid.norm import convert_norm
from reid.norm.domain_policy import DomainPolicy
from reid.robustness.gate_alarm import ALARM, BRANCHES, GateAlarm
from tests.integration.conftest import Run

Fails = Callable[..., str]


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Six people, each a query in one camera and in the gallery of another; one query is infrared."""
    random = np.random.default_rng(0)
    lines = ["path,identity,camera,modality,split"]
    for person in range(6):
        colours = random.integers(40, 216, (4, 3))
        for camera in ("day", "street"):
            image = np.repeat(colours, 16, axis=0)[:, None].repeat(32, axis=1) + random.normal(0, 12, (64, 32, 3))
            name = f"p{person}_{camera}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / name)
            lines.append(f"{name},p{person},{camera},visible,{'query' if camera == 'day' else 'gallery'}")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    return save_network(folder, plain_network())


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"), np.int16)


def test_attack_writes_queries_inside_the_ball_and_scores_them(
    reid: Run, crops: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    common = ("attack", "--data", crops, "--weights", weights, "--out", out, "--epsilon", 6, "--steps", 2, "--json")
    code, said, _ = reid(*common, "--target-weights", weights)
    assert code == 0
    found = json.loads(said)
    white, transfer = found["networks"]
    assert (white["role"], transfer["role"], white["queries"]) == ("white box", "transfer", 6)
    assert white["cosine"] == transfer["cosine"] < 1
    (direction,) = white["results"]
    assert {"clean_rank1", "attacked_rank1", "clean_mAP", "attacked_mAP"} <= set(direction)
    for before, after in zip(rows(crops), rows(out / "manifest.csv"), strict=True):
        clean, attacked = pixels(crops.parent / before["path"]), pixels(out / after["path"])
        change = np.abs(clean - attacked).max()
        assert (0 < change <= 6) if before["split"] == "query" else change == 0
    code, again, _ = reid(*common, "--target-weights", weights)
    assert (code, json.loads(again)) == (0, found)


def test_an_interrupted_attack_continues(reid: Run, crops: Path, weights: Path, tmp_path: Path) -> None:
    common = ("attack", "--data", crops, "--weights", weights, "--optimizer", "pgd", "--norm", "l1", "--steps", 1)
    assert reid(*common, "--out", tmp_path / "a")[0] == reid(*common, "--out", tmp_path / "b")[0] == 0
    (tmp_path / "b" / "manifest.csv").unlink()
    removed = sorted((tmp_path / "b" / "images").iterdir())[2]
    removed.unlink()
    assert reid(*common, "--out", tmp_path / "b")[0] == 0
    assert removed.read_bytes() == (tmp_path / "a" / "images" / removed.name).read_bytes()


def test_crops_without_labels_are_attacked_too(reid: Run, crops: Path, weights: Path, tmp_path: Path) -> None:
    bare = crops.with_name("bare.csv")
    lines = "".join(f"p{person}_day.png,,gallery\n" for person in range(4))
    bare.write_text(f"path,identity,split\n{lines}")
    for method in ("self", "push", "pull"):
        command = ("attack", "--data", bare, "--weights", weights, "--out", tmp_path / method, "--method", method)
        code, said, err = reid(*command, "--steps", 1)
        assert code == 0, err
        assert "cosine to clean" in said
        assert "rank-1" not in said
        assert "hint: " in err


def test_universal_noise_is_kept(reid: Run, crops: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("attack", "--data", crops, "--weights", weights, "--out", out, "--universal", "--steps", 1)
    assert reid(*command)[0] == 0
    noise = (out / "noise.safetensors").read_bytes()
    (out / "manifest.csv").unlink()
    assert reid(*command)[0] == 0
    assert (out / "noise.safetensors").read_bytes() == noise
    (out / "manifest.csv").unlink()
    (out / "noise.safetensors").write_bytes(b"not a file of tensors")
    code, _, err = reid(*command)
    assert code == 1
    assert err.rstrip().splitlines()[-1].startswith("error: ")


def test_mistakes(fails: Fails, crops: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("attack", "--data", crops, "--weights", weights, "--out", out)
    assert "--data" in fails("attack", "--weights", weights, "--out", out)
    assert "odfa" in fails(*common, "--method", "odfo")
    assert "l2" in fails(*common, "--norm", "l3")
    assert "0..255" in fails(*common, "--epsilon", 0.03)
    assert "--target" in fails(*common, "--target", "p1")
    assert "p1" in fails(*common, "--method", "pull", "--target", "p11", "--steps", 1)
    assert "--target-weights" in fails(*common, "--target-backbone", "osnet_x0_25")
    assert "fgsm" in fails(*common, "--optimizer", "fgsm", "--steps", 4)
    assert "eager" in fails(*common, "--runtime", "folded")
    assert "missing.safetensors" in fails("attack", "--data", crops, "--weights", "missing.safetensors", "--out", out)
    assert not out.exists()
    crops.with_name("train.csv").write_text("path,identity,split\np1_day.png,p1,train\n")
    assert "query" in fails("attack", "--data", crops.with_name("train.csv"), "--weights", weights, "--out", out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "notes" not in fails(*common)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_model_of_another_program_has_no_gradient(
    reid: Run, fails: Fails, crops: Path, weights: Path, tmp_path: Path
) -> None:
    assert reid("export", "--weights", weights, "--out", tmp_path / "m.onnx")[0] == 0
    common = ("attack", "--data", crops, "--out", tmp_path / "out", "--steps", 1)
    assert "gradient" in fails(*common, "--weights", tmp_path / "m.onnx")
    code, said, _ = reid(*common, "--weights", weights, "--target-weights", tmp_path / "m.onnx", "--json")
    white, transfer = json.loads(said)["networks"]
    assert code == 0
    assert transfer["cosine"] == pytest.approx(white["cosine"], abs=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_search_warns_where_the_gates_raise_the_alarm(
    reid: Run, crops: Path, tmp_path: Path, threshold: float
) -> None:
    torch.manual_seed(0)
    network = randomize_norms(convert_norm(plain_network(), DomainPolicy("attack", BRANCHES, "domain", "gated_first")))
    gated = tmp_path / "gated.safetensors"
    alarm = GateAlarm(threshold, 0.01, 50)
    save_checkpoint(gated, network, SPEC, TRANSFORM, (), BRANCHES, {ALARM: alarm.text()})
    gallery = tmp_path / "G"
    assert reid("index", "build", "--data", crops, "--weights", gated, "--out", gallery)[0] == 0
    code, said, err = reid("search", crops.parent / "p0_day.png", "--gallery", gallery, "--json")
    first = json.loads(said)[0]
    assert code == 0
    assert first["image_alarm"] is (threshold == 0.0)
    assert 0 < first["not_clean"] < 1
    assert ("warning: " in err) is (threshold == 0.0)
