"""The experiment that is chosen for somebody's own data, and what it says it will need."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reid.config import Experiment, load_config, parse_config, to_toml
from reid.errors import ConfigError, DataError
from reid.records import Sample
from reid.training import forecast as forecasts
from reid.training.forecast import Forecast, Speed, choose_precision, choose_threads, forecast, measure_speed
from reid.training.recipe_choice import (
    DataSummary,
    Start,
    choose_experiment,
    choose_size,
    manifest_files,
    reasons,
    summarize,
)
from reid.training.training_data import make_training_rows

ANIMALS = DataSummary(1213, 179, 179, 5, 300, 400, 1)
IMAGENET = Start("weights/mobilenet_v2_imagenet.pth", "mobilenet_v2", size=(224, 224))
summaries = st.builds(
    lambda identities, mean, height, width: DataSummary(
        identities * mean, identities, identities, mean, height, width, 1
    ),
    st.integers(2, 5000),
    st.integers(2, 60),
    st.integers(8, 3000),
    st.integers(8, 3000),
)


def test_fine_tuning_takes_gem_and_the_contrastive_loss() -> None:
    chosen = choose_experiment(["m.csv"], ANIMALS, IMAGENET)
    recipe = chosen.train
    assert (chosen.network.pooling, recipe.contrast_weight, recipe.triplet_weight) == ("gem", 1.0, 0.0)
    assert (recipe.epochs, recipe.precision) == (30, "float32")
    assert (recipe.keep, recipe.validate_every, chosen.data.held_out) == ("best", 2, 0.1)


def test_from_random_weights_it_trains_longer_and_faster() -> None:
    chosen = choose_experiment(["m.csv"], ANIMALS, Start())
    assert chosen.train.epochs > 30
    assert chosen.train.learning_rate > 3.5e-4
    assert any("random weights" in line for line in reasons(ANIMALS, chosen))


def test_few_identities_are_all_learned_from() -> None:
    few = DataSummary(100, 10, 10, 10, 128, 64, 1)
    chosen = choose_experiment(["m.csv"], few, IMAGENET)
    assert (chosen.data.held_out, chosen.train.keep, chosen.train.identities_per_batch) == (0.0, "last", 10)


def test_two_modalities_are_matched_with_each_other() -> None:
    chosen = choose_experiment(["m.csv"], DataSummary(1000, 100, 100, 10, 128, 64, 2), Start())
    assert (chosen.train.balance, chosen.train.positives) == ("modality", "cross_modality")


@given(summaries, st.sampled_from([Start(), IMAGENET, Start("reid.pth", size=(256, 128))]))
def test_every_choice_is_a_valid_experiment_whose_batches_the_data_can_fill(data: DataSummary, start: Start) -> None:
    chosen = choose_experiment(["m.csv"], data, start)
    recipe = chosen.train
    left = data.identities - max(2, round(chosen.data.held_out * data.identities)) * bool(chosen.data.held_out)
    assert 2 <= recipe.identities_per_batch <= left
    assert recipe.identities_per_batch * recipe.images_per_identity <= 64 or recipe.identities_per_batch == 2
    shown = recipe.visits * recipe.images_per_identity * data.identities
    assert shown <= max(2 * data.images, 4 * data.identities)
    assert len(reasons(data, chosen)) == 4


@given(summaries)
def test_sizes_keep_the_shape_and_invent_few_pixels(data: DataSummary) -> None:
    height, width = choose_size(data, Start())
    assert height % 16 == width % 16 == 0
    assert height * width <= 1.5 * 128 * 96
    assert choose_size(data, Start("w.pth", size=(256, 128))) == (256, 128)


def test_the_chosen_experiment_is_read_back_as_it_is(tmp_path: Path) -> None:
    chosen = choose_experiment(["m.csv"], ANIMALS, IMAGENET)
    (tmp_path / "e.toml").write_text(to_toml(chosen), encoding="utf-8")
    assert load_config(tmp_path / "e.toml") == chosen


def write_images(folder: Path, count: int = 12) -> tuple[Sample, ...]:
    for number in range(count):
        Image.fromarray(np.zeros((40, 20, 3), np.uint8)).save(folder / f"{number}.png")
    return tuple(Sample(folder / f"{n}.png", str(n // 2), "ab"[n % 2], category="animal") for n in range(count))


def test_data_are_counted_without_identities_of_one_image(tmp_path: Path) -> None:
    samples = write_images(tmp_path)
    assert summarize(samples[:-1]) == DataSummary(10, 5, 5, 2, 40, 20, 1)
    with pytest.raises(DataError, match="1 identities"):
        summarize(samples[:3])
    samples[0].path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png"):
        summarize(samples)


def test_manifests_are_files_or_folders(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path\n", encoding="utf-8")
    assert manifest_files([str(tmp_path), str(manifest)]) == (str(manifest), str(manifest))
    with pytest.raises(ConfigError, match="reid init"):
        manifest_files([str(tmp_path / "none")])


def test_a_forecast_counts_images_memory_and_time(tmp_path: Path) -> None:
    samples = write_images(tmp_path)
    table = {
        "data": {"manifests": ["m.csv"], "size": [32, 16]},
        "norm": {"axis": "camera", "domain_fields": ["camera"]},
        "train": {"identities_per_batch": 3, "images_per_identity": 2, "visits": 2, "epochs": 7, "threads": 1},
    }
    experiment = parse_config(table, "test")
    rows = make_training_rows(experiment, samples, ())
    found = forecast(experiment, rows, None, 0.0)
    assert (found.images, found.epochs, found.crops) == (2 * 2 * 6, 7, 12 * 3 * 32 * 16)
    assert found.seconds_per_epoch > 0
    speed = measure_speed(experiment, rows, None, 0.0)
    assert speed.bytes_per_image > 32 * 16 * 3 * 4  # the input at least
    wider = parse_config({**table, "data": {**table["data"], "size": [64, 32]}}, "test")
    ratio = measure_speed(wider, rows, None, 0.0).bytes_per_image / speed.bytes_per_image
    assert 3 < ratio < 5
    chosen, speeds = choose_precision(experiment, rows, None, 0.0)
    assert chosen.train.precision == max(speeds, key=lambda name: speeds[name])
    assert chosen.model_copy(update={"train": experiment.train}) == experiment


@pytest.mark.parametrize(("busy", "expected"), [(True, 1), (False, 4)])
def test_threads_are_used_where_they_are_faster(busy: bool, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine several threads wait for each other."""

    def speed(experiment: Experiment, *_: object) -> Speed:
        threads = experiment.train.threads
        return Speed(100 / threads if busy else 100.0 * threads, 0.0, 0)

    monkeypatch.setattr(forecasts, "measure_speed", speed)
    experiment = parse_config({"data": {"manifests": ["m.csv"]}, "train": {"threads": 4}}, "example")
    chosen, speeds = choose_threads(experiment, None, None, 1.0)  # type: ignore[arg-type]
    assert chosen.train.threads == expected
    assert speeds == ({1: 100.0, 4: 25.0} if busy else {1: 100.0, 4: 400.0})


def test_durations_are_said_in_fitting_units() -> None:
    lines = Forecast(100, 60, 90.0, 0, 0).lines()
    assert re.search(r"about 90 s on this machine, all 60 about 90 min", lines[0])
