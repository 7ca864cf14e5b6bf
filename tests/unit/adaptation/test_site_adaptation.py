"""``adapt``: what it gives back, what it refuses, and what it never looks at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.drawn_sites import draw_site
from helpers.small_checkpoints import CAMERAS, TRANSFORM, camera_network, plain_network, save_network
from reid.adaptation import site_adaptation
from reid.adaptation.site_adaptation import LABELLED_PREFIX, RECIPE, Adaptation, adapt
from reid.adaptation.site_crops import choose_domain_fields
from reid.errors import ConditionError, ConfigError, DataError
from reid.models.calibration import calibrate_checkpoint
from reid.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.weights.tensor_tables import digest, table_of
from reid.norm.convert import norm_layers
from reid.norm.specialised.tent import batch_norms
from reid.records import Sample
from reid.retrieval.embed import embed

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_adaptation, "STEPS", 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(save_network(tmp_path_factory.mktemp("weights"), plain_network()))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_site(tmp_path_factory.mktemp("site"), people=10)  # clusters become better with every seed tried


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, samples: list[Sample]) -> Adaptation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_adaptation, "STEPS", 1)
        return adapt(checkpoint, samples, epochs=1)


def relabelled(samples: list[Sample], names: list[str]) -> list[Sample]:
    """The same crops with other identities."""
    return [
        Sample(s.path, name, s.camera, s.modality, s.category, s.split) for s, name in zip(samples, names, strict=True)
    ]


def learned(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Everything but statistics, for comparing networks with other domains."""
    return {k: v for k, v in table_of(checkpoint.network).items() if not k.endswith(STATISTICS)}


def test_identities_are_never_looked_at(checkpoint: Checkpoint, samples: list[Sample], found: Adaptation) -> None:
    names = [sample.identity for sample in samples]
    shuffled = relabelled(samples, np.random.default_rng(0).permutation(names).tolist())
    other = adapt(checkpoint, shuffled, epochs=1).checkpoint
    assert digest(table_of(other.network)) == digest(table_of(found.checkpoint.network))
    assert other.fingerprint == found.checkpoint.fingerprint


def test_the_checkpoint_works_by_itself(
    checkpoint: Checkpoint, samples: list[Sample], found: Adaptation, tmp_path: Path
) -> None:
    assert found.is_adapted
    assert found.kept_epoch == 1
    assert [figures.epoch for figures in found.history] == [0, 1]
    found.checkpoint.save(tmp_path / "w.safetensors")
    loaded = load_checkpoint(tmp_path / "w.safetensors")
    assert loaded.fingerprint == found.checkpoint.fingerprint != checkpoint.fingerprint
    assert loaded.domains == ("door", "yard")
    recipe = json.loads(loaded.extra[RECIPE])
    assert (recipe["method"], recipe["from"], recipe["kept_epoch"]) == ("cluster", checkpoint.fingerprint, 1)
    vectors = embed(loaded, samples).vectors
    np.testing.assert_array_equal(vectors, embed(found.checkpoint, samples).vectors)
    fresh = loaded.with_profiles(calibrate_checkpoint(loaded, samples))  # its statistics are those of all crops
    np.testing.assert_allclose(embed(fresh, samples).vectors, vectors, atol=1e-4)
    with pytest.raises(ConditionError):
        embed(loaded, [replace_camera(samples[0], "gate")])


def replace_camera(sample: Sample, camera: str) -> Sample:
    return Sample(sample.path, sample.identity, camera, sample.modality)


@pytest.mark.parametrize(
    ("site", "word"),
    [
        ({"people": 3, "crops": 2}, "12 crops are too few"),
        ({"people": 30, "crops": 1}, "a person once"),
        ({"cameras": ("door",)}, "one camera"),
    ],
)
def test_where_it_cannot_work_the_calibrated_network_is_given_back(
    checkpoint: Checkpoint, tmp_path: Path, site: dict, word: str
) -> None:
    samples = draw_site(tmp_path, **site)
    result = adapt(checkpoint, samples, epochs=1)
    assert not result.is_adapted
    assert word in result.verdict
    assert json.loads(result.checkpoint.extra[RECIPE])["adapted"] is False
    calibrated = checkpoint.with_profiles(calibrate_checkpoint(checkpoint, samples))
    np.testing.assert_allclose(embed(result.checkpoint, samples).vectors, embed(calibrated, samples).vectors, atol=1e-4)
    for key, value in learned(checkpoint).items():
        assert torch.equal(value, learned(result.checkpoint)[key]), key


def test_identical_crops_are_declined(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (first, *_) = draw_site(tmp_path, people=1, cameras=("door",), crops=1)
    same = []
    for number in range(48):
        path = tmp_path / f"same{number}.png"
        path.write_bytes(first.path.read_bytes())
        same.append(Sample(path, "", "door" if number % 2 else "yard"))
    assert not adapt(checkpoint, same, epochs=1).is_adapted


def test_crops_without_cameras_adapt_without_camera_terms(checkpoint: Checkpoint, samples: list[Sample]) -> None:
    nameless = [replace_camera(sample, "") for sample in samples]
    result = adapt(checkpoint, nameless, epochs=1)
    assert [figures.epoch for figures in result.history] == [0, 1]
    assert result.checkpoint.domains == ()
    assert not norm_layers(result.checkpoint.network)
    assert len(embed(result.checkpoint, [replace_camera(samples[0], "anywhere")])) == 1
    with pytest.raises(DataError, match="camera is empty"):
        adapt(checkpoint, [*samples, nameless[0]], epochs=1)


def test_weights_with_cameras_of_another_site_get_those_of_this_one(samples: list[Sample], tmp_path: Path) -> None:
    own = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))
    result = adapt(own, samples, epochs=2)
    assert result.is_adapted
    assert result.checkpoint.domains == ("door", "yard")
    again = adapt(result.checkpoint, samples, epochs=1)  # weights that were adapted already
    assert json.loads(again.checkpoint.extra[RECIPE])["from"] == result.checkpoint.fingerprint
    with pytest.raises(DataError, match="normalize by camera"):
        adapt(own, [replace_camera(sample, "") for sample in samples])


def test_a_network_without_batchnorm_is_trained_without_statistics(samples: list[Sample], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    spec = NetworkSpec("timm:test_convnext", "average", "none")
    path = tmp_path / "vit.safetensors"
    transform = replace(TRANSFORM, height=96, width=64)
    save_checkpoint(path, Embedder(spec).eval(), spec, transform, (), (), {})
    vit = load_checkpoint(path)
    result = adapt(vit, samples, epochs=1)
    assert result.checkpoint.domains == ()
    assert result.is_adapted == any(
        not torch.equal(value, learned(result.checkpoint)[key]) for key, value in learned(vit).items()
    )


def test_a_labelled_site_has_statistics_and_an_affine_of_its_own(
    checkpoint: Checkpoint, samples: list[Sample], tmp_path: Path
) -> None:
    labelled = draw_site(tmp_path, people=6, cameras=("door", "hall"), seed=9)
    result = adapt(checkpoint, samples, epochs=1, labelled=labelled)
    assert result.is_adapted
    assert result.checkpoint.domains == ("door", "hall", f"{LABELLED_PREFIX}door", "yard")
    layer = next(iter(norm_layers(result.checkpoint.network).values()))
    site, other = [0, 3], [1, 2]
    assert torch.equal(layer.weight[site[0]], layer.weight[site[1]])
    assert torch.equal(layer.weight[other[0]], layer.weight[other[1]])
    assert not torch.equal(layer.weight[0], layer.weight[1])
    assert not torch.equal(layer.running_mean[1], layer.running_mean[2])
    with pytest.raises(DataError, match="needs an identity"):
        adapt(checkpoint, samples, labelled=relabelled(labelled, [""] * len(labelled)))
    with pytest.raises(ConfigError, match="cluster"):
        adapt(checkpoint, samples, "entropy", labelled=labelled)


def test_a_camera_with_one_crop_is_named(checkpoint: Checkpoint, samples: list[Sample]) -> None:
    with pytest.raises(DataError, match='1 of "gate"'):
        adapt(checkpoint, [*samples, replace_camera(samples[0], "gate")])
    with pytest.raises(DataError, match="no samples"):
        adapt(checkpoint, [])
    with pytest.raises(ConfigError, match="known: cluster"):
        adapt(checkpoint, samples, "clusters")


def test_a_camera_of_both_lights_has_two_domains() -> None:
    samples = [Sample("1.jpg", "", "door"), Sample("2.jpg", "", "door", "infrared"), Sample("3.jpg", "", "yard")]
    assert choose_domain_fields(samples) == ("modality", "camera")
    assert choose_domain_fields(samples[::2]) == ("camera",)


@pytest.mark.parametrize("method", ["statistics", "entropy", "matching"])
def test_other_methods_change_what_they_say(checkpoint: Checkpoint, samples: list[Sample], method: str) -> None:
    result = adapt(checkpoint, samples, method, epochs=1)
    before, after = learned(checkpoint), learned(result.checkpoint)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert result.checkpoint.domains == ("door", "yard")
    if method == "statistics" or not result.is_adapted:
        assert not changed
    elif method == "entropy":
        assert changed
        norms = set(batch_norms(checkpoint.network))
        assert all(key.rpartition(".")[0] in norms for key in changed)
    else:
        assert changed
        assert all(key.startswith("backbone.") for key in changed), changed
