"""Calibration is compared with the moments of all images at once; profiles are saved and read.

The wrong calibrations that these tests catch, each refused at the end: batch variances averaged, unbiased
variance, domains ignored, a neck with old statistics, later layers measured behind layers with old statistics, dropout
active, a network that is changed.
"""

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
from reid.norm import Given, Profiles, Statistics, calibrate, camera_batchnorm, convert_norm, domains_of, install
from reid.norm.statistics import moments, pool

NAMES = ("night", "noon")


def images_and_labels(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    domain = torch.arange(count) % 2
    gain = torch.where(domain == 0, 0.3, 2.0)[:, None, None, None]
    drift = torch.linspace(-3, 3, count)[:, None, None, None]
    return torch.randn(count, 3, 32, 16, generator=generator) * gain + drift + domain[:, None, None, None], domain


def chunks(images: Tensor, domain: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(sizes), domain.split(sizes), strict=True))


def first_layer() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3))


@settings(max_examples=30, deadline=None)
@hypothesis_given(data=st.data())
def test_merging_any_chunks_is_one_pass(data) -> None:
    """The result is exact also when chunks drift, where averaging batch variances fails."""
    images, domain = images_and_labels()
    cuts = sorted(data.draw(st.sets(st.integers(1, 23), max_size=6)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 24], strict=True)]
    whole = pool(*moments(images.double()), domain, 2)
    merged = Statistics(torch.zeros(2, 3).double(), torch.zeros(2, 3).double(), torch.zeros(2).double())
    for part, part_labels in chunks(images.double(), domain, sizes):
        merged = merged.merge(pool(*moments(part), part_labels, 2))
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.var, whole.var)
    assert torch.equal(merged.mass, whole.mass)
    together = merged.merge_all()
    torch.testing.assert_close(together.mean[0], images.double().mean((0, 2, 3)))
    torch.testing.assert_close(together.var[0], images.double().var((0, 2, 3), correction=0))


def test_averaged_batch_variances_would_not_pass() -> None:
    images, domain = images_and_labels()
    whole = pool(*moments(images), domain, 2)
    averaged = torch.stack(
        [pool(*moments(part), part_labels, 2).var for part, part_labels in chunks(images, domain, [8] * 3)]
    )
    assert not torch.allclose(averaged.mean(0), whole.var, rtol=0.05)


def test_the_first_layer_gets_the_moments_of_all_images() -> None:
    images, domain = images_and_labels()
    profiles = calibrate(first_layer(), chunks(images, domain, [5, 5, 14]), NAMES)
    for row in range(2):
        own = images[domain == row]
        torch.testing.assert_close(profiles.mean["0"][row], own.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(profiles.var["0"][row], own.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    assert profiles.images == (12, 12)


def test_a_calibrated_network_normalizes_its_own_images() -> None:
    """With all images in one batch, the output of every norm has the mean ``bias`` and the deviation ``weight``."""
    images, domain = images_and_labels()
    torch.manual_seed(0)
    network = resnet18(num_classes=7).eval()
    state = copy.deepcopy(network.state_dict())
    calibrated = install(network, calibrate(network, [(images, domain)], NAMES))
    outputs: dict[str, Tensor] = {}
    for name in ("bn1", "layer2.0.bn2", "layer4.1.bn2"):
        calibrated.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: outputs.update({name: y.clone()})
        )
    with torch.inference_mode():
        for row in range(2):
            Given(calibrated)(images[domain == row], row)
            for name, y in outputs.items():
                layer = calibrated.get_submodule(name)
                alive = layer.running_var[row] > 1e-3
                torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(len(alive)), rtol=0, atol=2e-3)
                torch.testing.assert_close(
                    y.var((0, 2, 3), correction=0)[alive], torch.ones(int(alive.sum())), rtol=2e-2, atol=0
                )
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(m.training for m in network.modules())


def test_gain_and_offset_of_a_camera_vanish() -> None:
    """The change x -> a x + b of a camera is undone by the statistics of that camera, and by no others."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(32, 3, 8, 8)
    both = torch.cat([images, images * 2.5 - 4])
    domain = torch.arange(2).repeat_interleave(32)
    calibrated = Given(install(network.eval(), calibrate(network.eval(), [(both, domain)], NAMES)))
    with torch.inference_mode():
        straight, undone = calibrated(both[:32], 0), calibrated(both[32:], 1)
        torch.testing.assert_close(straight, undone, rtol=1e-3, atol=1e-3)
        assert (calibrated(both[32:], 0) - straight).abs().mean() > 0.3


def test_profiles_are_saved_and_loaded(tmp_path) -> None:
    images, domain = images_and_labels()
    network = resnet18(num_classes=4).eval()
    profiles = calibrate(network, [(images, domain)], NAMES, weights="abc", domain_fields=("category", "camera"))
    profiles.save(tmp_path / "deep" / "profiles.safetensors")
    loaded = Profiles.load(tmp_path / "deep" / "profiles.safetensors")
    assert (loaded.domains, loaded.images, loaded.weights, loaded.domain_fields) == (
        NAMES,
        (12, 12),
        "abc",
        ("category", "camera"),
    )
    with torch.inference_mode():
        ours, theirs = Given(install(network, profiles)), Given(install(network, loaded))
        assert torch.equal(ours(images, domain), theirs(images, domain))


def test_install_replaces_and_adds_by_name() -> None:
    images, domain = images_and_labels()
    network = convert_norm(resnet18(num_classes=4).eval(), camera_batchnorm(["noon", "dawn"]))
    profiles = calibrate(network, [(images, domain)], NAMES)
    calibrated = install(network, profiles)
    assert domains_of(calibrated) == ("noon", "dawn", "night")
    with torch.inference_mode():
        assert torch.equal(Given(calibrated)(images, 1), Given(network)(images, 1))
        assert not torch.allclose(Given(calibrated)(images, 0), Given(network)(images, 0), atol=1e-2)
        plain = install(resnet18(num_classes=4).eval(), profiles)
    assert domains_of(plain) == NAMES


def test_calibration_refuses_what_cannot_be_measured_or_read(tmp_path) -> None:
    images, domain = images_and_labels()
    with pytest.raises(DataError, match=r"noon \(1\)"):
        calibrate(first_layer(), [(images[:3], domain[:3])], NAMES)
    with pytest.raises(DataError, match=r"night \(0\)"):
        calibrate(first_layer(), [], NAMES)
    profiles = calibrate(first_layer(), [(images, domain)], NAMES)
    with pytest.raises(WeightsError, match=r"1 norm layers.* 20"):
        install(resnet18(), profiles)
    with pytest.raises(WeightsError, match="4 channels, got 3"):
        install(nn.Sequential(nn.BatchNorm2d(4)), profiles)
    (tmp_path / "text").write_text("not a tensor file")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for name in ("text", "other", "missing"):
        with pytest.raises(WeightsError, match=name):
            Profiles.load(tmp_path / name)


# The whole of a small network, and what the comparison refuses.

LAYERS = {"1": 6, "5": 6, "9": 6}  # two norms of maps and a neck, with their channels


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(6),
    ).eval()  # fmt: skip


def slow_calibration(network: nn.Module, batches: list[tuple[Tensor, Tensor]], wrong: str = "") -> Profiles:
    """Run every domain and batch by itself through plain torch, on all values at once; with one mistake."""
    values: dict[tuple[str, int], list[Tensor]] = {(name, row): [] for name in LAYERS for row in (0, 1)}
    copied = network if wrong == "the network itself" else copy.deepcopy(network)
    copied.train(wrong == "dropout active")
    for name in LAYERS:
        copied.get_submodule(name).train(wrong != "old statistics").momentum = 0.1 if wrong.startswith("the") else 0.0
    for images, domain in batches:
        for row in (0, 1):
            own, x = domain == row, images
            x = images if wrong == "labels ignored" else images[own]
            for name, layer in copied.named_children():
                if name in LAYERS:
                    values[name, row].append(x.detach())
                x = layer(x)
    found: dict[str, list[Tensor]] = {"mean": [], "var": []}
    for (name, _), parts in values.items():
        axes = tuple(range(parts[0].dim()))[:1] + tuple(range(parts[0].dim()))[2:]
        whole = torch.cat(parts)
        var = whole.var(axes, correction=int(wrong == "unbiased"))
        if wrong == "averaged":
            var = torch.stack([part.var(axes, correction=0) for part in parts]).mean(0)
        if wrong == "neck forgotten" and name == "9":
            var = torch.ones_like(var)
        found["mean"].append(whole.mean(axes))
        found["var"].append(var)
    tables = {
        key: {name: torch.stack(rows[2 * i : 2 * i + 2]) for i, name in enumerate(LAYERS)}
        for key, rows in found.items()
    }
    return Profiles(NAMES, (0, 0), **tables)


def check_calibration(calibration) -> None:
    """Check all layers on one batch and on drifting ones against plain torch; the network stays bit for bit."""
    images, domain = images_and_labels()
    for batches in ([(images, domain)], chunks(images, domain, [8, 10, 6])):
        network = small()
        before = copy.deepcopy(network.state_dict())
        profiles, expected = calibration(network, batches), slow_calibration(small(), batches)
        for name in LAYERS:
            torch.testing.assert_close(profiles.mean[name], expected.mean[name], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(profiles.var[name], expected.var[name], rtol=1e-3, atol=1e-6)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_every_layer_gets_the_moments_of_what_it_sees() -> None:
    check_calibration(lambda network, batches: calibrate(network, batches, NAMES))
    check_calibration(slow_calibration)


@pytest.mark.parametrize(
    "wrong",
    [
        "averaged", "unbiased", "labels ignored", "neck forgotten", "old statistics", "dropout active",
        "the network itself",
    ],
)  # fmt: skip
def test_wrong_calibrations_are_refused(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check_calibration(lambda network, batches: slow_calibration(network, batches, wrong))


@settings(max_examples=15, deadline=None)
@hypothesis_given(data=st.data())
def test_the_order_of_batches_and_of_images_does_not_matter(data) -> None:
    """All layers agree for batches in any order, the first layer for any order and any size of batches."""
    images, domain = images_and_labels()
    batches = chunks(images, domain, [8, 10, 6])
    once = calibrate(small(), batches, NAMES)
    again = calibrate(small(), data.draw(st.permutations(batches)), NAMES)
    order = torch.tensor(data.draw(st.permutations(range(24))))
    size = data.draw(st.integers(1, 24))
    shuffled = calibrate(small(), list(zip(images[order].split(size), domain[order].split(size), strict=True)), NAMES)
    assert once.images == again.images == shuffled.images == (12, 12)
    for key in ("mean", "var"):
        for name, table in getattr(once, key).items():
            torch.testing.assert_close(getattr(again, key)[name], table, rtol=1e-4, atol=1e-5)
            if name == "1":
                torch.testing.assert_close(getattr(shuffled, key)[name], table, rtol=1e-4, atol=1e-5)


def test_threads_and_repetition_do_not_matter_and_parameters_stay() -> None:
    """One thread and two, and the same images twice, give the same; learned numbers stay bit for bit."""
    images, domain = images_and_labels()
    network = small()
    before = copy.deepcopy(network.state_dict())
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(calibrate(network, [(images, domain)], NAMES))
    finally:
        torch.set_num_threads(threads)
    calibrated = install(network, found[0])
    found.append(calibrate(calibrated, [(images, domain)], NAMES))  # idempotent
    for other in found[1:]:
        for name in LAYERS:
            torch.testing.assert_close(other.mean[name], found[0].mean[name], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(other.var[name], found[0].var[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    parameters = dict(calibrated.named_parameters())
    assert all(torch.equal(parameters[key], value) for key, value in network.named_parameters())


def test_calibration_on_one_batch_computes_what_the_batch_does() -> None:
    """The oracle of AdaBN and of Benz et al.: evaluation is what the batch computes, and no image needs the others."""
    images, domain = images_and_labels()
    network = small()
    calibrated = Given(install(network, calibrate(network, [(images, domain)], NAMES)))
    with torch.inference_mode():
        for row in (0, 1):
            own = images[domain == row]
            together = copy.deepcopy(network)
            for name in LAYERS:
                together.get_submodule(name).train()
            torch.testing.assert_close(calibrated(own, row), together(own), rtol=1e-3, atol=1e-3)
            one_by_one = torch.cat([calibrated(image[None], row) for image in own])
            torch.testing.assert_close(calibrated(own, row), one_by_one, rtol=1e-5, atol=1e-5)
            part = torch.cat([together(half) for half in own.split(6)])
            assert not torch.allclose(part, together(own), atol=0.1)  # Nado's would need them


def test_later_layers_converge_as_batches_grow() -> None:
    """The size of batches does not change the first layer; the others see what was normalized by a batch."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(256, 3, 16, 8, generator=generator)
    images += torch.randn(256, 3, 1, 1, generator=generator)
    domain = torch.zeros(256, dtype=torch.int64)
    whole = calibrate(small(), [(images, domain)], ["a"])
    far = []
    for size in (4, 16, 64):
        found = calibrate(small(), list(zip(images.split(size), domain.split(size), strict=True)), ["a"])
        difference = found.diff(whole)
        assert float(difference["1"]) < 1e-3
        far.append(float(difference["9"]))
    assert far == sorted(far, reverse=True)
    assert far[-1] < 0.1 < far[0]


@settings(max_examples=20, deadline=None)
@hypothesis_given(data=st.data())
def test_reading_the_kernel_is_measuring_the_input(data) -> None:
    """What BatchNorm computes is what the input has, for batches of one or two domains and for single images."""
    images, domain = images_and_labels()
    order = torch.tensor(data.draw(st.permutations(range(24))))
    cuts = sorted(data.draw(st.sets(st.integers(1, 23), max_size=4)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 24], strict=True)]
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3)).eval()
    profiles = calibrate(network, chunks(images[order], domain[order], sizes), NAMES)
    whole = pool(*moments(images), domain, 2)
    torch.testing.assert_close(profiles.mean["0"], whole.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(profiles.var["0"], whole.var, rtol=1e-5, atol=1e-5)
    unbiased = torch.stack([images[domain == row].var((0, 2, 3)) for row in range(2)])
    assert not torch.equal(profiles.var["0"], unbiased)
    assert profiles.images == (12, 12)
