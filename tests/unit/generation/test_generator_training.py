"""Training of a generator on a few crops: it learns colours, continues to the same numbers, and draws crops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.clothed_crops import draw_clothed, samples_in
from reid.data.manifest import read_manifest
from reid.errors import ConfigError, WeightsError
from reid.generation.drawn_crops import TrainedGenerator, write_drawn
from reid.generation.generator_training import GeneratorTrainer, Stage, is_collapsed, mean_distance, train_generator
from reid.generation.step_training import StepPlan, to_unit
from tests.unit.generation.conftest import PEOPLE

PLAN = StepPlan(steps=40, batch=8, learning_rate=2e-3, save_every=20)
STAGE = Stage("style", "spectral", (8, 8, 6, 4), (4, 8, 8, 16))


@pytest.fixture(scope="module")
def generator_run(tmp_path_factory: pytest.TempPathFactory, clothed: Path) -> Path:
    out = tmp_path_factory.mktemp("generator") / "run"
    train_generator(samples_in(clothed, PEOPLE), out, PLAN, STAGE)
    return out


def history(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_discriminator_learns_to_tell_a_frozen_generator() -> None:
    torch.manual_seed(0)
    trainer = GeneratorTrainer(StepPlan(learning_rate=2e-3), STAGE)
    trainer._generator_optimizer.param_groups[0]["lr"] = 0.0
    crops = to_unit(torch.from_numpy(draw_clothed(24)).permute(0, 3, 1, 2).contiguous())
    random = torch.Generator().manual_seed(0)
    losses = [trainer.step(number, crops[:8], random)["discriminator"] for number in range(24)]
    assert np.mean(losses[-5:]) < 1.0  # 2 log 2 = 1.39 where it cannot tell


def test_a_generator_moves_toward_the_colours_of_its_crops() -> None:
    torch.manual_seed(0)
    trainer = GeneratorTrainer(StepPlan(learning_rate=3e-3), Stage("batch", "spectral", (8, 8, 6, 4), (4, 8, 8, 16)))
    random = torch.Generator().manual_seed(0)
    crops = torch.tensor([0.8, -0.8, 0.0]).view(1, 3, 1, 1) + 0.05 * torch.randn((8, 3, 64, 32), generator=random)

    def gap() -> float:
        images = trainer._draw(16, torch.Generator().manual_seed(1)).detach()
        return (images.mean((0, 2, 3)) - torch.tensor([0.8, -0.8, 0.0])).abs().mean().item()

    before = gap()
    for number in range(60):
        trainer.step(number, crops, random)
    assert gap() < 0.6 * before


def test_metrics_watch_diversity_and_singular_values(generator_run: Path) -> None:
    lines = history(generator_run)
    assert [line["step"] for line in lines] == [20, 40]
    assert {"discriminator_loss", "generator_loss", "diversity", "layer_0_largest", "layer_4_smallest"} <= set(lines[0])
    assert all(line[f"layer_{number}_largest"] < 1.25 for line in lines for number in range(5))
    assert lines[0]["diversity"] >= 0


def test_an_interrupted_training_continues_to_the_same_numbers(
    generator_run: Path, clothed: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(_line: dict[str, float]) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        train_generator(samples_in(clothed, PEOPLE), tmp_path / "run", PLAN, STAGE, on_round=stop)
    weights = train_generator(samples_in(clothed, PEOPLE), tmp_path / "run", PLAN, STAGE)
    assert history(tmp_path / "run") == history(generator_run)
    first, second = load_file(weights), load_file(generator_run / "weights.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in second)
    with pytest.raises(ConfigError, match="discriminator"):
        train_generator(samples_in(clothed, PEOPLE), tmp_path / "run", PLAN, Stage("style", "oni"))


def test_distances_and_collapse() -> None:
    images = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert mean_distance(images) == pytest.approx((3 + 1 + 2) / 3)
    assert mean_distance(images[[1, 1, 1]]) == 0
    assert is_collapsed([{"diversity": 0.1}])
    assert not is_collapsed([{"diversity": 0.1}, {"diversity": 0.5}])


def test_wrong_stages_are_refused_before_anything_is_written(clothed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        train_generator(samples_in(clothed, 4), tmp_path / "run", PLAN, Stage("none"))
    with pytest.raises(ConfigError):
        Stage(channels=(0, 1, 1, 1))
    assert not (tmp_path / "run").exists()


def test_drawn_crops_are_marked_and_continue(generator_run: Path, tmp_path: Path) -> None:
    weights, out = generator_run / "weights.safetensors", tmp_path / "drawn"
    manifest = write_drawn(weights, out, 5, seed=3)
    rows = read_manifest(manifest)
    assert [(row.identity, row.camera, row.split, row.generated) for row in rows] == [("", "", "train", True)] * 5
    before = [row.path.read_bytes() for row in rows]
    assert len(set(before)) == 5
    rows[2].path.unlink()
    manifest.unlink()
    write_drawn(weights, out, 5, seed=3)
    assert [row.path.read_bytes() for row in rows] == before
    more = read_manifest(write_drawn(weights, tmp_path / "more", 6, seed=3))
    assert [row.path.read_bytes() for row in more[:5]] == before
    with pytest.raises(ConfigError):
        write_drawn(weights, out, 6, seed=3)
    for count in (0, 10**7):
        with pytest.raises(ConfigError):
            write_drawn(weights, tmp_path / "none", count)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (7 * 68 + 4, 7 * 132 + 4)
        assert np.asarray(sheet)[4:132, 4:68].min() == 255  # the corner between the two persons is empty


def test_a_sheet_of_another_generator_is_a_table(clothed: Path, tmp_path: Path) -> None:
    stage, plan = Stage("batch", "plain", (4, 4, 4, 4), (4, 4, 4, 4)), StepPlan(2, 4, save_every=1)
    weights = train_generator(samples_in(clothed, PEOPLE), tmp_path / "run", plan, stage)
    generator = TrainedGenerator.load(weights)
    assert generator.sheet(0).size == (6 * 68 + 4, 6 * 132 + 4)
    assert generator.crop(0, 1).tobytes() == generator.crop(0, 1).tobytes()
    assert generator.crop(0, 1).tobytes() != generator.crop(0, 2).tobytes()


def test_wrong_weights_are_told(generator_run: Path, completion_run: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="reid complete"):
        TrainedGenerator.load(completion_run / "weights.safetensors")
    (tmp_path / "cut").write_bytes((generator_run / "weights.safetensors").read_bytes()[:3000])
    for path in (tmp_path / "cut", tmp_path / "missing"):
        with pytest.raises(WeightsError):
            TrainedGenerator.load(path)
