"""Calibration against the moments of all images at once; profiles as files; refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from reid.errors import DataError, WeightsError
from reid.norm import Given, Profiles, Stats, calibrate, camera_batchnorm, convert_norm, domains_of, install
from reid.norm.stats import moments, pool

NAMES = ("night", "noon")


def images_and_labels(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 2
    gain = torch.where(labels == 0, 0.3, 2.0)[:, None, None, None]
    drift = torch.linspace(-3, 3, count)[:, None, None, None]
    return torch.randn(count, 3, 32, 16, generator=generator) * gain + drift + labels[:, None, None, None], labels


def chunks(images: Tensor, labels: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def first_layer() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3))


@settings(max_examples=30, deadline=None)
@hypothesis_given(data=st.data())
def test_merging_any_chunks_is_one_pass(data) -> None:
    """T10: also when chunks drift, where averaging batch variances fails (F3: 0.996 for 6.96)."""
    images, labels = images_and_labels()
    cuts = sorted(data.draw(st.sets(st.integers(1, 23), max_size=6)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 24], strict=True)]
    whole = pool(*moments(images.double()), labels, 2)
    merged = Stats(torch.zeros(2, 3).double(), torch.zeros(2, 3).double(), torch.zeros(2).double())
    for part, part_labels in chunks(images.double(), labels, sizes):
        merged = merged.merge(pool(*moments(part), part_labels, 2))
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.var, whole.var)
    assert torch.equal(merged.mass, whole.mass)
    together = merged.total()
    torch.testing.assert_close(together.mean[0], images.double().mean((0, 2, 3)))
    torch.testing.assert_close(together.var[0], images.double().var((0, 2, 3), correction=0))


def test_averaged_batch_variances_would_not_pass() -> None:
    images, labels = images_and_labels()
    whole = pool(*moments(images), labels, 2)
    averaged = torch.stack(
        [pool(*moments(part), part_labels, 2).var for part, part_labels in chunks(images, labels, [8] * 3)]
    )
    assert not torch.allclose(averaged.mean(0), whole.var, rtol=0.05)


def test_the_first_layer_gets_the_moments_of_all_images() -> None:
    images, labels = images_and_labels()
    profiles = calibrate(first_layer(), chunks(images, labels, [5, 5, 14]), NAMES)
    for row in range(2):
        own = images[labels == row]
        torch.testing.assert_close(profiles.mean["0"][row], own.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(profiles.var["0"][row], own.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    assert profiles.images == (12, 12)


def test_a_calibrated_network_normalizes_its_own_images() -> None:
    """AdaBN's oracle: with all images in one batch, every norm layer gives mean bias and deviation weight."""
    images, labels = images_and_labels()
    torch.manual_seed(0)
    network = resnet18(num_classes=7).eval()
    state = copy.deepcopy(network.state_dict())
    calibrated = install(network, calibrate(network, [(images, labels)], NAMES))
    outputs: dict[str, Tensor] = {}
    for name in ("bn1", "layer2.0.bn2", "layer4.1.bn2"):
        calibrated.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: outputs.update({name: y.clone()})
        )
    with torch.inference_mode():
        for row in range(2):
            Given(calibrated)(images[labels == row], row)
            for name, y in outputs.items():
                layer = calibrated.get_submodule(name)
                alive = layer.running_var[row] > 1e-3
                torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(len(alive)), rtol=0, atol=2e-3)
                torch.testing.assert_close(
                    y.var((0, 2, 3), correction=0)[alive], torch.ones(int(alive.sum())), rtol=2e-2, atol=0
                )
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(m.training for m in network.modules())


def test_camera_gain_and_offset_vanish() -> None:
    """CBN's point: x -> a x + b per camera is undone by that camera's statistics, and by no other's."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(32, 3, 8, 8)
    both = torch.cat([images, images * 2.5 - 4])
    labels = torch.arange(2).repeat_interleave(32)
    calibrated = Given(install(network.eval(), calibrate(network.eval(), [(both, labels)], NAMES)))
    with torch.inference_mode():
        straight, undone = calibrated(both[:32], 0), calibrated(both[32:], 1)
        torch.testing.assert_close(straight, undone, rtol=1e-3, atol=1e-3)
        assert (calibrated(both[32:], 0) - straight).abs().mean() > 0.3


def test_profiles_go_round(tmp_path) -> None:
    images, labels = images_and_labels()
    network = resnet18(num_classes=4).eval()
    profiles = calibrate(network, [(images, labels)], NAMES, weights="abc", by=("domain", "camera"))
    profiles.save(tmp_path / "deep" / "profiles.safetensors")
    loaded = Profiles.load(tmp_path / "deep" / "profiles.safetensors")
    assert (loaded.names, loaded.images, loaded.weights, loaded.by) == (NAMES, (12, 12), "abc", ("domain", "camera"))
    with torch.inference_mode():
        ours, theirs = Given(install(network, profiles)), Given(install(network, loaded))
        assert torch.equal(ours(images, labels), theirs(images, labels))


def test_install_replaces_and_adds_by_name() -> None:
    images, labels = images_and_labels()
    network = convert_norm(resnet18(num_classes=4).eval(), camera_batchnorm(["noon", "dawn"]))
    profiles = calibrate(network, [(images, labels)], NAMES)
    calibrated = install(network, profiles)
    assert domains_of(calibrated) == ("noon", "dawn", "night")
    with torch.inference_mode():
        assert torch.equal(Given(calibrated)(images, 1), Given(network)(images, 1))
        assert not torch.allclose(Given(calibrated)(images, 0), Given(network)(images, 0), atol=1e-2)
        plain = install(resnet18(num_classes=4).eval(), profiles)
    assert domains_of(plain) == NAMES


def test_refusals(tmp_path) -> None:
    images, labels = images_and_labels()
    with pytest.raises(DataError, match=r"at least 2 images.*noon \(1\)"):
        calibrate(first_layer(), [(images[:3], labels[:3])], NAMES)
    with pytest.raises(DataError, match=r"night \(0\)"):
        calibrate(first_layer(), [], NAMES)
    profiles = calibrate(first_layer(), [(images, labels)], NAMES)
    with pytest.raises(WeightsError, match="do not fit"):
        install(resnet18(), profiles)
    with pytest.raises(WeightsError, match="expected 4 channels, got 3"):
        install(nn.Sequential(nn.BatchNorm2d(4)), profiles)
    (tmp_path / "text").write_text("not a tensor file")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for name in ("text", "other", "missing"):
        with pytest.raises(WeightsError, match=name):
            Profiles.load(tmp_path / name)
