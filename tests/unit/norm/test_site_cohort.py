"""Embeddings of crops of each camera, kept in profiles for normalized scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reid.errors import WeightsError
from reid.models.calibration import replace_domains
from reid.norm import Profiles
from reid.norm.site_cohort import SiteCohort, join_cohorts

VECTORS = torch.nn.functional.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
CAMERAS = ("person/door", "vehicle/door", "person/yard", "person/yard", "person/yard")
COHORT = SiteCohort(("door", "door", "yard", "yard", "yard"), CAMERAS, VECTORS)
PROFILES = Profiles(("door", "hall", "yard"), (9, 9, 9), {}, {}, weights="f00d", score_norm="csls", cohort=COHORT)


def test_a_file_keeps_it_for_each_domain(tmp_path: Path) -> None:
    PROFILES.save(tmp_path / "p.safetensors")
    again = Profiles.load(tmp_path / "p.safetensors").cohort
    assert again is not None
    assert (again.domains, again.cameras) == (COHORT.domains, COHORT.cameras)
    torch.testing.assert_close(again.vectors, VECTORS, atol=2e-3, rtol=0)
    torch.testing.assert_close(again.vectors.norm(dim=1), torch.ones(5))


def test_domains_are_selected_and_replaced() -> None:
    door = PROFILES.select(["door"]).cohort
    assert door is not None
    assert door.cameras == CAMERAS[:2]
    newer = replace(PROFILES.select(["door"]), cohort=SiteCohort(("door",), ("person/door",), VECTORS[4:]))
    for joined in (replace_domains(PROFILES, newer).cohort, join_cohorts(COHORT, newer.cohort)):
        assert joined is not None
        assert joined.cameras == (*CAMERAS[2:], "person/door")
        assert torch.equal(joined.vectors, torch.cat([VECTORS[2:], VECTORS[4:]]))
    assert join_cohorts(None, COHORT) is COHORT
    assert join_cohorts(COHORT, None) is COHORT


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    short = replace(PROFILES, domains=("door", "yard"), images=(9, 9))
    short.save(tmp_path / "p.safetensors")
    content = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(content[:-3] + b"abc")
    with pytest.raises(WeightsError, match="damaged"):
        Profiles.load(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        SiteCohort.unpacked(["door"], torch.zeros(1, 1, 6), [["person/door", "person/door"]])
