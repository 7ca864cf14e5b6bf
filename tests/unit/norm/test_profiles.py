"""Profiles as values: what merging, comparing and shrinking them must give, against the images themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reid.errors import DataError, WeightsError
from reid.norm import Profiles, calibrate, camera_batchnorm, convert_norm, install
from reid.norm.convert import DomainPolicy

NAMES = ("a1", "a2", "a3")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))


def crops(count: int, seed: int, gain: float = 1.0) -> Tensor:
    return torch.randn(count, 3, 8, 6, generator=torch.Generator().manual_seed(seed)) * gain + gain


def measure(images: Tensor, labels: Tensor, names: tuple[str, ...] = NAMES) -> Profiles:
    return calibrate(network(), [(images, labels)], names)


def three() -> tuple[Tensor, Tensor, Profiles]:
    images = torch.cat([crops(12, 1), crops(8, 2, 2.0), crops(3, 3, 0.5)])
    labels = torch.tensor([0] * 12 + [1] * 8 + [2] * 3)
    return images, labels, measure(images, labels)


def test_first_layer_profiles_of_two_halves_merge_into_those_of_the_whole() -> None:
    images, labels, whole = three()
    half = torch.arange(len(images)) % 2 == 0
    names = ("a1", "a2")  # the third has too few images to be halved
    kept = labels < 2
    parts = [measure(images[kept & side], labels[kept & side], names) for side in (half, ~half)]
    merged = parts[0].merge(parts[1])
    assert merged.images == (12, 8)
    assert torch.allclose(merged.mean["1"], whole.mean["1"][:2], atol=1e-5)
    assert torch.allclose(merged.var["1"], whole.var["1"][:2], atol=1e-5)
    averaged = (parts[0].var["1"] + parts[1].var["1"]) / 2
    assert not torch.allclose(averaged, whole.var["1"][:2], atol=1e-5)  # the wrong way


def test_merging_adds_domains_and_order_does_not_matter() -> None:
    _, _, whole = three()
    left, right = whole.select(["a1", "a2"]), whole.select(["a3"])
    merged = left.merge(right)
    assert merged.names == NAMES
    assert merged.images == whole.images
    back = right.merge(left).select(NAMES)
    for layer in whole.mean:
        assert torch.equal(merged.mean[layer], whole.mean[layer])
        assert torch.equal(back.var[layer], whole.var[layer])


def test_difference_is_zero_for_the_same_and_one_for_a_deviation() -> None:
    _, _, whole = three()
    assert all(float(value.abs().max()) == 0.0 for value in whole.diff(whole).values())
    moved = replace(whole, mean={k: m + whole.var[k].sqrt() for k, m in whole.mean.items()})
    assert all(torch.allclose(value, torch.ones(3), atol=1e-5) for value in moved.diff(whole).values())
    drift = moved.drift(whole)
    assert list(drift) == list(NAMES)
    assert drift["a1"] == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(DataError, match="no domain in common"):
        whole.select(["a1"]).diff(whole.select(["a2"]))


def test_drift_tells_a_changed_camera_from_another_sample_of_the_same() -> None:
    stored = measure(crops(64, 1), torch.zeros(64, dtype=torch.int64), ("a1",))
    same = measure(crops(64, 2), torch.zeros(64, dtype=torch.int64), ("a1",))
    dark = measure(crops(64, 3) * 0.3, torch.zeros(64, dtype=torch.int64), ("a1",))
    assert dark.drift(stored)["a1"] > 5 * same.drift(stored)["a1"]


def test_shrinking_goes_from_the_camera_to_its_group_to_everything() -> None:
    images, _labels, whole = three()
    layer = "1"
    assert torch.allclose(whole.shrunk(0.0).mean[layer], whole.mean[layer])
    everything = calibrate(network(), [(images, torch.zeros(len(images), dtype=torch.int64))], ("all",))
    far = whole.shrunk(1e9)
    assert torch.allclose(far.mean[layer], everything.mean[layer].expand(3, -1), atol=1e-4)
    assert torch.allclose(far.var[layer], everything.var[layer].expand(3, -1), atol=1e-3)
    parents = {"a1": "visible", "a2": "visible", "a3": "infrared"}
    distances = []
    for prior in (0.0, 4.0, 64.0, 1e6):
        near = whole.shrunk(prior, parents)
        distances.append(float((near.mean[layer][0] - whole.mean[layer][0]).norm()))
    assert distances == sorted(distances)
    assert distances[0] == 0.0
    own, pooled = whole.mean[layer][1], (12 * whole.mean[layer][0] + 8 * whole.mean[layer][1]) / 20
    world = (20 * pooled + 3 * whole.mean[layer][2]) / 23
    group = (20 * pooled + 4 * world) / 24
    assert torch.allclose(whole.shrunk(4.0, parents).mean[layer][1], (8 * own + 4 * group) / 12, atol=1e-5)
    assert whole.shrunk(4.0, parents).images == whole.images


def test_a_single_image_after_shrinking_has_a_variance() -> None:
    images, labels, _ = three()
    images = torch.cat([images[:12], torch.ones_like(images[:1])])  # a white wall
    few = calibrate(network(), [(images, labels[:13])], NAMES[:2], minimum=1)
    assert few.images == (12, 1)
    assert float(few.var["1"][1].max()) < 1e-6
    assert float(few.shrunk(8.0).var["1"][1].min()) > 0.01


def test_whitening_layers_keep_their_covariances(tmp_path: Path) -> None:
    whitened = convert_norm(network(), DomainPolicy("camera", NAMES, system="dwt"))
    images, labels, _ = three()
    profiles = calibrate(whitened, [(images, labels)], NAMES)
    assert set(profiles.cov) == {"1"}
    assert set(profiles.mean) == {"1", "4"}
    profiles.save(tmp_path / "p.safetensors")
    again = Profiles.load(tmp_path / "p.safetensors")
    assert again.date == profiles.date
    assert torch.equal(again.cov["1"], profiles.cov["1"])
    installed = install(whitened, again)
    assert torch.equal(installed[1].running_cov, profiles.cov["1"])
    merged = again.select(["a1"]).merge(again.select(["a2", "a3"]))
    assert torch.equal(merged.cov["1"], profiles.cov["1"])
    plain = install(convert_norm(network(), camera_batchnorm(NAMES)), three()[2])
    assert torch.equal(plain[1].running_mean, three()[2].mean["1"])
    with pytest.raises(WeightsError, match="no covariances"):
        install(whitened, replace(profiles, cov={}))


def test_profiles_of_other_weights_do_not_go_together() -> None:
    _, _, whole = three()
    with pytest.raises(WeightsError, match="do not go together"):
        whole.merge(replace(whole, weights="abc"))
    with pytest.raises(DataError, match="unknown domain"):
        whole.select(["b9"])
