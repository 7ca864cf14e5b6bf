"""What a linear function reads from a stage: cameras and identities that are there, and none that is not."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reid.data.loading import load_batches
from reid.errors import ConfigError, DataError
from reid.evaluation.analysis.probes import (
    AFTER,
    BEFORE,
    EMBEDDING,
    norms_of,
    probe_features,
    probe_network,
    stage_features,
    stages_of,
)
from reid.models.checkpoint import Checkpoint
from reid.pipeline import load_checkpoint
from reid.records import Sample

IDENTITIES, CAMERAS, CROPS = 12, "abc", 3


def crops() -> list[Sample]:
    return [
        Sample(Path(f"{n}{camera}{crop}.jpg"), f"person {n}", camera)
        for n in range(IDENTITIES)
        for camera in CAMERAS
        for crop in range(CROPS)
    ]


def features_of(samples: list[Sample], camera: float, identity: float) -> np.ndarray:
    """Vectors that hold the camera and the identity with some strength, and noise."""
    random = np.random.default_rng(0)
    of_camera = dict(zip(CAMERAS, random.normal(size=(len(CAMERAS), 32)), strict=True))
    of_person = {f"person {n}": vector for n, vector in enumerate(random.normal(size=(IDENTITIES, 32)))}
    noise = random.normal(size=(len(samples), 32))
    rows = [camera * of_camera[s.camera] + identity * of_person[s.identity] for s in samples]
    return (np.stack(rows) + 0.1 * noise).astype(np.float32)


@pytest.mark.parametrize(("camera", "identity"), [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_a_probe_tells_what_the_features_hold(camera: int, identity: int) -> None:
    samples = crops()
    found = probe_features("person", "layer", features_of(samples, camera, identity), samples)
    assert (found.camera > 0.95) == bool(camera)
    assert (found.identity > 0.95) == bool(identity)
    assert found.camera_chance == pytest.approx(1 / 3)
    assert found.identity_chance == pytest.approx(1 / IDENTITIES)
    if not camera:
        assert found.camera < 0.6
    if not identity:
        assert found.identity < 0.4


def test_the_camera_is_asked_of_identities_that_were_not_seen() -> None:
    """Features that name the pair of identity and camera tell a camera only to who has seen the identity."""
    samples = crops()
    random = np.random.default_rng(1)
    pairs = {(s.identity, s.camera): random.normal(size=64) for s in samples}
    features = np.float32([pairs[s.identity, s.camera] for s in samples])
    assert probe_features("person", "layer", features, samples).camera < 0.6


class Stages(nn.Module):
    """Three stages, one of them in a list, and a layer without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU()
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)])


def test_stages_are_the_layers_with_parameters() -> None:
    network = nn.Module()
    network.backbone = nn.Sequential(Stages())
    assert [name for name, _ in stages_of(network)] == ["stem", "blocks.0", "blocks.1"]


@pytest.fixture
def people(tiny_street: Path) -> list[Sample]:
    from reid.data.manifest import read_manifest

    rows = read_manifest(tiny_street / "street-a" / "manifest.csv")
    return [s for s in rows if s.category == "person" and s.identity]


def test_features_stand_in_the_order_of_the_samples(camera_weights: Path, people: list[Sample]) -> None:
    """A network with domains sorts a batch by them; the oracle embeds every crop by itself."""
    checkpoint = load_checkpoint(camera_weights)
    mixed = [people[row] for row in np.random.default_rng(0).permutation(len(people))[:12]]
    assert len({sample.camera for sample in mixed}) > 2
    together = stage_features(checkpoint, mixed)
    assert list(together)[-1] == EMBEDDING
    for row, sample in enumerate(mixed):
        alone = stage_features(checkpoint, [sample])
        for name, features in together.items():
            np.testing.assert_allclose(features[row], alone[name][0], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_stage_is_the_mean_of_its_map(plain_weights: Path, people: list[Sample]) -> None:
    checkpoint = load_checkpoint(plain_weights)
    first, layer = stages_of(checkpoint.network)[0]
    batch = next(iter(load_batches(people[:4], checkpoint.transform)))
    with torch.inference_mode():
        oracle = layer(batch.images).mean((2, 3)).numpy()
    np.testing.assert_allclose(stage_features(checkpoint, people[:4])[first], oracle, rtol=1e-4, atol=1e-5)


def test_a_network_that_runs_twice_is_refused(plain_weights: Path, people: list[Sample]) -> None:
    with pytest.raises(ConfigError, match="several times"):
        stage_features(load_checkpoint(plain_weights, flip=True), people[:4])


def test_crops_without_labels_are_refused(plain_weights: Path, people: list[Sample]) -> None:
    checkpoint: Checkpoint = load_checkpoint(plain_weights)
    unnamed = [Sample(s.path, "", s.camera, s.modality, s.category) for s in people]
    with pytest.raises(DataError, match="identities"):
        probe_network(checkpoint, unnamed)


def test_an_instance_norm_makes_mean_and_deviation_equal_for_all_images(
    plain_weights: Path, people: list[Sample]
) -> None:
    checkpoint = load_checkpoint(plain_weights)
    (first, layer), *others = norms_of(checkpoint.network)
    network = copy.deepcopy(checkpoint.network)
    parent, _, last = first.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.InstanceNorm2d(layer.num_features))
    found = stage_features(replace(checkpoint, network=network), people[:6], norms=True)
    assert list(found)[-1] == EMBEDDING
    assert len(found) == 2 * (1 + len(others)) + 1
    before, after = found[f"{first} {BEFORE}"], found[f"{first} {AFTER}"]
    assert before.shape == after.shape == (6, 2 * layer.num_features)
    assert before.std(axis=0).max() > 1e-3
    np.testing.assert_allclose(after, after[:1].repeat(6, axis=0), atol=2e-2)
    kept = stage_features(checkpoint, people[:6], norms=True)[f"{first} {AFTER}"]
    assert np.abs(kept - kept[:1]).max() > 0.1
