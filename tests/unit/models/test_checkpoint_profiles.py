"""Checkpoints with other statistics, with unmeasured domains, and with mirror images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.small_checkpoints import (
    CAMERAS,
    DOMAIN,
    IMAGES,
    TRANSFORM,
    camera_network,
    plain_network,
    save_network,
)
from reid.errors import WeightsError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.profile_checks import MEASURED, measured_dates
from reid.norm import Given, Profiles, calibrate


class TestProfiles:
    """Statistics of new cameras put into a checkpoint."""

    def profiles(
        self, checkpoint: Checkpoint, names: tuple[str, ...], domain_fields: tuple[str, ...] = ("camera",)
    ) -> Profiles:
        images = torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(2)) * 2
        batches = [(images, torch.arange(8) % len(names))]
        return calibrate(
            checkpoint.network, batches, names, weights=checkpoint.fingerprint, domain_fields=domain_fields
        )

    def test_a_plain_network_learns_cameras(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, plain_network()))
        before = checkpoint.embed(IMAGES)
        new = checkpoint.with_profiles(self.profiles(checkpoint, ("b1", "b2")))
        assert (new.domain_fields, new.domains) == (("camera",), ("b1", "b2"))
        assert new.fingerprint != checkpoint.fingerprint == new.weights
        assert not torch.equal(new.embed(IMAGES, 0), new.embed(IMAGES, 1))
        assert torch.equal(checkpoint.embed(IMAGES), before)
        kept = {key: text for key, text in new.extra.items() if key != MEASURED}
        assert (new.source, kept, new.transform) == (checkpoint.source, checkpoint.extra, TRANSFORM)

    def test_known_cameras_stay_and_profiles_add_up(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))
        first, second = self.profiles(checkpoint, ("b1",)), self.profiles(checkpoint, ("c1", "c2"))
        both = checkpoint.with_profiles(first).with_profiles(second)
        assert both.domains == (*CAMERAS, "b1", "c1", "c2")
        torch.testing.assert_close(both.embed(IMAGES, DOMAIN), checkpoint.embed(IMAGES, DOMAIN))
        assert len({checkpoint.fingerprint, checkpoint.with_profiles(first).fingerprint, both.fingerprint}) == 3

    def test_it_says_when_each_camera_was_measured(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))
        assert measured_dates(checkpoint.extra) == {}
        early, late = "2026-03-02T08:00:00+00:00", "2026-04-01T08:00:00+00:00"
        first = replace(self.profiles(checkpoint, ("b1", "b2")), date=early)
        second = replace(self.profiles(checkpoint, ("b2", "c1")), date=late)
        new = checkpoint.with_profiles(first).with_profiles(second)
        new.save(tmp_path / "new.safetensors")
        again = load_checkpoint(tmp_path / "new.safetensors")
        assert measured_dates(again.extra) == {"b1": early, "b2": late, "c1": late}
        other = checkpoint.with_profiles(replace(first, date=late)).with_profiles(second)
        assert again.fingerprint == new.fingerprint == other.fingerprint, "dates change no embedding"
        undated = checkpoint.with_profiles(replace(first, date=""))
        assert MEASURED not in undated.extra
        with pytest.raises(WeightsError):
            measured_dates({MEASURED: "{"})

    def test_it_can_be_saved_and_comes_back(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, plain_network()))
        new = checkpoint.with_profiles(self.profiles(checkpoint, ("b1", "b2")))
        again = load_checkpoint(save_network(tmp_path, new.network, new.domain_fields, new.domains))
        assert again.fingerprint == new.fingerprint
        assert torch.equal(again.embed(IMAGES, DOMAIN), new.embed(IMAGES, DOMAIN))

    def test_profiles_of_other_weights_are_refused(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, plain_network()))
        unknown_domain = replace(self.profiles(checkpoint, ("b1",)), weights="0123456789abcdef")
        with pytest.raises(WeightsError, match="0123456789abcdef"):
            checkpoint.with_profiles(unknown_domain)

    def test_profiles_with_other_domain_fields_are_refused(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))
        with pytest.raises(WeightsError, match=r"by camera, .* by category/camera"):
            checkpoint.with_profiles(self.profiles(checkpoint, ("b1",), ("category", "camera")))


class TestUnmeasuredDomains:
    """Domains that nobody measured get the mixture of all known statistics."""

    def test_known_domains_stay_and_new_ones_get_the_mixture(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))
        new = checkpoint.with_domains(["b1", "b2"])
        assert (new.domain_fields, new.domains, new.weights) == (
            ("camera",),
            (*CAMERAS, "b1", "b2"),
            checkpoint.weights,
        )
        assert new.fingerprint != checkpoint.fingerprint
        torch.testing.assert_close(new.embed(IMAGES, DOMAIN), checkpoint.embed(IMAGES, DOMAIN))
        first = new.network.get_submodule("backbone.conv1.bn").running_mean
        torch.testing.assert_close(first[2], first[:2].mean(0))

    def test_it_can_be_saved_and_embeds_the_same(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS)).with_domains(
            ["b1"]
        )
        checkpoint.save(tmp_path / "again.safetensors")
        again = load_checkpoint(tmp_path / "again.safetensors")
        assert (again.fingerprint, again.domains, again.extra) == (
            checkpoint.fingerprint,
            checkpoint.domains,
            checkpoint.extra,
        )
        assert torch.equal(again.embed(IMAGES, 2), checkpoint.embed(IMAGES, 2))


def flipped_by_hand(network: nn.Module, domain: Tensor | None) -> Tensor:
    """The mean of two unit vectors, one image at a time, with each column of pixels moved by hand."""
    rows = []
    for i in range(len(IMAGES)):
        image = IMAGES[i : i + 1]
        mirror = torch.stack([image[..., 31 - x] for x in range(32)], dim=-1)
        own_domain = None if domain is None else domain[i : i + 1]
        with torch.inference_mode():
            both = [Given(network)(view, own_domain)[0].double() for view in (image, mirror)]
        mean = (both[0] + both[1]) / 2
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("camera", [False, True])
def test_flip_averages_an_image_and_its_mirror_image(tmp_path: Path, camera: bool) -> None:
    """Catches: upside down, only the mirror image, the domain lost, no unit length, no flip."""
    network, domain = (camera_network(), DOMAIN) if camera else (plain_network(), None)
    naming = (("camera",), CAMERAS) if camera else ((), ())
    once = load_checkpoint(save_network(tmp_path, network, *naming))
    both = once.with_flip()
    expected = flipped_by_hand(network, domain)
    torch.testing.assert_close(both.embed(IMAGES, domain).double(), expected, atol=1e-5, rtol=0)
    wrong = {
        "none": once.embed(IMAGES, domain),
        "only the mirror image": once.embed(IMAGES.flip(-1), domain),
        "upside down": nn.functional.normalize(once.embed(IMAGES, domain) + once.embed(IMAGES.flip(-2), domain), dim=1),
        "not of unit length": (once.embed(IMAGES, domain) + once.embed(IMAGES.flip(-1), domain)) / 2,
    }
    for name, vectors in wrong.items():
        with pytest.raises(AssertionError):
            torch.testing.assert_close(vectors.double(), expected, atol=1e-5, rtol=0, msg=name)


def test_flip_has_a_fingerprint_and_stays_with_the_network(tmp_path: Path) -> None:
    once = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))
    both = once.with_flip()
    assert both.fingerprint != once.fingerprint
    assert both.weights == once.weights
    both.save(tmp_path / "flip.safetensors")
    again = load_checkpoint(tmp_path / "flip.safetensors")
    assert again.transform.flip
    assert again.fingerprint == both.fingerprint
    assert "flip" not in once.transform.to_dict()  # so files and fingerprints from before stay what they were
    assert again.with_domains(["a3"]).transform.flip
