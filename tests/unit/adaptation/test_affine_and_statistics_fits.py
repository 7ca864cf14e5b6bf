"""The methods entropy and matching: their formulas, what they change, and their guards."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from helpers.drawn_sites import draw_site
from helpers.small_checkpoints import plain_network, save_network
from reid.adaptation import entropy, matching
from reid.adaptation.entropy import fit_entropy, neighbour_entropy
from reid.adaptation.matching import fit_statistics, frozen_norms, gaussian_divergence, information_loss
from reid.adaptation.site_crops import SiteCrops, read_site
from reid.adaptation.site_network import SiteNetwork
from reid.errors import ConfigError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm.specialised.tent import batch_norms


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(save_network(tmp_path_factory.mktemp("weights"), plain_network()))


@pytest.fixture(scope="module")
def crops(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> SiteCrops:
    samples = draw_site(tmp_path_factory.mktemp("site"), people=6, crops=3)
    return read_site(samples, checkpoint.transform, ("camera",))


@pytest.fixture
def site(checkpoint: Checkpoint, crops: SiteCrops) -> SiteNetwork:
    return SiteNetwork(checkpoint, crops)


def state(site: SiteNetwork) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in site.network.state_dict().items() if isinstance(v, torch.Tensor)}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_the_entropy_is_that_of_a_loop() -> None:
    random = np.random.default_rng(0)
    gallery = torch.nn.functional.normalize(torch.from_numpy(random.normal(size=(12, 4))), dim=1)
    found = neighbour_entropy(gallery[:5], gallery, torch.arange(5), neighbours=3)
    for row in range(5):
        scores = sorted((float(gallery[row] @ gallery[j]) / 0.05 for j in range(12) if j != row), reverse=True)[:3]
        total = sum(math.exp(score) for score in scores)
        shares = [math.exp(score) / total for score in scores]
        assert found[row].item() == pytest.approx(-sum(p * math.log(p) for p in shares if p > 0), abs=1e-6)


def test_the_divergence_is_that_of_torch() -> None:
    random = torch.Generator().manual_seed(0)
    mean, other = torch.randn(2, 8, generator=random)
    var, stored = torch.rand(2, 8, generator=random) + 0.1
    expected = kl_divergence(Normal(mean, var.sqrt()), Normal(other, stored.sqrt())).mean()
    torch.testing.assert_close(gaussian_divergence(mean, var, other, stored), expected)


def test_information_rewards_clear_and_even_answers() -> None:
    clear, one, unsure = torch.eye(4) * 50, torch.eye(4)[[0, 0, 0, 0]] * 50, torch.zeros(4, 4)
    assert information_loss(clear).item() == pytest.approx(-math.log(4))
    assert information_loss(one).item() == pytest.approx(0, abs=1e-6)
    assert information_loss(unsure).item() == pytest.approx(0, abs=1e-6)


def test_entropy_changes_scales_and_shifts_only(site: SiteNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "RELIABLE", 1.0)
    monkeypatch.setattr(entropy, "COLLAPSED", 0.0)
    norms, before = set(batch_norms(site.network)), state(site)
    assert fit_entropy(site, epochs=1, seed=0) == 0
    different = {key for key in changed(before, state(site)) if "running" not in key}
    assert different
    assert all(key.rpartition(".")[0] in norms for key in different)


def test_a_collapsed_entropy_returns_to_the_start(site: SiteNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "COLLAPSED", 99.0)  # every step counts as a collapse
    before = state(site)
    assert fit_entropy(site, epochs=1, seed=0) > 0
    assert not {key for key in changed(before, state(site)) if "running" not in key}


def test_no_crop_with_a_high_entropy_counts(site: SiteNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "RELIABLE", 0.0)
    before = state(site)
    fit_entropy(site, epochs=1, seed=0)
    assert not {key for key in changed(before, state(site)) if "running" not in key}


def test_matching_keeps_the_last_stage_and_its_statistics(site: SiteNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "STEPS", 2)
    frozen, before = frozen_norms(site.network), state(site)
    fit_statistics(site, epochs=1, seed=0)
    different = changed(before, state(site))
    assert any(key.startswith("backbone.conv2") and key.endswith("weight") for key in different)
    stages = {name.rpartition(".")[0] or name for name in frozen}
    assert not [key for key in different if key.startswith((*frozen, *stages, "neck", "pooling"))]


def test_matching_brings_the_statistics_nearer(site: SiteNetwork) -> None:
    frozen = frozen_norms(site.network)
    rows = np.flatnonzero(site.crops.cameras == 0)

    def distance() -> float:
        matching._set_mode(site.network, frozen)
        with matching._watched(frozen, 0) as found, torch.no_grad():
            site.run(site.images(rows), site.crops.domain[torch.from_numpy(rows)])
        return float(torch.stack(found).mean())

    before = distance()
    fit_statistics(site, epochs=1, seed=0)
    assert distance() < before


def test_a_network_whose_norms_are_all_in_one_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two stages"):
        frozen_norms(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
