"""``reid complete`` and ``reid generate``: training, writing, marks, comparison, and mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.clothed_crops import write_clothed
from reid.cli import main
from tests.integration.conftest import Run

Fails = Callable[..., str]
PEOPLE = 8
SHORT = ("--steps", 2, "--batch", 2)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of eight people in splits train, query and gallery, and their manifest."""
    return write_clothed(tmp_path_factory.mktemp("crops"), PEOPLE, splits=("train", "query", "gallery"))


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks of two crops."""
    folder, pixels = tmp_path_factory.mktemp("masks"), np.zeros((64, 32), np.uint8)
    pixels[30:60, 8:20] = 255
    for name in ("train-p00", "query-p03"):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def trained(command: str, out: Path, *options: object) -> Path:
    """Train with a command and return the weights file."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--train", "--out", str(out), *map(str, (*options, *SHORT))])
    assert not caught.value.code
    return out / "weights.safetensors"


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory, crops: Path) -> Path:
    return trained("complete", tmp_path_factory.mktemp("completion") / "run", "--data", crops)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory, crops: Path) -> Path:
    return trained("generate", tmp_path_factory.mktemp("generator") / "run", "--data", crops, "--discriminator", "oni")


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_training_prints_the_weights_and_continues(reid: Run, crops: Path, completion: Path) -> None:
    code, said, _ = reid("complete", "--train", "--data", crops, "--out", completion.parent, *SHORT)
    assert (code, said.strip()) == (0, str(completion))


def test_complete_writes_marked_crops_and_keeps_the_others(
    reid: Run, crops: Path, masks: Path, completion: Path, tmp_path: Path
) -> None:
    command = ("complete", "--data", crops, "--weights", completion, "--masks", masks, "--out", tmp_path / "out")
    code, said, _ = reid(*command, "--json")
    assert code == 0
    assert json.loads(said) == {"manifest": str(tmp_path / "out" / "manifest.csv"), "completed": 2, "kept": 22}
    found = rows(tmp_path / "out" / "manifest.csv")
    marked = {Path(row["path"]).name: row for row in found if row["generated"] == "yes"}
    assert len(found) == 24
    assert {(name, row["identity"], row["split"]) for name, row in marked.items()} == {
        ("train-p00.png.png", "p00", "train"),
        ("query-p03.png.png", "", "train"),
    }
    file = tmp_path / "out" / marked["train-p00.png.png"]["path"]
    content = file.read_bytes()
    before, after = (np.asarray(Image.open(path)) for path in (crops.parent / "train-p00.png", file))
    hidden = np.asarray(Image.open(masks / "train-p00.png")) > 0
    assert np.array_equal(before[~hidden], after[~hidden])
    file.unlink()
    (tmp_path / "out" / "manifest.csv").unlink()
    assert reid(*command)[0] == 0
    assert file.read_bytes() == content
    assert reid("validate", "--data", tmp_path / "out" / "manifest.csv")[0] == 0


@pytest.mark.parametrize("method", ["smooth", "mean"])
def test_complete_needs_no_network(reid: Run, crops: Path, masks: Path, tmp_path: Path, method: str) -> None:
    command = ("complete", "--data", crops, "--method", method, "--masks", masks, "--out", tmp_path / "out")
    code, said, _ = reid(*command, "--json")
    assert (code, json.loads(said)["completed"]) == (0, 2)


def test_infrared_crops_without_labels_can_be_guessed(reid: Run, completion: Path, tmp_path: Path) -> None:
    manifest = write_clothed(tmp_path / "grey", 3, infrared=True)
    bare = tmp_path / "grey" / "bare.csv"
    bare.write_text("path,identity,split\n" + "".join(f"{row['path']},,train\n" for row in rows(manifest)))
    code, said, _ = reid("complete", "--data", bare, "--weights", completion, "--guess", "--out", tmp_path / "out")
    assert code == 0
    for row in rows(Path(said.strip())):
        pixels = np.asarray(Image.open(Path(said.strip()).parent / row["path"]).convert("RGB"))
        assert np.ptp(pixels, axis=2).max() == 0


def test_generate_draws_marked_crops_and_compares_them(reid: Run, crops: Path, generator: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    code, said, _ = reid("generate", "--weights", generator, "--out", out, "--count", 5, "--data", crops, "--json")
    assert code == 0
    found = json.loads(said)
    assert set(found["scores"]) == {"drawn", "floor"}
    assert found["scores"]["drawn"]["frechet"] > found["scores"]["floor"]["frechet"]
    drawn = rows(Path(found["manifest"]))
    assert [(row["identity"], row["split"], row["generated"]) for row in drawn] == [("", "train", "yes")] * 5
    with Image.open(found["sheet"]) as sheet:
        assert sheet.format == "PNG"
    code, said, _ = reid("generate", "--weights", generator, "--out", out, "--count", 5)
    assert (code, said.strip()) == (0, found["manifest"])


def test_drawn_crops_enter_no_gallery(reid: Run, fails: Fails, generator: Path, tmp_path: Path) -> None:
    assert reid("generate", "--weights", generator, "--out", tmp_path / "drawn", "--count", 4)[0] == 0
    manifest = tmp_path / "drawn" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",train,", ",gallery,"), encoding="utf-8")
    assert "generated" in fails("validate", "--data", manifest)


def test_mistakes_are_told_in_one_line(
    fails: Fails, crops: Path, masks: Path, completion: Path, generator: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "reid generate" in fails("complete", "--data", crops, "--weights", generator, "--guess", "--out", out)
    assert "reid complete" in fails("generate", "--weights", completion, "--out", out)
    assert "--guess" in fails("complete", "--data", crops, "--weights", completion, "--out", out)
    fails("complete", "--data", crops, "--weights", completion, "--masks", tmp_path / "none", "--out", out)
    fails("complete", "--data", crops, "--weights", tmp_path / "none", "--guess", "--out", out)
    fails("complete", "--weights", completion, "--out", out)
    assert "mean" in fails("complete", "--data", crops, "--method", "meen", "--out", out)
    fails("complete", "--data", crops, "--weights", completion, "--masks", masks, "--out", crops.parent)
    assert "style" in fails("generate", "--train", "--data", crops, "--out", out, "--generator", "stile")
    assert "oni" in fails("generate", "--train", "--data", crops, "--out", out, "--discriminator", "on")
    fails("generate", "--train", "--out", out)
    fails("generate", "--weights", generator, "--out", crops.parent)
    assert "3 drawn" in fails("generate", "--weights", generator, "--out", out, "--data", crops, "--count", 3)
    assert "seed" in fails("complete", "--train", "--data", crops, "--out", completion.parent, *SHORT, "--seed", 1)
    assert not out.exists()


def test_wrong_usage_is_told(reid: Run, crops: Path, completion: Path, tmp_path: Path) -> None:
    for command in (
        ("complete", "--data", crops, "--out", tmp_path / "o"),
        ("complete", "--data", crops, "--out", tmp_path / "o", "--train", "--weights", completion),
        ("complete", "--data", crops, "--out", tmp_path / "o", "--train", "--guess"),
        ("complete", "--data", crops, "--out", tmp_path / "o", "--method", "mean", "--guess"),
        ("complete", "--data", crops, "--out", tmp_path / "o", "--train", "--steps", 0),
        ("complete", "--data", crops, "--out", tmp_path / "o", "--train", "--learning-rate", "nan"),
        ("generate", "--out", tmp_path / "o"),
        ("generate", "--out", tmp_path / "o", "--weights", completion, "--count", 0),
    ):
        assert reid(*command)[0] == 2, command
    assert not (tmp_path / "o").exists()
