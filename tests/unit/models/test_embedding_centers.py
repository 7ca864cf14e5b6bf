"""Centers as the last step of a network: subtracted by domain, kept in files, part of the fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from helpers.small_checkpoints import CAMERAS, DOMAIN, IMAGES, camera_network, plain_network, save_network
from reid.errors import ConditionError, WeightsError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.embedding_centers import EmbeddingCenters
from reid.norm import Profiles, calibrate
from reid.norm.site_cohort import SiteCohort, join_cohorts

LENGTH = 128


def centers_of(count: int = 2, length: int = LENGTH) -> torch.Tensor:
    return 0.05 * torch.randn(count, length, generator=torch.Generator().manual_seed(3))


def profiles(weights: str, names: tuple[str, ...] = CAMERAS, length: int = LENGTH) -> Profiles:
    levels = ("centering",) * len(names)
    return Profiles(
        names, (9,) * len(names), {}, {}, weights=weights, centers=centers_of(len(names), length), levels=levels
    )


@pytest.fixture
def plain(tmp_path: Path) -> Checkpoint:
    return load_checkpoint(save_network(tmp_path, plain_network()))


@pytest.fixture
def known(tmp_path: Path) -> Checkpoint:
    return load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))


def expected(checkpoint: Checkpoint, domain: torch.Tensor | None, flip: bool = False) -> torch.Tensor:
    """Subtract by hand what each image's camera has."""
    before = (checkpoint.with_flip() if flip else checkpoint).embed(IMAGES, domain)
    return functional.normalize(before - centers_of()[DOMAIN])


def test_a_plain_network_subtracts_the_center_of_each_camera(plain: Checkpoint) -> None:
    new = plain.with_profiles(profiles(plain.fingerprint))
    assert (new.domain_fields, new.domains, new.has_statistics) == (("camera",), CAMERAS, False)
    torch.testing.assert_close(new.embed(IMAGES, DOMAIN), expected(plain, None))
    torch.testing.assert_close(new.with_flip().embed(IMAGES, DOMAIN), expected(plain, None, flip=True))
    with pytest.raises(AssertionError):  # the wrong variant: one center for all
        torch.testing.assert_close(new.embed(IMAGES, 0), expected(plain, None))
    with pytest.raises(ConditionError):
        new.embed(IMAGES)
    with pytest.raises(ConditionError):
        new.embed(IMAGES, -1)


def test_centers_go_with_statistics(known: Checkpoint) -> None:
    new = known.with_profiles(profiles(known.fingerprint))
    torch.testing.assert_close(new.embed(IMAGES, DOMAIN), expected(known, DOMAIN))
    assert new.has_statistics
    one = known.with_profiles(profiles(known.fingerprint, ("a2",)))  # the other camera stays as it is
    assert torch.equal(one.embed(IMAGES, 0), known.embed(IMAGES, 0))
    assert not torch.equal(one.embed(IMAGES, 1), known.embed(IMAGES, 1))


def test_an_unknown_camera_gets_the_mean_of_all(plain: Checkpoint) -> None:
    new = plain.with_profiles(profiles(plain.fingerprint)).with_unseen_camera_policy("nearest")
    by_hand = functional.normalize(plain.embed(IMAGES) - centers_of().mean(0))
    torch.testing.assert_close(new.embed(IMAGES, -1), by_hand)
    added = plain.with_profiles(profiles(plain.fingerprint)).with_domains(["b1"])
    assert added.domains == (*CAMERAS, "b1")
    torch.testing.assert_close(added.embed(IMAGES, 2), by_hand)


@pytest.mark.parametrize("kind", ["plain", "known"])
def test_they_are_saved_and_belong_to_the_fingerprint(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(kind)
    new = checkpoint.with_profiles(profiles(checkpoint.fingerprint))
    other = checkpoint.with_profiles(replace(profiles(checkpoint.fingerprint), centers=centers_of() * 2))
    assert len({new.fingerprint, other.fingerprint, checkpoint.fingerprint}) == 3
    assert new.weights == checkpoint.weights
    assert new.extra["camera levels"] == "centering"
    new.save(tmp_path / "again.safetensors")
    again = load_checkpoint(tmp_path / "again.safetensors")
    assert (again.fingerprint, again.domains, again.domain_fields) == (new.fingerprint, new.domains, new.domain_fields)
    assert (again.weights, again.extra) == (new.weights, new.extra)
    assert torch.equal(again.embed(IMAGES, DOMAIN), new.embed(IMAGES, DOMAIN))


def test_later_profiles_replace_cameras_and_add_others(plain: Checkpoint) -> None:
    first = plain.with_profiles(profiles(plain.fingerprint))
    later = first.with_profiles(replace(profiles(plain.fingerprint, ("a2", "b1")), centers=centers_of() * 3))
    assert later.domains == ("a1", "a2", "b1")
    assert later.centers is not None
    torch.testing.assert_close(later.centers.vectors, torch.cat([centers_of()[:1], centers_of() * 3]))


def statistics_of(checkpoint: Checkpoint, names: tuple[str, ...]) -> Profiles:
    batches = [(2 * IMAGES, torch.arange(len(IMAGES)) % len(names))]
    return calibrate(checkpoint.network, batches, names, weights=checkpoint.weights, domain_fields=("camera",))


def test_statistics_without_centers_end_the_centering_of_their_cameras(plain: Checkpoint) -> None:
    centered = plain.with_profiles(profiles(plain.fingerprint))
    both = statistics_of(plain, CAMERAS)
    new = centered.with_profiles(both)
    assert new.fingerprint == plain.with_profiles(both).fingerprint
    assert torch.equal(new.embed(IMAGES, DOMAIN), plain.with_profiles(both).embed(IMAGES, DOMAIN))
    assert (centered.extra["camera levels"], new.extra.get("camera levels")) == ("centering", None)


def test_cameras_without_centers_leave_nothing_behind(known: Checkpoint) -> None:
    names = ("b1", "b2")
    new = known.with_profiles(statistics_of(known, names))
    centered = new.with_profiles(profiles(new.weights, names))  # the cameras of the network itself are not centered
    assert centered.with_profiles(statistics_of(known, names)).fingerprint == new.fingerprint


def test_statistics_of_one_camera_leave_the_centers_of_others(known: Checkpoint) -> None:
    centered, one = known.with_profiles(profiles(known.fingerprint)), statistics_of(known, CAMERAS[1:])
    new = centered.with_profiles(one)
    assert torch.equal(new.embed(IMAGES, 0), centered.embed(IMAGES, 0))
    assert torch.equal(new.embed(IMAGES, 1), known.with_profiles(one).embed(IMAGES, 1))
    cohort = SiteCohort(CAMERAS, CAMERAS, torch.eye(2))
    left = join_cohorts(cohort, None, stale=CAMERAS[1:])
    assert left is not None
    assert left.domains == CAMERAS[:1]


def test_centers_of_another_network_are_refused(plain: Checkpoint) -> None:
    short = plain.with_profiles(profiles("", length=5))
    with pytest.raises(WeightsError, match="centers of 5 numbers"):
        short.embed(IMAGES, DOMAIN)
    with pytest.raises(WeightsError, match="calibrate again"):
        plain.with_profiles(profiles("0123456789abcdef"))
    with pytest.raises(WeightsError, match="two networks"):
        plain.with_profiles(profiles("")).with_profiles(profiles("", ("a2",), length=5))


def test_a_center_of_zeros_changes_no_bit() -> None:
    centers = EmbeddingCenters(("camera",), CAMERAS, torch.stack([torch.zeros(LENGTH), centers_of()[1]]))
    vectors = functional.normalize(torch.randn(4, LENGTH))
    moved = centers.subtract(vectors, DOMAIN)
    assert torch.equal(moved[DOMAIN == 0], vectors[DOMAIN == 0])
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(4))
