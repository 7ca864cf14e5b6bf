"""Training of completion on a few crops: it learns, continues to the same numbers, and fills what is hidden."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.clothed_crops import draw_clothed, samples_in
from reid.errors import ConfigError, DataError, WeightsError
from reid.generation.completed_folder import write_completed
from reid.generation.completion import Completion
from reid.generation.completion_training import CompletionTrainer, train_completion
from reid.generation.mask_files import MaskFiles
from reid.generation.step_training import StepPlan, StepRun, trained_samples
from reid.records import Sample
from reid.training.run_folder import RunFolder
from tests.unit.generation.conftest import CHANNELS, PEOPLE, PLAN


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_time(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_the_network_learns(completion_run: Path) -> None:
    lines = history(completion_run)
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["hidden_loss"] < 0.15  # a fill of one colour has about 0.35
    assert lines[-1]["guess_loss"] < 0.98 * lines[0]["guess_loss"]
    assert "discriminator_loss" not in lines[0]
    assert "discriminator_loss" in lines[-1]


def test_it_fills_better_than_one_colour(completion_run: Path) -> None:
    completion = Completion.load(completion_run / "weights.safetensors")
    hidden = np.zeros((64, 32), np.bool_)
    hidden[16:56, 8:20] = True
    filled, plain = [], []
    for pixels in draw_clothed(12, seed=99):
        occluded = pixels.copy()
        occluded[hidden] = (255, 0, 255)
        found = np.asarray(completion.fill(Image.fromarray(occluded), hidden))
        assert np.array_equal(found[~hidden], pixels[~hidden])
        filled.append(np.abs(found[hidden].astype(float) - pixels[hidden]).mean())
        plain.append(np.abs(pixels[~hidden].mean(0) - pixels[hidden]).mean())
    assert np.mean(filled) < 0.6 * np.mean(plain)


def test_an_interrupted_training_continues_to_the_same_numbers(
    completion_run: Path, clothed: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 40:
            raise StoppedError

    samples = samples_in(clothed, PEOPLE)
    with pytest.raises(StoppedError):
        train_completion(samples, tmp_path / "run", PLAN, channels=CHANNELS, blocks=1, on_round=stop)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    weights = train_completion(samples, tmp_path / "run", PLAN, channels=CHANNELS, blocks=1)
    assert without_time(history(tmp_path / "run")) == without_time(history(completion_run))
    first, second = load_file(weights), load_file(completion_run / "weights.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_stays_and_other_settings_are_refused(completion_run: Path, clothed: Path) -> None:
    samples, before = samples_in(clothed, PEOPLE), (completion_run / "weights.safetensors").stat().st_mtime_ns
    train_completion(samples, completion_run, PLAN, channels=CHANNELS, blocks=1)
    assert (completion_run / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="seed"):
        train_completion(samples, completion_run, StepPlan(60, 6, 4e-3, 1, 20), channels=CHANNELS, blocks=1)
    with pytest.raises(ConfigError, match="data"):
        train_completion(samples[1:], completion_run, PLAN, channels=CHANNELS, blocks=1)


def test_a_folder_of_another_training_is_refused(clothed: Path, tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").path.mkdir()
    (tmp_path / "run" / "experiment.toml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError):
        train_completion(samples_in(clothed, PEOPLE), tmp_path / "run", PLAN)


@pytest.mark.parametrize("text", ["[1]", "{", '"text"'])
def test_damaged_settings_are_told_and_kept(completion_run: Path, clothed: Path, tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(completion_run, run)
    (run / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="settings"):
        train_completion(samples_in(clothed, PEOPLE), run, PLAN, channels=CHANNELS, blocks=1)
    assert (run / "settings.json").read_text(encoding="utf-8") == text


def test_too_few_crops_and_wrong_plans_are_refused(clothed: Path, tmp_path: Path) -> None:
    rows = [Sample(sample.path, split="gallery") for sample in samples_in(clothed, 4)]
    with pytest.raises(DataError, match="1 recorded crops to learn from"):
        train_completion([replace(rows[0], split="train"), *rows[1:]], tmp_path / "run", PLAN)
    written = [Sample(sample.path, split="train", generated=True) for sample in samples_in(clothed, 4)]
    with pytest.raises(DataError, match="generated crop"):
        train_completion(written, tmp_path / "run", PLAN)
    assert trained_samples(rows) == rows
    for wrong in ({"steps": 0}, {"batch": 0}, {"learning_rate": float("nan")}, {"seed": -1}, {"learning_rate": 2.0}):
        with pytest.raises(ConfigError):
            StepPlan(**wrong)  # type: ignore[arg-type]


def test_a_training_that_diverges_says_so(clothed: Path, tmp_path: Path) -> None:
    class Diverging(CompletionTrainer):
        def step(self, number: int, crops: Tensor, generator: torch.Generator) -> dict[str, float]:
            return {"hidden": float("nan") if number == 3 else 0.5}

    run = StepRun(tmp_path / "run", PLAN, "completion", {})
    with pytest.raises(ConfigError, match="step 4"):
        run.run(samples_in(clothed, 4), lambda: Diverging(PLAN, (4, 4, 4), 1), lambda trainer: {})
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_grey_crops_of_any_size_stay_grey(completion_run: Path) -> None:
    completion = Completion.load(completion_run / "weights.safetensors")
    grey = Image.fromarray(draw_clothed(1, size=(97, 41))[0]).convert("L").convert("RGB")
    hidden = np.zeros((97, 41), np.bool_)
    hidden[40:90, 5:30] = True
    found = np.asarray(completion.fill(grey, hidden))
    assert found.shape == (97, 41, 3)
    assert (found[..., 0] == found[..., 2]).all()
    assert completion.fill(grey, np.zeros_like(hidden)) is grey
    assert completion.guess(grey).shape == (97, 41)
    for wrong in (np.ones((97, 41), np.bool_), np.zeros((64, 32), np.bool_)):
        with pytest.raises(DataError):
            completion.fill(grey, wrong)


def test_crops_are_filled_without_a_network(completion_run: Path) -> None:
    hidden = np.zeros((64, 32), np.bool_)
    hidden[16:56, 8:20] = True
    pixels = draw_clothed(1, seed=5)[0]
    occluded = Image.fromarray(np.where(hidden[..., None], 255, pixels).astype(np.uint8))
    mean = np.asarray(Completion("mean").fill(occluded, hidden))
    assert np.array_equal(mean[~hidden], pixels[~hidden])
    assert np.abs(mean[hidden] - pixels[~hidden].mean(0)).max() <= 0.5
    smooth = np.asarray(Completion("smooth").fill(occluded, hidden))
    assert np.array_equal(smooth[~hidden], pixels[~hidden])
    errors = [np.abs(found[hidden].astype(float) - pixels[hidden]).mean() for found in (smooth, mean)]
    assert errors[0] < 0.5 * errors[1]
    for method in ("network", "none"):
        with pytest.raises(ConfigError):
            Completion(method)
    with pytest.raises(ConfigError, match="weights"):
        Completion("mean").guess(occluded)
    assert Completion.load(completion_run / "weights.safetensors", "mean").guess(occluded).shape == (64, 32)


def test_wrong_weights_are_told(completion_run: Path, plain_weights: Path, tmp_path: Path) -> None:
    good = completion_run / "weights.safetensors"
    tensors = load_file(good)
    with safe_open(good, framework="pt") as file:
        metadata = file.metadata()
    card = json.loads(metadata["card"])
    (tmp_path / "text").write_text("no weights", encoding="utf-8")
    (tmp_path / "cut").write_bytes(good.read_bytes()[:5000])
    save_file({name: tensor + float("nan") for name, tensor in tensors.items()}, tmp_path / "nan", metadata)
    for name, changed in (
        ("other", {**card, "method": "generator"}),
        ("wide", {**card, "settings": {**card["settings"], "full": 10**9}}),
        ("narrow", {**card, "settings": {**card["settings"], "full": 7}}),
        ("text-card", "card"),
        ("list-card", {**card, "settings": [1]}),
        ("more", {**card, "more": 1}),
    ):
        save_file(tensors, tmp_path / name, {**metadata, "card": json.dumps(changed)})
    save_file(tensors, tmp_path / "none", {"format": "pt"})
    for path in (*tmp_path.iterdir(), plain_weights, tmp_path / "missing", tmp_path):
        with pytest.raises(WeightsError):
            Completion.load(path)


def test_written_rows_are_marked_and_lose_labels_of_tests(completion_run: Path, clothed: Path, tmp_path: Path) -> None:
    weights, mask = completion_run / "weights.safetensors", tmp_path / "mask.png"
    pixels = np.zeros((64, 32), np.uint8)
    pixels[20:50, 4:16] = 255
    Image.fromarray(pixels).save(mask)
    paths = [clothed / f"train-p{number:02}.png" for number in range(4)]
    samples = [
        Sample(paths[0], "anna", "c0", split="train"),
        Sample(paths[1], "ben", "c1", split="query"),
        Sample(paths[1], "ben", "c1", split="gallery"),
        Sample(paths[2], "carl", "c1", split="gallery"),
    ]
    masks = MaskFiles({paths[0]: mask, paths[1]: mask})
    found = write_completed(samples, weights, tmp_path / "out", masks)
    assert (found.completed, found.kept) == (2, 1)
    from reid.data.manifest import read_manifest

    rows = {sample.path.name: sample for sample in read_manifest(found.manifest)}
    assert len(rows) == 3
    assert rows["train-p02.png"].split == "gallery"
    assert not rows["train-p02.png"].generated
    first, second = rows["train-p00.png.png"], rows["train-p01.png.png"]
    assert (first.identity, first.split, first.generated) == ("anna", "train", True)
    assert (second.identity, second.split, second.generated) == ("", "train", True)
    before, after = np.asarray(Image.open(paths[0])), np.asarray(Image.open(first.path))
    assert np.array_equal(before[pixels == 0], after[pixels == 0])
    assert not np.array_equal(before, after)
    with pytest.raises(DataError, match="generated"):
        write_completed(read_manifest(found.manifest), weights, tmp_path / "again", masks)
    with pytest.raises(ConfigError):
        write_completed(samples[:1], weights, tmp_path / "out", masks)
    with pytest.raises(DataError, match="mask"):
        write_completed(samples, weights, tmp_path / "third", MaskFiles())
