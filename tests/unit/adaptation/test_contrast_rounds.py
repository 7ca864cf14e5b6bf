"""The rounds: bit-equal for a seed, after a kill, and whatever the identities say; the statistics of each camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.drawn_sites import draw_site
from helpers.small_checkpoints import plain_network, save_network
from reid.adaptation.adaptation_state import load_state, run_key, save_state, state_file
from reid.adaptation.contrast_rounds import ContrastRounds, RoundsState, Watch
from reid.adaptation.site_crops import SiteCrops, read_site
from reid.adaptation.site_network import SiteNetwork
from reid.errors import ConfigError, WeightsError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm import Given, camera_batchnorm, convert_norm
from reid.norm.convert import norm_layers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(save_network(tmp_path_factory.mktemp("weights"), plain_network()))


@pytest.fixture(scope="module")
def crops(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> SiteCrops:
    return read_site(draw_site(tmp_path_factory.mktemp("site"), people=8), checkpoint.transform, ("camera",))


class KilledError(Exception):
    """Stands for a kill."""


def rounds(checkpoint: Checkpoint, crops: SiteCrops, seed: int = 0) -> ContrastRounds:
    return ContrastRounds(SiteNetwork(checkpoint, crops), epochs=2, steps=1, seed=seed)


def run(checkpoint: Checkpoint, crops: SiteCrops, seed: int = 0) -> RoundsState:
    work = rounds(checkpoint, crops, seed)
    return work.run(work.first_state())


@pytest.fixture(scope="module")
def finished(checkpoint: Checkpoint, crops: SiteCrops) -> RoundsState:
    return run(checkpoint, crops)


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key


def test_a_seed_decides_everything(checkpoint: Checkpoint, crops: SiteCrops, finished: RoundsState) -> None:
    again, other = run(checkpoint, crops), run(checkpoint, crops, seed=1)
    assert_same(again.kept, finished.kept)
    assert again.history[1:] == finished.history[1:]
    assert any(not torch.equal(v, other.kept[k]) for k, v in finished.kept.items() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("saves", [1])
def test_a_killed_run_goes_on_to_the_same_numbers(
    checkpoint: Checkpoint, crops: SiteCrops, finished: RoundsState, saves: int, tmp_path: Path
) -> None:
    file, key, left = state_file(tmp_path / "w.safetensors"), run_key("f", crops.samples, {"seed": 0}), [saves]

    def save(state: RoundsState) -> None:
        save_state(file, key, state)
        left[0] -= 1
        if not left[0]:
            raise KilledError

    work = rounds(checkpoint, crops)
    with pytest.raises(KilledError):
        work.run(work.first_state(), Watch(save=save))
    assert file.stat().st_mode & 0o777 == 0o600
    state = load_state(file, key)
    assert state is not None
    assert state.epoch == saves
    resumed = rounds(checkpoint, crops).run(state)
    assert_same(resumed.kept, finished.kept)
    assert resumed.history[1:] == finished.history[1:]
    with pytest.raises(ConfigError, match="unfinished"):
        load_state(file, run_key("f", crops.samples, {"seed": 1}))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="delete it"):
        load_state(file, key)


def test_the_result_has_the_statistics_of_each_camera(checkpoint: Checkpoint, crops: SiteCrops) -> None:
    """The oracle: run the crops of each camera through the network as one batch, and look at the first norm's input."""
    site = SiteNetwork(checkpoint, crops)
    site.measure()
    name, layer = next(iter(norm_layers(site.network).items()))
    for row, camera in enumerate(crops.domains):
        inputs: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        with torch.inference_mode():
            Given(site.network)(site.images(np.flatnonzero(crops.cameras == row)), row)
        hook.remove()
        expected = inputs[0].mean((0, 2, 3))
        torch.testing.assert_close(layer.running_mean[row], expected, rtol=1e-4, atol=1e-5, msg=f"{name} of {camera}")


def test_each_camera_is_normalized_by_its_own_part_of_the_batch(checkpoint: Checkpoint, crops: SiteCrops) -> None:
    site = SiteNetwork(checkpoint, crops)
    site.network.train()
    rows = np.concatenate([np.flatnonzero(crops.cameras == camera)[:6] for camera in (0, 1)])
    together = site.run(site.images(rows), crops.domain[torch.from_numpy(rows)])
    each = [
        site.run(site.images(rows[part]), crops.domain[torch.from_numpy(rows[part])])
        for part in (slice(6), slice(6, 12))
    ]
    torch.testing.assert_close(together, torch.cat(each), rtol=1e-4, atol=1e-5)
    mixed = convert_norm(checkpoint.network, camera_batchnorm(["all"])).train()
    blind = Given(mixed)(site.images(rows), 0)
    assert (blind - together).abs().max() > 1e-2  # plain batch normalization of both cameras gives something else
