"""``reid train --data`` and ``reid recipe`` as a user meets them, on tiny data."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from helpers import published_layouts, small_checkpoints
from reid.cli import main, own_data, recipe
from reid.config import load_config
from reid.models.checkpoint import load_checkpoint

SMALL = ("train.epochs=2", "train.threads=1", "data.size=[32, 16]", "train.precision=float32")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and measurements of one batch."""
    monkeypatch.setattr(own_data, "SECONDS", 0.0)
    monkeypatch.setattr(recipe, "SECONDS", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of 42 animals with two images, and two with one."""
    folder, random = tmp_path_factory.mktemp("animals"), np.random.default_rng(0)
    rows = ["path,identity,category,split"]
    for animal in range(44):
        for shot in range(2 if animal < 42 else 1):
            name = f"{animal}-{shot}.png"
            colour = random.integers(0, 255, 3)
            Image.fromarray(np.full((40, 20, 3), colour, np.uint8)).save(folder / name)
            rows.append(f"{name},{animal},animal,train")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def reid(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return int(caught.value.code or 0)


def sets(*items: str) -> list[str]:
    return [word for item in items for word in ("--set", item)]


def test_own_data_are_trained_on_without_an_experiment_file(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = small_checkpoints.save_network(tmp_path, small_checkpoints.plain_network())
    command = ["train", "--data", animals, "--from", weights, *sets(*SMALL)]
    assert reid(*command) == 0
    out, err = capsys.readouterr()
    run = Path("runs") / animals.name
    assert out.splitlines() == [str(run / "weights.safetensors")]
    assert "2 of 44 identities" in err
    shown = tomllib.loads(err.partition("2 of 44")[0])  # the experiment file, with the reasons as comments
    saved = load_config(run / "experiment.toml")
    assert shown["train"]["contrast_weight"] == saved.train.contrast_weight == 1.0
    assert shown["network"]["pooling"] == "gem"
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "held_out_mAP" in history[-1]
    assert (run / "curves.svg").is_file()
    assert load_checkpoint(run / "weights.safetensors").transform.height == 32
    written = (run / "weights.safetensors").stat().st_mtime_ns
    assert reid(*command) == 0  # the same command again finds the finished run
    assert (run / "weights.safetensors").stat().st_mtime_ns == written


def test_the_chosen_experiment_can_be_printed_only(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", animals / "manifest.csv", "--from", "scratch", "--dry-run", *sets(*SMALL[1:])]
    assert reid(*words, "--backbone", "resnet18_x0_375") == 0
    table = tomllib.loads(capsys.readouterr().out)
    assert table["network"]["backbone"] == "resnet18_x0_375"
    assert table["network"]["weights"] == ""
    assert table["train"]["epochs"] == 60
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 2, "'experiment'"),
        (("a.toml", "--data", "x"), 2, "--data"),
        (("--data", "none.csv"), 1, "none.csv"),
        (("--data", "{animals}", "--from", "none.pth"), 1, "none.pth"),
        (("--data", "{animals}", "--from", "resnet50_imagnet"), 1, "resnet50_imagenet"),
        (("--data", "{animals}", "--from", "scratch", "--set", "train.epoch=3"), 1, "train.epochs"),
        (("--data", "{animals}", "--from", "scratch", "--set", "data.singletons=error"), 1, "42 (animal), 43 (animal)"),
    ],
)
def test_mistakes_are_one_line(
    animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reid("train", *(word.replace("{animals}", str(animals)) for word in words), "--out", "run") == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert expected in last


def test_a_recipe_states_what_to_expect_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = published_layouts.market1501(tmp_path / "market")
    for name in ("0002_c2s1_000451_03.jpg", "0007_c2s1_000451_03.jpg"):
        published_layouts.write_image(root / "bounding_box_train" / name)
    torch.manual_seed(0)
    weights = tmp_path / "resnet50.pth"
    torch.save(models.resnet50(weights=None).state_dict(), weights)
    small = sets("data.size=[32, 16]", "train.threads=1", "train.identities_per_batch=2", "train.images_per_identity=2")
    command = ["recipe", "market1501-cbn", "--root", root, "--from", weights, "--dry-run", *small]
    assert reid(*command, "--set", "norm.axis=batch") == 0
    out = capsys.readouterr().out
    for stated in ("rank-1 91.3, mAP 77.3", "not run here", "an epoch of", "memory about"):
        assert stated in out
    assert not (tmp_path / "runs").exists()
    assert reid("recipe", "list") == 0
    assert "msmt17-agw" in capsys.readouterr().out
    assert reid("recipe", "market1501-cbn") == 2
    assert reid("recipe", "market1501-cbn", "--root", tmp_path / "none") == 1
