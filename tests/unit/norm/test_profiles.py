"""Merging, comparing and shrinking profiles is compared with measuring the images themselves.

The wrong profiles that these tests catch, each refused at the end: merging by the average of two measurements,
or without the variance between them; shrinking by pixels, without the variance between the means, or toward the mean
of the cameras whatever their numbers of images; a difference that is not measured in deviations.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reid.errors import DataError, WeightsError
from reid.norm import Profiles, calibrate, camera_batchnorm, convert_norm, install
from reid.norm.domain_policy import DomainPolicy

NAMES = ("a1", "a2", "a3")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))


def crops(count: int, seed: int, gain: float = 1.0) -> Tensor:
    return torch.randn(count, 3, 8, 6, generator=torch.Generator().manual_seed(seed)) * gain + gain


def measure(images: Tensor, domain: Tensor, names: tuple[str, ...] = NAMES) -> Profiles:
    return calibrate(network(), [(images, domain)], names)


def three() -> tuple[Tensor, Tensor, Profiles]:
    images = torch.cat([crops(12, 1), crops(8, 2, 2.0), crops(3, 3, 0.5)])
    domain = torch.tensor([0] * 12 + [1] * 8 + [2] * 3)
    return images, domain, measure(images, domain)


def test_first_layer_profiles_of_two_halves_merge_into_those_of_the_whole() -> None:
    images, domain, whole = three()
    half = torch.arange(len(images)) % 2 == 0
    names = ("a1", "a2")  # the third has too few images to be halved
    chosen = domain < 2
    parts = [measure(images[chosen & side], domain[chosen & side], names) for side in (half, ~half)]
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
    assert merged.domains == NAMES
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
    with pytest.raises(DataError, match=r"a1.*a2"):
        whole.select(["a1"]).diff(whole.select(["a2"]))


def test_drift_is_larger_for_a_changed_camera_than_for_another_sample() -> None:
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


def test_shrinking_toward_the_network_is_the_published_line(tmp_path: Path) -> None:
    """Schneider et al. 2020, equation by equation; the variance between the means and one share for all are wrong."""
    _, _, own = three()
    source = replace(own, images=(1, 1, 1), mean={k: m + 1 for k, m in own.mean.items()},
                     var={k: 3 * v for k, v in own.var.items()})  # fmt: skip
    drawn = own.towards(source, 4.0)
    for layer in own.mean:
        for row, images in enumerate((12, 8, 3)):
            for channel in range(own.mean[layer].shape[1]):
                for table in ("mean", "var"):
                    ours, theirs = (float(getattr(p, table)[layer][row, channel]) for p in (own, source))
                    expected = images / (images + 4) * ours + 4 / (images + 4) * theirs
                    assert float(getattr(drawn, table)[layer][row, channel]) == pytest.approx(expected, rel=1e-5)
    share = torch.tensor([[12 / 16], [8 / 12], [3 / 7]])
    mixture = source.statistics("1").mix_with(own.statistics("1"), share)  # type: ignore[arg-type]
    assert not torch.allclose(drawn.var["1"], mixture.var)  # the wrong variants
    assert not torch.allclose(drawn.mean["1"], source.statistics("1").interpolate(own.statistics("1"), 0.5).mean)  # type: ignore[arg-type]
    assert (own.towards(source, 0.0), drawn.images, drawn.domains) == (own, own.images, own.domains)
    assert (own.prior, drawn.prior, own.shrunk(4.0).prior) == ("", "4 of the network", "4 of the cameras")
    drawn.save(tmp_path / "p.safetensors")
    assert Profiles.load(tmp_path / "p.safetensors").prior == "4 of the network"
    assert drawn.merge(own.shrunk(4.0)).prior == "4 of the cameras or 4 of the network"
    with pytest.raises(WeightsError, match="abc"):
        own.towards(replace(source, weights="abc"), 4.0)


def test_covariances_are_shrunk_like_variances() -> None:
    whitened = convert_norm(network(), DomainPolicy("camera", NAMES, system="dwt"))
    images, domain, _ = three()
    own = calibrate(whitened, [(images, domain)], NAMES)
    source = replace(own, cov={k: 2 * c for k, c in own.cov.items()}, mean={k: m + 1 for k, m in own.mean.items()})
    drawn = own.towards(source, 8.0)
    for row, images_seen in enumerate((12, 8, 3)):
        share = images_seen / (images_seen + 8)
        assert torch.allclose(drawn.cov["1"][row], (share + 2 * (1 - share)) * own.cov["1"][row], atol=1e-5)
        assert torch.allclose(drawn.mean["1"][row], own.mean["1"][row] + 1 - share, atol=1e-5)
    with pytest.raises(WeightsError, match="covariances"):
        own.towards(replace(source, cov={}), 8.0)


def test_a_single_image_after_shrinking_has_a_variance() -> None:
    images, domain, _ = three()
    images = torch.cat([images[:12], torch.ones_like(images[:1])])  # a white wall
    few = calibrate(network(), [(images, domain[:13])], NAMES[:2], minimum=1)
    assert few.images == (12, 1)
    assert float(few.var["1"][1].max()) < 1e-6
    assert float(few.shrunk(8.0).var["1"][1].min()) > 0.01


def test_whitening_layers_keep_their_covariances(tmp_path: Path) -> None:
    whitened = convert_norm(network(), DomainPolicy("camera", NAMES, system="dwt"))
    images, domain, _ = three()
    profiles = calibrate(whitened, [(images, domain)], NAMES)
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
    with pytest.raises(WeightsError, match="covariances"):
        install(whitened, replace(profiles, cov={}))


def test_profiles_of_other_weights_do_not_go_together() -> None:
    _, _, whole = three()
    with pytest.raises(WeightsError, match="abc"):
        whole.merge(replace(whole, weights="abc"))
    with pytest.raises(DataError, match='"b9"'):
        whole.select(["b9"])


def test_damage_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """Every byte of the header and some numbers are changed, one at a time: the file is refused or read as it was."""
    path, harmed = tmp_path / "whole.safetensors", tmp_path / "harmed.safetensors"
    three()[2].save(path)
    whole, written = Profiles.load(path), path.read_bytes()
    start = written.index(b"__metadata__")
    text = range(start, written.index(b"}}", start) if b"}}" in written[start:] else len(written))
    read = 0
    for position in (*text, *range(len(written) - 40, len(written))):
        harmed.write_bytes(written[:position] + bytes([written[position] ^ 1]) + written[position + 1 :])
        try:
            found = Profiles.load(harmed)
        except WeightsError:
            continue
        read += 1
        assert (found.domains, found.images, found.domain_fields) == (whole.domains, whole.images, whole.domain_fields)
    assert read < 10  # the name "check" itself: such a file is as good as one of before


def test_a_file_without_a_checksum_of_its_header_is_read(tmp_path: Path) -> None:
    path, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    three()[2].save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    del metadata["check"]
    save_file(tensors, old, metadata)
    assert Profiles.load(old).domains == NAMES
    save_file(tensors, old, {**metadata, "profiles": "[]"})
    with pytest.raises(WeightsError, match=r"old.safetensors.*header"):
        Profiles.load(old)


# What the comparisons with the images refuse.


def first_layer_inputs(images: Tensor) -> Tensor:
    with torch.no_grad():
        maps: Tensor = network()[0](images)
    return maps


def check_merge(merge) -> None:
    """Compare two unequal parts of one camera, the second brighter, with all its images."""
    images = torch.cat([crops(12, 1), crops(4, 2, 3.0)])
    parts = [measure(part, torch.zeros(len(part), dtype=torch.int64), ("a1",)) for part in images.split([12, 4])]
    merged, whole = merge(*parts), first_layer_inputs(images)
    torch.testing.assert_close(merged.mean["1"][0], whole.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged.var["1"][0], whole.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    assert merged.images == (16,)


def wrong_merge(one: Profiles, other: Profiles, wrong: str) -> Profiles:
    share = 0.5 if wrong == "average" else 0.25
    mean = {k: (1 - share) * m + share * other.mean[k] for k, m in one.mean.items()}
    var = {k: (1 - share) * v + share * other.var[k] for k, v in one.var.items()}
    if wrong != "between lost":
        var = {k: v + share * (1 - share) * (one.mean[k] - other.mean[k]).square() for k, v in var.items()}
    return replace(one, mean=mean, var=var, images=(16,))


@pytest.mark.parametrize("wrong", ["average", "between lost"])
def test_wrong_merging_is_refused(wrong: str) -> None:
    check_merge(Profiles.merge)
    check_merge(lambda one, other: wrong_merge(one, other, ""))
    with pytest.raises(AssertionError):
        check_merge(lambda one, other: wrong_merge(one, other, wrong))


def check_shrinking(shrink) -> None:
    """Compare with weighted images: each camera has 6 images of all cameras among its own, in their proportions.

    23 images are 12 + 8 + 3, so 6 of them weigh 6/23 an image.
    """
    images, domain, whole = three()
    maps, found = first_layer_inputs(images), shrink(whole)
    for row in range(3):
        weights = (domain == row).float() + 6 / 23
        share = (weights / weights.sum())[:, None, None, None] / (maps.shape[2] * maps.shape[3])
        mean = (share * maps).sum((0, 2, 3))
        var = (share * (maps - mean[:, None, None]).square()).sum((0, 2, 3))
        torch.testing.assert_close(found.mean["1"][row], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.var["1"][row], var, rtol=1e-4, atol=1e-5)


def wrong_shrinking(whole: Profiles, wrong: str) -> Profiles:
    stats = whole.statistics("1")
    everything = stats.mix(torch.full((1, 3), 1 / 3)) if wrong == "cameras count alike" else stats.merge_all()
    number = 6 / 24 if wrong == "pixels" else 6  # maps of 24 positions
    share = (number / (stats.mass + number))[:, None]
    parent = type(stats)(everything.mean.expand(3, -1), everything.var.expand(3, -1), stats.mass)
    mixed = (stats.interpolate if wrong == "between lost" else stats.mix_with)(parent, share)
    return replace(whole, mean=whole.mean | {"1": mixed.mean}, var=whole.var | {"1": mixed.var})


@pytest.mark.parametrize("wrong", ["pixels", "cameras count alike", "between lost"])
def test_wrong_shrinking_is_refused(wrong: str) -> None:
    check_shrinking(lambda whole: whole.shrunk(6.0))
    check_shrinking(lambda whole: wrong_shrinking(whole, ""))
    with pytest.raises(AssertionError):
        check_shrinking(lambda whole: wrong_shrinking(whole, wrong))


def check_difference(difference) -> None:
    """A move by k deviations in every channel is the difference k, for all scales and numbers of channels."""
    _, _, whole = three()
    for k in (0.0, 0.5, 2.0):
        moved = replace(whole, mean={name: m + k * whole.var[name].sqrt() for name, m in whole.mean.items()})
        for value in difference(moved, whole).values():
            torch.testing.assert_close(value, torch.full((3,), k), rtol=1e-3, atol=1e-4)


def divided(divide):
    """Make a difference that divides the squared Wasserstein distance of a layer by something else."""
    return lambda a, b: {k: divide(a.statistics(k).wasserstein(b.statistics(k)), b.var[k]) for k in a.mean}


DIFFERENCES = {
    "only the distance": divided(lambda squared, _: squared.sqrt()),
    "squared": divided(lambda squared, var: squared / var.sum(1)),
    "over channels": divided(lambda squared, var: (squared / len(var[0])).sqrt()),
}


@pytest.mark.parametrize("wrong", DIFFERENCES)
def test_wrong_differences_are_refused(wrong: str) -> None:
    check_difference(Profiles.diff)
    with pytest.raises(AssertionError):
        check_difference(DIFFERENCES[wrong])


def test_a_camera_of_a_resnet50_takes_less_than_a_quarter_megabyte(tmp_path: Path) -> None:
    """A ResNet-50 has 26,560 channels and a neck of 2,048, with a mean and a variance for each."""
    channels = {f"layer{i}": width for i, width in enumerate([26560, 2048])}
    sizes = []
    for count in (1, 3):
        names = tuple(f"camera {i}" for i in range(count))
        tables = {key: {k: torch.rand(count, w) for k, w in channels.items()} for key in ("mean", "var")}
        profiles = Profiles(names, (40,) * count, **tables, weights="0123abcd", date="2026-01-01T00:00:00+00:00")
        profiles.save(tmp_path / f"{count}.safetensors")
        sizes.append((tmp_path / f"{count}.safetensors").stat().st_size)
        again = Profiles.load(tmp_path / f"{count}.safetensors")
        assert (again.images, again.date, again.weights) == (profiles.images, profiles.date, profiles.weights)
    each = (sizes[1] - sizes[0]) / 2
    assert 0.2e6 < each < 0.25e6
    assert sizes[0] - each < 2e3
