"""Centers of several profiles are combined, or refused where the combination would be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reid.errors import WeightsError
from reid.models.calibration import replace_domains
from reid.norm import Profiles

VECTORS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])


def profiles(names: tuple[str, ...], images: tuple[int, ...], *, statistics: bool = False) -> Profiles:
    count = len(names)
    tables = ({"bn": torch.zeros(count, 3)}, {"bn": torch.ones(count, 3)}) if statistics else ({}, {})
    return Profiles(names, images, *tables, weights="f00d", centers=VECTORS[:count], levels=("centering",) * count)


def test_centers_of_other_images_are_averaged_by_their_numbers() -> None:
    first, second = profiles(("door", "yard"), (30, 5)), profiles(("yard", "hall"), (15, 7))
    merged = first.merge(second)
    assert merged.domains == ("door", "yard", "hall")
    assert merged.centers is not None
    yard = (5 * VECTORS[1] + 15 * VECTORS[0]) / 20
    torch.testing.assert_close(merged.centers, torch.stack([VECTORS[0], yard, VECTORS[1]]))
    assert merged.levels == ("centering",) * 3
    replaced = replace_domains(first, second)
    assert replaced.centers is not None
    assert torch.equal(replaced.centers, VECTORS[[0, 0, 1]])


def test_a_center_that_depends_on_statistics_is_not_averaged() -> None:
    first, second = (profiles(("door",), (30,), statistics=True) for _ in range(2))
    with pytest.raises(WeightsError, match="--replace"):
        first.merge(second)
    assert replace_domains(first, second).centers is not None
    other = profiles(("yard",), (4,), statistics=True)
    assert first.merge(other).domains == ("door", "yard")


def test_profiles_without_centers_add_cameras_that_are_not_centered() -> None:
    first, second = profiles(("door",), (30,)), replace(profiles(("yard",), (3,)), centers=None, levels=("none",))
    for merged in (first.merge(second), replace_domains(first, second)):
        assert merged.centers is not None
        assert torch.equal(merged.centers, torch.stack([VECTORS[0], torch.zeros(2)]))
        assert merged.levels == ("centering", "none")


def test_centers_of_two_networks_are_refused() -> None:
    long = replace(profiles(("yard",), (3,)), centers=torch.zeros(1, 9))
    with pytest.raises(WeightsError, match="centers of 2 and 9 numbers"):
        profiles(("door",), (3,)).merge(long)


def test_selecting_and_shrinking_keep_what_still_holds() -> None:
    both = profiles(("door", "yard"), (30, 5), statistics=True)
    chosen = both.select(["yard"]).centers
    assert chosen is not None
    assert torch.equal(chosen, VECTORS[1:2])
    assert both.shrunk(8.0).centers is None  # other statistics have other centers
    assert both.towards(both, 8.0).centers is None


def test_a_file_without_the_new_fields_is_that_of_version_0_1_0(tmp_path: Path) -> None:
    plain = replace(profiles(("door",), (3,), statistics=True), centers=None, levels=())
    plain.save(tmp_path / "p.safetensors")
    content = (tmp_path / "p.safetensors").read_bytes()
    assert b"centers" not in content
    assert b"levels" not in content
    assert b"score_norm" not in content
    assert Profiles.load(tmp_path / "p.safetensors").levels == ()
