"""``slim_network``: the target is met, the small network learns, nothing is looked at that is not given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.drawn_sites import draw_site
from helpers.small_checkpoints import TRANSFORM, randomize_norms
from reid.data.loading import Progress
from reid.edge.pruning import METHODS, RECIPE, SlimmingPlan, SlimNetwork, slim_network
from reid.edge.slim_state import SlimState, StateFile
from reid.errors import ConfigError, DataError, WeightsError
from reid.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import camera_batchnorm, convert_norm
from reid.norm.convert import norm_layers
from reid.records import Sample
from reid.retrieval.embed import embed

CAMERAS = ("door", "yard")
PLAN = SlimmingPlan(0.5, candidates=3, epochs=2)
SHORT = SlimmingPlan(0.6, candidates=2, epochs=2)


@contextmanager
def bar(_title: str, _total: int) -> Iterator[Progress]:
    yield lambda _: None


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_site(tmp_path_factory.mktemp("site"), people=5, cameras=CAMERAS)


def checkpoint_of(folder: Path, cameras: tuple[str, ...] = ()) -> Checkpoint:
    torch.manual_seed(0)
    spec = NetworkSpec("resnet18_x0_25")
    network = randomize_norms(Embedder(spec))
    if cameras:
        network = randomize_norms(convert_norm(network, camera_batchnorm(cameras)))
    path = folder / "w.safetensors"
    save_checkpoint(path, network, spec, TRANSFORM, ("camera",) if cameras else (), cameras, {"seed": "3"})
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint_of(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, samples: list[Sample]) -> SlimNetwork:
    return slim_network(checkpoint, samples, replace(PLAN, scores_stale=True), bar)


@pytest.fixture(scope="module")
def whole_runs(checkpoint: Checkpoint, samples: list[Sample]) -> dict[str, SlimNetwork]:
    """The same short run by each method, never stopped."""
    return {name: slim_network(checkpoint, samples, replace(SHORT, method=name), bar) for name in METHODS}


def test_half_of_the_work_remains_and_training_brings_it_closer(found: SlimNetwork) -> None:
    assert found.multiply_adds[1] / found.multiply_adds[0] == pytest.approx(0.5, abs=0.01)
    assert found.parameters[1] < found.parameters[0]
    assert found.cosine[1] > found.cosine[0]
    assert len(found.scores) == len(found.stale_scores) == 3
    assert found.scores != found.stale_scores
    assert json.loads(found.checkpoint.extra[RECIPE])["target"] == 0.5


def test_the_written_file_works_by_itself(found: SlimNetwork, samples: list[Sample], tmp_path: Path) -> None:
    found.checkpoint.save(tmp_path / "small.safetensors")
    loaded = load_checkpoint(tmp_path / "small.safetensors", "resnet18_x0_25")
    assert loaded.fingerprint == found.checkpoint.fingerprint
    np.testing.assert_allclose(
        embed(loaded, samples).vectors, embed(found.checkpoint, samples).vectors, rtol=0, atol=1e-6
    )


def test_identities_are_not_looked_at(checkpoint: Checkpoint, samples: list[Sample], found: SlimNetwork) -> None:
    unlabelled = [Sample(one.path, camera=one.camera) for one in samples]
    again = slim_network(checkpoint, unlabelled, replace(PLAN, epochs=0), bar)
    assert again.scores == found.scores
    assert again.cosine[0] == found.cosine[0]


def test_a_network_with_cameras_keeps_statistics_of_each(samples: list[Sample], tmp_path: Path) -> None:
    whole = checkpoint_of(tmp_path, CAMERAS)
    found = slim_network(whole, samples, replace(SHORT, epochs=1), bar).checkpoint
    assert (found.domains, found.domain_fields) == (CAMERAS, ("camera",))
    means = [layer.running_mean for layer in norm_layers(found.network).values()]
    assert all(not torch.equal(mean[0], mean[1]) for mean in means)
    found.save(tmp_path / "small.safetensors")
    assert load_checkpoint(tmp_path / "small.safetensors").fingerprint == found.fingerprint


def test_cameras_that_the_network_does_not_know_are_measured(samples: list[Sample], tmp_path: Path) -> None:
    found = slim_network(checkpoint_of(tmp_path, ("gate", "hall")), samples, replace(PLAN, epochs=0), bar)
    assert found.checkpoint.domains == CAMERAS


def test_networks_with_a_linear_neck_also_lose_channels_of_their_last_map(
    samples: list[Sample], tmp_path: Path
) -> None:
    spec, path = NetworkSpec("resnet18_x0_25", neck="fc"), tmp_path / "w.safetensors"
    save_checkpoint(path, randomize_norms(Embedder(spec)), spec, TRANSFORM, (), (), {})
    found = slim_network(load_checkpoint(path), samples, replace(SHORT, epochs=1), bar)
    assert found.checkpoint.network.backbone.layer4[1].conv2.out_channels < 128
    assert found.cosine[1] > found.cosine[0]


def test_slimming_meets_the_target(whole_runs: dict[str, SlimNetwork]) -> None:
    found = whole_runs["slimming"]
    assert 0.4 < found.multiply_adds[1] / found.multiply_adds[0] <= 0.6
    assert found.scores == ()


def test_a_small_network_is_made_smaller_again(found: SlimNetwork, samples: list[Sample], tmp_path: Path) -> None:
    again = slim_network(found.checkpoint, samples, replace(PLAN, epochs=0), bar)
    assert again.multiply_adds[0] == found.multiply_adds[1]
    again.checkpoint.save(tmp_path / "w.safetensors")
    assert load_checkpoint(tmp_path / "w.safetensors").fingerprint == again.checkpoint.fingerprint


@pytest.mark.parametrize(("method", "stop"), [("search", 1), ("search", 5), ("search", 6), ("slimming", 1),
                                              ("slimming", 3), ("slimming", 5)])  # fmt: skip
def test_a_stopped_run_goes_on_to_the_same_network(
    checkpoint: Checkpoint, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    whole_runs: dict[str, SlimNetwork], method: str, stop: int,
) -> None:  # fmt: skip
    plan, state = replace(SHORT, method=method), tmp_path / "state"
    whole, save = whole_runs[method], StateFile.save
    saved = []

    def save_and_stop(self: StateFile, **changes: object) -> None:
        save(self, **changes)
        saved.append(changes)
        if len(saved) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(StateFile, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        slim_network(checkpoint, samples, plan, bar, state=state)
    monkeypatch.undo()
    again = slim_network(checkpoint, samples, plan, bar, state=state)
    assert again.checkpoint.fingerprint == whole.checkpoint.fingerprint
    assert again.to_json() == whole.to_json()
    with pytest.raises(ConfigError, match="settings"):
        slim_network(checkpoint, samples, replace(plan, seed=1), bar, state=state)


def test_what_cannot_be_done_is_refused(checkpoint: Checkpoint, samples: list[Sample], tmp_path: Path) -> None:
    for plan in (replace(PLAN, target=0.001), replace(PLAN, method="magic")):
        with pytest.raises(ConfigError):
            slim_network(checkpoint, samples, plan, bar)
    with pytest.raises(DataError, match="16"):
        slim_network(checkpoint, samples[:15], PLAN, bar)
    with pytest.raises(DataError, match="camera"):
        slim_network(checkpoint_of(tmp_path, CAMERAS), [replace_camera(one) for one in samples], PLAN, bar)
    (tmp_path / "state").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(WeightsError, match="state"):
        slim_network(checkpoint, samples, PLAN, bar, state=tmp_path / "state")
    assert StateFile(None, "key").state == SlimState()


def replace_camera(sample: Sample) -> Sample:
    return Sample(sample.path, sample.identity)
