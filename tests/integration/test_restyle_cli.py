"""``reid restyle``: files and rows, what the crops look like, continuation, what refuses them, and mistakes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.data.manifest import read_manifest
from reid.data.transforms import EvaluationTransform
from reid.generation.restyle_plan import METHODS
from reid.models.checkpoint import save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from tests.integration.conftest import Run

Fails = Callable[..., str]
GAINS = {"day": (1.0, 0.9, 0.7), "dusk": (0.4, 0.4, 0.6), "night": (0.5, 0.5, 0.5)}


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Six people in two visible cameras of other gains and in an infrared one: two crops of split train, one query."""
    random, lines = np.random.default_rng(0), ["path,identity,camera,modality,split,time"]
    for person in range(6):
        clothes = random.integers(40, 216, (4, 3))
        for camera, gains in GAINS.items():
            for number, split in enumerate(("train", "train", "query")):
                image = np.repeat(clothes, 8, axis=0)[:, None].repeat(16, axis=1) + random.normal(0, 12, (32, 16, 3))
                image = (image * np.array(gains)).clip(0, 255).astype(np.uint8)
                found = Image.fromarray(image)
                name = f"p{person}_{camera}_{number}.png"
                (found.convert("L") if camera == "night" else found).save(tmp_path / name)
                light = "infrared" if camera == "night" else "visible"
                lines.append(f"{name},p{person},{camera},{light},{split},2026-03-02T10:34:20")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    spec, path = NetworkSpec("resnet18_x0_25"), tmp_path / "w.safetensors"
    save_checkpoint(path, Embedder(spec).eval(), spec, EvaluationTransform(32, 16), (), (), {})
    return path


def pixels(manifest: Path, camera: str, generated: bool | None = None) -> np.ndarray:
    rows = [s for s in read_manifest(manifest) if s.camera == camera and s.split == "train"]
    chosen = [s for s in rows if generated in (None, s.generated)]
    return np.stack([np.asarray(Image.open(s.path).convert("RGB"), dtype=np.float64) for s in chosen])


def test_crops_get_the_moments_of_the_other_camera(reid: Run, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "restyled"
    how = ("--data", crops, "--from", "day", "--to", "dusk", "--to", "night", "--out", out)
    code, said, _ = reid("restyle", *how)
    assert (code, said.strip()) == (0, str(out / "manifest.csv"))
    rows = read_manifest(out / "manifest.csv")
    assert [row.camera for row in rows] == ["dusk"] * 12 + ["night"] * 12
    assert all(row.generated and row.split == "train" and row.time is None for row in rows)
    assert [row.identity for row in rows[:12]] == [f"p{person}" for person in range(6) for _ in range(2)]
    assert {row.modality for row in rows[:12]} == {"visible"}
    assert {row.modality for row in rows[12:]} == {"infrared"}
    for camera in ("dusk", "night"):
        found, wanted = pixels(out / "manifest.csv", camera), pixels(crops, camera)
        np.testing.assert_allclose(found.mean((0, 1, 2)), wanted.mean((0, 1, 2)), atol=1.0)  # rounded and clipped
        np.testing.assert_allclose(found.std((0, 1, 2)), wanted.std((0, 1, 2)), rtol=0.03)
    assert np.ptp(pixels(out / "manifest.csv", "night"), axis=3).max() == 0
    before = pixels(crops, "day")
    assert np.abs(before.mean((0, 1, 2)) - pixels(crops, "dusk").mean((0, 1, 2))).max() > 20


@pytest.mark.parametrize("method", [name for name in METHODS if name != "moments"])
def test_every_method_restyles_and_continues(
    method: str, reid: Run, crops: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / method
    how = ("--data", crops, "--from", "day", "--to", "dusk", "--out", out, "--method", method, "--weights", weights)
    how = (*how, "--epochs", 3)
    assert reid("restyle", *how)[0] == 0
    before, after, wanted = pixels(crops, "day"), pixels(out / "manifest.csv", "dusk"), pixels(crops, "dusk")
    gap = np.abs(before.mean((0, 1, 2)) - wanted.mean((0, 1, 2))).mean()
    assert np.abs(after.mean((0, 1, 2)) - wanted.mean((0, 1, 2))).mean() < 0.6 * gap
    if method == "gram":  # which continues like the others, and slowly
        assert not (out / "restyler").exists()
        return
    files = sorted((out / "images").iterdir())
    contents = [file.read_bytes() for file in files]
    files[3].unlink()
    (out / "manifest.csv").unlink()
    assert reid("restyle", *how)[0] == 0
    assert [file.read_bytes() for file in files] == contents
    trained = out / "restyler" / "weights.safetensors"
    other = (*how[:6], "--out", tmp_path / "again", "--method", method, "--restyler", trained)
    assert reid("restyle", *other)[0] == 0
    assert [file.read_bytes() for file in sorted((tmp_path / "again" / "images").iterdir())] == contents


def test_profiles_lend_the_style(reid: Run, fails: Fails, crops: Path, weights: Path, tmp_path: Path) -> None:
    profiles = tmp_path / "profiles.safetensors"
    made = ("--data", crops, "--weights", weights, "--out", profiles, "--by", "camera", "--normalize", "statistics")
    assert reid("calibrate", *made)[0] == 0
    how = ("--data", crops, "--from", "day", "--to", "dusk", "--weights", weights, "--epochs", 1)
    taken = (*how, "--profiles", profiles)
    assert reid("restyle", *taken, "--out", tmp_path / "a", "--method", "adain")[0] == 0
    assert "adain" in fails("restyle", *taken, "--out", tmp_path / "b", "--method", "wct")
    assert reid("restyle", *how, "--out", tmp_path / "c", "--method", "adain")[0] == 0
    assert (pixels(tmp_path / "a" / "manifest.csv", "dusk") != pixels(tmp_path / "c" / "manifest.csv", "dusk")).any()


def test_generated_crops_are_refused_as_answers(reid: Run, fails: Fails, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "restyled"
    assert reid("restyle", "--data", crops, "--to", "dusk", "--out", out)[0] == 0
    manifest = out / "manifest.csv"
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[2]["split"] = "gallery"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for command in (("validate",), ("evaluate",), ("index", "build", "--out", tmp_path / "G")):
        said = fails(*command, "--data", manifest)
        assert "line 4" in said
        assert "generated" in said


def test_mistakes_are_told_and_nothing_is_lost(
    reid: Run, fails: Fails, crops: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "restyled"
    assert "dusk" in fails("restyle", "--data", crops, "--to", "dsk", "--out", out)
    assert "moments" in fails("restyle", "--data", crops, "--to", "dusk", "--out", out, "--method", "cyclegan")
    fails("restyle", "--data", crops, "--from", "dusk", "--to", "dusk", "--out", out)
    fails("restyle", "--data", crops, "--to", "dusk", "--out", out, "--method", "adain", "--restyler", weights)
    fails("restyle", "--data", crops, "--to", "dusk", "--out", out, "--restyler", weights)
    fails("restyle", "--data", crops, "--to", "dusk", "--out", tmp_path)
    text = crops.read_text(encoding="utf-8").replace(",train,", ",gallery,")
    crops.with_name("nameless.csv").write_text(text.replace(",day,", ",,").replace(",night,", ",,"), encoding="utf-8")
    fails("restyle", "--data", crops.with_name("nameless.csv"), "--to", "dusk", "--out", out)
    assert not out.exists()
    assert reid("restyle", "--data", crops, "--from", "day", "--to", "dusk", "--out", out)[0] == 0
    fails("restyle", "--data", crops, "--from", "night", "--to", "dusk", "--out", out)
    assert reid("restyle", "--out", out)[0] == 2


def test_without_split_train_all_crops_are_restyled_and_no_label_of_a_test_is_kept(
    reid: Run, crops: Path, tmp_path: Path
) -> None:
    text = crops.read_text(encoding="utf-8").replace(",train,", ",gallery,").replace(",train\n", ",gallery\n")
    crops.with_name("no-train.csv").write_text(text, encoding="utf-8")
    out = tmp_path / "restyled"
    assert reid("restyle", "--data", crops.with_name("no-train.csv"), "--to", "dusk", "--out", out)[0] == 0
    rows = read_manifest(out / "manifest.csv")
    asked = {row.path for row in read_manifest(crops.with_name("no-train.csv")) if row.camera != "dusk"}
    assert len(rows) == len(asked)
    assert {(row.identity, str(row.split), row.generated) for row in rows} == {("", "train", True)}


def test_a_camera_with_two_lights_has_two_styles(reid: Run, crops: Path, tmp_path: Path) -> None:
    """The wrong way: its crops of both lights make one style, and crops of both look the same afterwards."""
    text = crops.read_text(encoding="utf-8").replace(",dusk,", ",door,").replace(",night,", ",door,")
    crops.with_name("door.csv").write_text(text, encoding="utf-8")
    out = tmp_path / "restyled"
    assert reid("restyle", "--data", crops.with_name("door.csv"), "--from", "day", "--to", "door", "--out", out)[0] == 0
    rows = read_manifest(out / "manifest.csv")
    assert {(row.camera, str(row.modality)) for row in rows} == {("door", "visible")}
    found, wanted = pixels(out / "manifest.csv", "door"), pixels(crops, "dusk")
    np.testing.assert_allclose(found.mean((0, 1, 2)), wanted.mean((0, 1, 2)), atol=1.0)


def test_what_cannot_be_written_is_told_and_continued(
    reid: Run, fails: Fails, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "restyled"
    how = ("restyle", "--data", crops, "--from", "day", "--to", "dusk", "--out", out)

    def full(*_arguments: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert str(out) in fails(*how)
    assert not (out / "manifest.csv").exists()
    assert reid(*how)[0] == 0
    assert len(read_manifest(out / "manifest.csv")) == 12
