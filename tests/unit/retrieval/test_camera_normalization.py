"""Profiles hold the levels that were asked for, or those that help, measured on unlabelled crops.

The crops show people as grids of colours.  One camera casts its own light over them, which statistics, or centering,
take away.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from helpers.small_checkpoints import plain_network, save_network
from reid.errors import ConfigError, DataError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm import Profiles
from reid.records import Sample
from reid.retrieval.camera_normalization import cohort_rows_of, count_images, normalize_cameras
from reid.retrieval.centering import camera_means, centered
from reid.retrieval.embed import embed
from reid.retrieval.normalization_choice import NormalizationRequest, parse_normalization

PEOPLE = 12
CAST = {"door": (1.0, 0.0), "hall": (1.0, 0.0), "yard": (0.35, 120.0)}  # factor and offset of the colours


class ColourGrid(nn.Module):
    """The mean colours of 4 x 2 cells, with BatchNorm or without."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(3) if batch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return functional.normalize(functional.adaptive_avg_pool2d(self.norm(images), (4, 2)).flatten(1))


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder, random = tmp_path_factory.mktemp("crops"), np.random.default_rng(0)
    people, samples = random.uniform(40, 215, size=(PEOPLE, 4, 2, 3)), []
    for camera, (factor, offset) in CAST.items():
        for person, cells in enumerate(people):
            for number in range(2):
                seen = factor * cells + offset + random.normal(0, 6, cells.shape)
                path = folder / f"{camera}-{person:02}-{number}.png"
                Image.fromarray(seen.clip(0, 255).astype(np.uint8)).resize((8, 16), 0).save(path)
                samples.append(Sample(path, f"p{person}", camera))
    return samples


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(save_network(tmp_path_factory.mktemp("weights"), plain_network()), size=(32, 32))


def with_network(checkpoint: Checkpoint, *, batch_norm: bool) -> Checkpoint:
    return replace(checkpoint, network=ColourGrid(batch_norm=batch_norm).eval())


def rank1(checkpoint: Checkpoint, crops: list[Sample]) -> float:
    """The share of crops of the yard whose nearest crop of the door shows the same person."""
    embeddings = embed(checkpoint, crops)
    query, gallery = (
        np.array([row for row, sample in enumerate(crops) if sample.camera == name]) for name in ("yard", "door")
    )
    nearest = gallery[(embeddings.vectors[query] @ embeddings.vectors[gallery].T).argmax(axis=1)]
    return float(np.mean([crops[q].identity == crops[g].identity for q, g in zip(query, nearest, strict=True)]))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_auto_chooses_what_helps(small: Checkpoint, crops: list[Sample], batch_norm: bool) -> None:
    checkpoint = with_network(small, batch_norm=batch_norm)
    profiles, report = normalize_cameras(checkpoint, crops, parse_normalization("auto"))
    assert profiles.domains == tuple(sorted(CAST))
    assert profiles.choice.startswith("auto: ")
    assert len(report.candidates) == (4 if batch_norm else 2)
    assert {camera.levels for camera in report.cameras} != {"none"}
    assert batch_norm or not profiles.mean
    after = checkpoint.with_profiles(profiles)
    assert rank1(after, crops) > rank1(checkpoint, crops) + 0.3
    assert profiles.score_norm == ""  # 24 crops of a camera are too few for a cohort


def test_labels_are_not_read(small: Checkpoint, crops: list[Sample]) -> None:
    checkpoint = with_network(small, batch_norm=True)
    other = [replace_identity(sample, f"x{row}") for row, sample in enumerate(crops)]
    found, shuffled = (normalize_cameras(checkpoint, rows, parse_normalization("auto"))[0] for rows in (crops, other))
    assert found.levels == shuffled.levels
    for layer, mean in found.mean.items():
        assert torch.equal(mean, shuffled.mean[layer])


def replace_identity(sample: Sample, identity: str) -> Sample:
    return Sample(sample.path, identity, sample.camera)


def test_asked_levels_are_measured(small: Checkpoint, crops: list[Sample]) -> None:
    """Centering after statistics: the centers are those of embeddings with the statistics."""
    checkpoint = with_network(small, batch_norm=True)
    profiles, report = normalize_cameras(checkpoint, crops, parse_normalization("statistics+centering+snorm"))
    assert (profiles.levels, profiles.score_norm) == (("statistics+centering",) * 3, "snorm")
    assert report.candidates == ()
    calibrated = checkpoint.with_profiles(replace(profiles, centers=None))
    vectors = embed(calibrated, crops)
    by_hand = centered(vectors, camera_means(vectors))
    found = embed(checkpoint.with_profiles(profiles), crops)
    np.testing.assert_allclose(found.vectors, by_hand.vectors, atol=1e-5)
    plain = embed(checkpoint, crops)
    wrong = centered(vectors, camera_means(plain))
    assert not np.allclose(found.vectors, wrong.vectors, atol=1e-3)


def test_none_leaves_the_network_as_it_is(small: Checkpoint, crops: list[Sample]) -> None:
    profiles, _ = normalize_cameras(small, crops[:4], parse_normalization("none"))
    assert (profiles.mean, profiles.centers) == ({}, None)
    assert small.with_profiles(profiles).fingerprint == small.fingerprint


def test_few_crops_and_one_camera_are_left(small: Checkpoint, crops: list[Sample]) -> None:
    checkpoint, auto = with_network(small, batch_norm=True), parse_normalization("auto")
    few = [sample for sample in crops if sample.path.stem.endswith("-0")]
    one = [sample for sample in crops if sample.camera == "yard"]
    for rows in (few, one):
        profiles, report = normalize_cameras(checkpoint, rows, auto)
        assert set(profiles.levels) == {"none"}
        assert "stays as it is" in report.reason
        assert np.array_equal(embed(checkpoint.with_profiles(profiles), rows).vectors, embed(checkpoint, rows).vectors)


def test_a_camera_with_few_crops_is_left_and_named(small: Checkpoint, crops: list[Sample]) -> None:
    checkpoint = with_network(small, batch_norm=True)
    rows = [sample for sample in crops if sample.camera != "hall" or "-00-" in sample.path.name]
    profiles, report = normalize_cameras(checkpoint, rows, parse_normalization("auto"))
    levels = dict(zip(profiles.domains, profiles.levels, strict=True))
    assert levels["hall"] == "none"
    assert levels["yard"] != "none"
    assert [camera.crops for camera in report.cameras if camera.camera == "hall"] == [2]


def test_identical_crops_choose_nothing(small: Checkpoint, crops: list[Sample]) -> None:
    same = [Sample(crops[0].path, camera=sample.camera) for sample in crops]
    profiles, _ = normalize_cameras(with_network(small, batch_norm=False), same, parse_normalization("auto"))
    assert set(profiles.levels) == {"none"}


def test_bad_input_is_refused_in_one_line(small: Checkpoint, crops: list[Sample]) -> None:
    auto = parse_normalization("auto")
    with pytest.raises(DataError, match="no crops"):
        normalize_cameras(small, [], auto)
    with pytest.raises(DataError, match="the camera is empty"):
        normalize_cameras(small, [Sample(crops[0].path)], auto)
    with pytest.raises(DataError, match=r"door \(1\)"):
        normalize_cameras(small, crops[:1], auto)
    with pytest.raises(ConfigError, match="normalize centering"):
        normalize_cameras(with_network(small, batch_norm=False), crops, parse_normalization("statistics"))


@pytest.mark.parametrize("text", ["auto", "statistics", "centering", "statistics+centering", "none"])
def test_progress_never_exceeds_the_count(small: Checkpoint, crops: list[Sample], text: str) -> None:
    request: NormalizationRequest = parse_normalization(text)
    done: list[int] = []
    normalize_cameras(with_network(small, batch_norm=True), crops, request, progress=done.append)
    total = count_images(crops, request, has_statistics=True)
    assert sum(done) == total or (text == "auto" and sum(done) <= total)


def test_profiles_of_centers_are_saved_and_read(small: Checkpoint, crops: list[Sample], tmp_path: Path) -> None:
    profiles, _ = normalize_cameras(with_network(small, batch_norm=False), crops, parse_normalization("centering+csls"))
    profiles.save(tmp_path / "p.safetensors")
    again = Profiles.load(tmp_path / "p.safetensors")
    assert profiles.centers is not None
    assert again.centers is not None
    assert torch.equal(again.centers, profiles.centers)
    assert (again.levels, again.score_norm, again.domains) == (profiles.levels, "csls", profiles.domains)


def test_profiles_keep_a_cohort_where_scores_are_normalized(small: Checkpoint, crops: list[Sample]) -> None:
    """A gallery without crops of the camera of a query is normalized with those of the profiles."""
    checkpoint = with_network(small, batch_norm=False)
    profiles, _ = normalize_cameras(checkpoint, crops, parse_normalization("centering+csls"))
    assert normalize_cameras(checkpoint, crops, parse_normalization("centering"))[0].cohort is None
    network = checkpoint.with_profiles(profiles)
    rows = cohort_rows_of(network)
    assert cohort_rows_of(checkpoint) is None
    assert rows is not None
    assert sorted(set(rows.cameras.tolist())) == ["person/door", "person/hall", "person/yard"]
    by_path = {sample.path: vector for sample, vector in zip(crops, embed(network, crops).vectors, strict=True)}
    yard = [by_path[sample.path] for sample in crops if sample.camera == "yard"]
    found = rows.vectors[rows.cameras == "person/yard"]
    np.testing.assert_allclose(np.sort(found @ yard[0]), np.sort(np.stack(yard) @ yard[0]), atol=1e-5)
