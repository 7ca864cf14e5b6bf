"""The recipes in scripts/experiments/published: the text of their headers, and that the commands in them run.

The commands run on a small tree in the published layout, with smaller sizes and fewer epochs. Reaching the target of a
recipe needs the data set and a large machine.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from helpers import published_layouts
from reid.cli import main
from reid.config import load_config

ROOT = Path(__file__).parents[2]

FOLDER = ROOT / "scripts/experiments/published"
RECIPES = sorted(FOLDER.glob("*.toml"))
FIGURE = re.compile(r"rank-1 \d\d\.\d+, mAP \d\d\.\d+")
TINY = (
    "data.size=[32, 16]",
    "train.epochs=1",
    "train.identities_per_batch=2",
    "train.images_per_identity=4",
    "train.visits=1",
    "train.warmup_epochs=0",
    "train.learning_rate=1e-5",
    "train.threads=1",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights in the format in which torchvision publishes ResNet-50."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(models.resnet50(weights=None).state_dict(), path)
    return path


def header(recipe: Path) -> str:
    """Return the comment at the top, without its # signs."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("#") for line in lines[: lines.index("")])


def commands(recipe: Path) -> list[list[str]]:
    """Return the words of every command in the header."""
    return [shlex.split(line) for line in header(recipe).splitlines() if line.startswith("   reid ")]


def reid(*words: str) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return int(caught.value.code or 0)


def lay_out(name: str, root: Path) -> None:
    """Write the data set with images of noise; every camera gets at least two images to train on."""
    getattr(published_layouts, name)(root)
    if name == "market1501":
        for identity, camera in product(("0002", "0007"), (2, 4, 5)):
            published_layouts.write_image(root / f"bounding_box_train/{identity}_c{camera}s1_000451_03.jpg")
    if name == "msmt17":
        lines = []
        for camera in ("01", "02", "03", "04", "05", "07", "14", "15") * 2:
            path = f"0001/0001_001_{camera}_0303morning_{len(lines):04d}_0_ex.jpg"
            published_layouts.write_image(root / "train" / path)
            lines.append(f"{path} 1\n")
        with (root / "list_train.txt").open("a") as file:
            file.writelines(lines)
    random = np.random.default_rng(0)
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".bmp")):
        Image.fromarray(random.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(path)


def faults_of(recipe: Path) -> list[str]:
    """Name what the header or the settings of a recipe lack."""
    text, experiment = " ".join(header(recipe).split()), load_config(recipe)
    faults = []
    if "Target: " not in text or not FIGURE.search(text):
        faults.append("states no target")
    if "was not run here" not in text:
        faults.append("does not state that it was not run")
    if not re.search(r"\(.+ et al\., \".+\", .*20\d\d", text):
        faults.append("names no paper")
    if experiment.data.size != (256, 128) or not 60 <= experiment.train.epochs <= 120:
        faults.append("is not of the published size")
    if not experiment.network.backbone.startswith("resnet50") or not experiment.network.weights:
        faults.append("is not a ResNet-50 that begins with ImageNet")
    if [words[1] for words in commands(recipe)[:4]] != ["init", "weights", "train", "evaluate"]:
        faults.append("lacks a command")
    return faults


def test_there_is_a_recipe_for_each_published_setting() -> None:
    found = {(recipe.stem.split("-", 1)[0], load_config(recipe).norm.axis) for recipe in RECIPES}
    assert found == {
        *((name, axis) for name in ("market1501", "msmt17") for axis in ("batch", "camera")),
        *((name, axis) for name in ("sysu_mm01", "regdb") for axis in ("batch", "modality")),
    }
    assert "market1501-cbn-bot" in {recipe.stem for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_states_its_target_paper_and_commands(recipe: Path, tmp_path: Path) -> None:
    assert faults_of(recipe) == []
    text = recipe.read_text(encoding="utf-8")
    spoilt = tmp_path / recipe.name  # wrong variants
    for old, new in (("not run here", "run here"), ("Target: ", ""), ("[256, 128]", "[128, 64]"), ("reid init", "#")):
        spoilt.write_text(text.replace(old, new), encoding="utf-8")
        assert len(faults_of(spoilt)) == 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_commands_of_a_recipe_run(
    recipe: Path, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = recipe.stem.split("-", 1)[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "weights/resnet50_imagenet.pth").symlink_to(imagenet)
    lay_out(name, tmp_path / "data" / name)

    init, get, train, evaluate = commands(recipe)[:4]
    assert get == ["reid", "weights", "get", "resnet50_imagenet"]  # its file exists already
    assert reid(*init[1:]) == 0
    sets = [word for item in TINY for word in ("--set", item)]
    assert reid(*train[1:], *sets) == 0
    run = tmp_path / train[train.index("--out") + 1]
    (epoch,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epoch["loss"] > 0
    resolved = load_config(run / "experiment.toml")
    assert re.fullmatch(r"weights/resnet50_imagenet\.pth#[0-9a-f]{16}", resolved.network.weights)
    assert (
        resolved.norm.domain_fields
        == {"batch": (), "camera": ("camera",), "modality": ("modality",)}[resolved.norm.axis]
    )
    capsys.readouterr()
    assert reid(*evaluate[1:]) == 0
    assert f"protocol {name}" in capsys.readouterr().out


def test_a_manifest_for_each_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = published_layouts.regdb(tmp_path / "regdb")
    for trial in (1, 2):
        assert reid("init", str(root), "--protocol", f"regdb:trial={trial}") == 0
    first, second = ((root / f"manifest-trial-{trial}.csv").read_text() for trial in (1, 2))
    assert first.count("train_") == second.count("train_") > 0
    assert first != second
    capsys.readouterr()
    assert reid("init", str(root), "--protocol", "regdb:trial=2") == 1
    assert "manifest-trial-2.csv" in capsys.readouterr().err
    assert reid("init", str(root), "--protocol", "regdb:trial=2", "--force") == 0
    assert reid("init", str(root), "--protocol", "regdb", "--pattern", "*") == 2
