"""Drift equals plain statistics of resampled crops, and changed crops raise an alarm.

The tests refuse these wrong variants: distances other than those of ``Profiles.drift``; statistics of a subset without
the variance between images; an effective size that ignores near-duplicates; an error of halves that is not halved;
thresholds drawn crop by crop where crops come in groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from reid.data.manifest import read_manifest
from reid.errors import ConfigError, DataError
from reid.evaluation.analysis.camera_watch import cameras_to_watch, watch
from reid.evaluation.analysis.drift import (
    effective_size,
    group_lookalikes,
    judge_drift,
    mean_distance,
    pool_statistics,
    resample_drift,
    split_half_error,
)
from reid.models.calibration import calibrate_checkpoint
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.image_statistics import ImageStatistics
from reid.norm import Profiles
from reid.records import Sample

WIDTHS = (3, 2)


def images_of(mean: Tensor, var: Tensor | None = None, thumbnails: Tensor | None = None) -> ImageStatistics:
    n = len(mean)
    tiny = torch.eye(n) if thumbnails is None else thumbnails
    return ImageStatistics(
        ("a", "b"), WIDTHS, mean, torch.ones_like(mean) if var is None else var, torch.eye(n, 4), tiny
    )


def drawn(n: int, seed: int = 0, copies: int = 1) -> ImageStatistics:
    mean = torch.randn(n, sum(WIDTHS), generator=torch.Generator().manual_seed(seed))
    return images_of(mean.repeat_interleave(copies, 0))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(0, 99))
def test_pooling_is_that_of_all_positions(n: int, seed: int) -> None:
    """Oracle: the positions themselves, written out, images with weight 2 twice."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randn(n, 7, sum(WIDTHS), generator=generator) + 5
    weights = torch.randint(1, 3, (n,), generator=generator)
    images = images_of(positions.mean(1), positions.var(1, correction=0))
    found = pool_statistics(images, weights[None].float())
    every = positions.repeat_interleave(weights, 0).flatten(0, 1)
    torch.testing.assert_close(found.mean[0], every.mean(0))
    torch.testing.assert_close(found.var[0], every.var(0, correction=0), rtol=1e-4, atol=1e-5)
    assert (found.var[0] > images.var.mean(0) * 0.1).all()
    forgetful = (weights[:, None] * images.var).sum(0) / weights.sum()
    assert not torch.allclose(forgetful, every.var(0, correction=0), rtol=1e-4, atol=1e-5)


def test_distance_is_profiles_drift() -> None:
    def profiles(images: ImageStatistics) -> Profiles:
        stats = pool_statistics(images)
        mean, var = (
            dict(zip(images.layers, torch.split(table, WIDTHS, 1), strict=True)) for table in (stats.mean, stats.var)
        )
        return Profiles(("c",), (len(images),), mean, var)

    new, old = drawn(20, 1), drawn(30, 2)
    found = float(mean_distance(pool_statistics(new), pool_statistics(old), WIDTHS)[0])
    assert found == pytest.approx(profiles(new).drift(profiles(old))["c"], rel=1e-5)
    assert found != pytest.approx(float(mean_distance(pool_statistics(old), pool_statistics(new), WIDTHS)[0]), rel=1e-3)


def test_lookalikes_chain_and_identities() -> None:
    angles = torch.tensor([0.0, 0.4, 0.8, 3.0, 1.6])  # cos 0.4 = 0.92, cos 0.8 = 0.70
    tiny = torch.stack([angles.cos(), angles.sin()], 1)
    images = images_of(torch.zeros(5, 5), thumbnails=tiny)
    groups = group_lookalikes(images)
    assert groups[0] == groups[1] == groups[2]
    assert len({groups[0], groups[3], groups[4]}) == 3
    named = group_lookalikes(images, ["", "", "", "x", "x"])
    assert named[3] == named[4] != named[0]


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_effective_size_counts_copies_once(copies: int) -> None:
    images = drawn(200, copies=copies)
    groups = np.repeat(np.arange(200), copies)
    found = effective_size(images, groups)
    assert found == pytest.approx(200, rel=0.1)
    if copies > 1:
        assert effective_size(images, np.arange(len(images))) == len(images)  # where the copies are unknown


def test_split_half_is_the_error_of_the_whole() -> None:
    """Oracle: how far the statistics of fresh samples of this size lie from the truth (mean 0, variance 2)."""
    halves = np.mean([split_half_error(drawn(200, seed), np.arange(200)) for seed in range(8)])
    truth = replace(pool_statistics(drawn(2)), mean=torch.zeros(1, 5), var=torch.full((1, 5), 2.0))
    errors = np.mean([float(mean_distance(pool_statistics(drawn(200, seed)), truth, WIDTHS)[0]) for seed in range(40)])
    assert halves == pytest.approx(errors, rel=0.2)
    assert 2 * halves != pytest.approx(errors, rel=0.4)
    copied = drawn(50, copies=4)
    groups = np.repeat(np.arange(50), 4)
    assert split_half_error(copied, groups) > 1.5 * split_half_error(copied, np.arange(200))
    assert np.isnan(split_half_error(copied, np.zeros(200, np.int64)))


def alarms(whole: bool, shift: float, copies: int = 4, rate: float = 0.1) -> float:
    """Share of alarms for fresh crops that come in groups of ``copies``."""
    found = []
    for seed in range(60):
        stored, new = drawn(60, seed, copies), drawn(8, 1000 + seed, copies)
        new = replace(new, mean=new.mean + shift)
        groups = np.repeat(np.arange(60), copies) if whole else np.arange(60 * copies)
        found.append(judge_drift("c", new, stored, groups, false_alarms=rate, draws=99, seed=seed).alarm)
    return float(np.mean(found))


def test_false_alarms_are_as_stated_and_real_ones_are_raised() -> None:
    assert alarms(whole=True, shift=0.0) <= 0.2  # 10 %, of 60
    assert alarms(whole=True, shift=1.5) >= 0.95
    assert alarms(whole=False, shift=0.0) > 0.4  # drawn crop by crop, it raises false alarms


def test_threshold_and_p_value_agree() -> None:
    stored = drawn(60)
    chance = resample_drift(stored, np.arange(60), 20, draws=99, seed=3).sort(descending=True).values
    for new in (drawn(20, 5), drawn(20, 6), replace(drawn(20, 7), mean=drawn(20, 7).mean + 0.4)):
        found = judge_drift("c", new, stored, np.arange(60), false_alarms=0.05, draws=99, seed=3)
        assert found.threshold == pytest.approx(float(chance[4]))
        assert found.alarm == (found.drift > found.threshold)


def test_what_cannot_be_judged() -> None:
    with pytest.raises(DataError, match="8 new crops, got 5"):
        judge_drift("c", drawn(5), drawn(60), np.arange(60))
    with pytest.raises(DataError, match="16 reference crops"):
        judge_drift("c", drawn(20), drawn(10), np.arange(10))
    with pytest.raises(DataError, match="in 1 groups"):
        judge_drift("c", drawn(20), drawn(40), np.zeros(40, np.int64))
    with pytest.raises(ConfigError, match="false alarms"):
        judge_drift("c", drawn(20), drawn(60), np.arange(60), false_alarms=1e-5)


def test_at_most_half_is_drawn() -> None:
    images = drawn(20)
    same = [resample_drift(images, np.arange(20), size, draws=9) for size in (10, 11, 500)]
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])


def of(samples: Sequence[Sample], camera: str) -> list[Sample]:
    return [sample for sample in samples if sample.camera == camera]


# Real drift: the street's hours, and changed images.


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Thirty-two people in two cameras of the street in daylight, at all their hours."""
    from reid.data.street.generation import StreetPlan, generate

    plan = StreetPlan(identities=32, train_identities=0, vehicles=0, train_vehicles=0, crops=4, sites=("street-b",))
    (manifest,) = generate(tmp_path_factory.mktemp("hours") / "street", plan, workers=1)
    return [sample for sample in read_manifest(manifest) if sample.camera in ("b1", "b2")]


@pytest.fixture(scope="module")
def stored_and_new(hours: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    who = sorted({sample.identity for sample in hours})[:22]
    return [s for s in hours if s.identity in who], [s for s in hours if s.identity not in who and s.camera == "b1"]


@pytest.fixture(scope="module")
def small(hours: list[Sample], stored_and_new: tuple[list[Sample], list[Sample]]) -> Checkpoint:
    weights = Path(__file__).parents[4] / "demo" / "weights" / "small-plain.safetensors"
    checkpoint = load_checkpoint(weights)
    return checkpoint.with_profiles(calibrate_checkpoint(checkpoint, stored_and_new[0]))


def changed(samples: Sequence[Sample], folder: Path, how: str) -> list[Sample]:
    folder.mkdir()
    found = []
    for number, sample in enumerate(samples):
        image = Image.open(sample.path).convert("RGB")
        if how == "dark":
            image = ImageEnhance.Brightness(image).enhance(0.4)
        else:
            image = image.filter(ImageFilter.GaussianBlur(image.height / 16))
        path = folder / f"{number}.png"
        image.save(path)
        found.append(replace(sample, path=path))
    return found


def test_new_people_are_no_drift_but_darkness_and_blur_are(
    small: Checkpoint, stored_and_new: tuple[list[Sample], list[Sample]], tmp_path: Path
) -> None:
    stored, new = stored_and_new
    sets = {"same": new, **{how: changed(new, tmp_path / how, how) for how in ("dark", "blur")}}
    found = {name: watch(small, cameras_to_watch(small, rows, stored))[0] for name, rows in sets.items()}
    assert not found["same"].alarm, found
    for how in ("dark", "blur"):
        assert found[how].alarm, found
        assert found[how].drift > 1.5 * found["same"].drift


def test_the_evening_is_drift_for_a_camera_calibrated_in_the_morning(
    hours: list[Sample], stored_and_new: tuple[list[Sample], list[Sample]]
) -> None:
    weights = Path(__file__).parents[4] / "demo" / "weights" / "small-plain.safetensors"
    crops = of(hours, "b1")
    times = {sample.path: sample.time.hour for sample in crops if sample.time}
    morning = [sample for sample in crops if times[sample.path] <= 13]
    evening = [sample for sample in crops if times[sample.path] >= 17]
    checkpoint = load_checkpoint(weights)
    checkpoint = checkpoint.with_profiles(calibrate_checkpoint(checkpoint, morning))
    (found,) = watch(checkpoint, cameras_to_watch(checkpoint, evening, morning))
    assert found.alarm, found


def test_watching_needs_a_reference_and_statistics(small: Checkpoint, plain_weights: Path, hours: list[Sample]) -> None:
    with pytest.raises(DataError, match="b2"):
        cameras_to_watch(small, hours, of(hours, "b1"))
    with pytest.raises(ConfigError, match="--profiles"):
        cameras_to_watch(load_checkpoint(plain_weights), hours, hours)
    with pytest.raises(DataError, match=r"8 new crops.*b1 \(7\)"):
        cameras_to_watch(small, of(hours, "b1")[:7], hours)
    with pytest.raises(DataError, match=r"16 reference crops.*b1 \(15\)"):
        cameras_to_watch(small, of(hours, "b1"), of(hours, "b1")[:15])
