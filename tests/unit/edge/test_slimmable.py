"""Networks of several widths: shared weights, statistics of their own, one file.

The wrong versions these tests catch: a narrow width with weights of its own, with the statistics of the wide one, with
other than the leading channels, or with embeddings of another length; a file that grows by a network for each width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from helpers.drawn_sites import draw_site
from helpers.small_checkpoints import IMAGES, TRANSFORM, randomize_norms
from reid.data.loading import Progress
from reid.edge.pruning import SlimmingPlan
from reid.edge.slim_state import StateFile
from reid.edge.slimmable import SlimmableNetwork, check_widths, train_widths
from reid.errors import ConfigError
from reid.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.execution import loaded_at
from reid.models.networks.channel_removal import keep_channels, leading_channels, reorder_channels
from reid.models.networks.tied_channels import tied_channels
from reid.models.weights.tensor_tables import table_of
from reid.norm import Given, camera_batchnorm, convert_norm
from reid.norm.convert import norm_layers
from reid.records import Sample

CAMERAS = ("door", "yard")
WIDTHS = (1.0, 0.5, 0.25)
PLAN = SlimmingPlan(0.5, epochs=2)


@contextmanager
def bar(_title: str, _total: int) -> Iterator[Progress]:
    yield lambda _: None


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_site(tmp_path_factory.mktemp("site"), people=5, cameras=CAMERAS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(0)
    spec, path = NetworkSpec("resnet18_x0_25"), tmp_path_factory.mktemp("weights") / "w.safetensors"
    network = randomize_norms(convert_norm(randomize_norms(Embedder(spec)), camera_batchnorm(CAMERAS)))
    save_checkpoint(path, network, spec, TRANSFORM, ("camera",), CAMERAS, {})
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, samples: list[Sample]) -> SlimmableNetwork:
    return train_widths(checkpoint, samples, WIDTHS, PLAN, bar)


@pytest.fixture(scope="module")
def path(found: SlimmableNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("widths") / "w.safetensors"
    found.save(path)
    return path


def at(path: Path, width: float | None) -> Checkpoint:
    with loaded_at(width):
        return load_checkpoint(path)


def test_another_order_of_channels_computes_the_same() -> None:
    torch.manual_seed(0)
    for backbone in ("osnet_x0_25", "resnet18_x0_25+ibn"):
        network = randomize_norms(Embedder(NetworkSpec(backbone)))
        order = {
            group.name: torch.cat([torch.randperm(group.first), group.first + torch.randperm(group.size - group.first)])
            for group in tied_channels(network)
        }
        other = reorder_channels(network, order)
        with torch.inference_mode():
            torch.testing.assert_close(other(IMAGES), network(IMAGES), rtol=0, atol=1e-6)
        with pytest.raises(ConfigError):
            reorder_channels(network, {name: rows * 0 for name, rows in order.items()})


def test_a_narrow_width_has_the_leading_channels_of_the_wide_one_and_norms_of_its_own(
    found: SlimmableNetwork, path: Path
) -> None:
    """The oracle cuts the wide network, and puts the tensors of the width into it."""
    wide = at(path, None)
    for name, narrow in found.narrow.items():
        groups = {group.name: group for group in tied_channels(wide.network)}
        kept = {key: leading_channels(groups[key], count) for key, count in narrow.channels.items()}
        oracle = keep_channels(wide.network, kept).eval()
        shared = {key for key in table_of(oracle) if key not in narrow.tensors}
        assert any("conv" in key for key in shared)
        assert not any("running" in key or ".bn" in key for key in shared)
        oracle.load_state_dict({**table_of(oracle), **narrow.tensors}, strict=False)
        loaded, domain = at(path, float(name)), torch.tensor([0, 1, 1, 0])
        with torch.inference_mode():
            wanted = Given(oracle)(IMAGES, domain)
            torch.testing.assert_close(loaded.embed(IMAGES, domain), wanted, rtol=0, atol=1e-6)
            assert wanted.shape == wide.embed(IMAGES, domain).shape


def test_each_width_has_statistics_of_each_camera(path: Path) -> None:
    means = {}
    for width in WIDTHS:
        loaded = at(path, width)
        assert loaded.domains == CAMERAS
        mean = list(norm_layers(loaded.network).values())[2].running_mean  # the first sees the same at all widths
        assert not torch.equal(mean[0], mean[1])
        means[width] = mean[:, :4]
    assert not torch.equal(means[0.5], means[0.25])
    assert len({at(path, width).fingerprint for width in WIDTHS}) == 3
    assert at(path, 1.0).fingerprint == at(path, None).fingerprint


def test_the_file_holds_the_weights_once(found: SlimmableNetwork, path: Path, tmp_path: Path) -> None:
    found.checkpoint.save(tmp_path / "wide.safetensors")
    assert path.stat().st_size < 1.1 * (tmp_path / "wide.safetensors").stat().st_size


def test_a_written_out_width_is_a_file_of_its_own(path: Path, tmp_path: Path) -> None:
    narrow = at(path, 0.5)
    narrow.save(tmp_path / "half.safetensors")
    assert load_checkpoint(tmp_path / "half.safetensors").fingerprint == narrow.fingerprint


def test_the_table_has_every_pair_of_widths(found: SlimmableNetwork) -> None:
    assert found.widths == ("1", "0.5", "0.25")
    assert found.shares[0] == 1
    assert found.shares == tuple(sorted(found.shares, reverse=True))
    assert [len(row) for row in found.overlap] == [3, 3, 3]
    assert len(found.lines()) == 3


def test_a_stopped_training_goes_on_to_the_same_networks(
    checkpoint: Checkpoint, samples: list[Sample], found: SlimmableNetwork, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save = StateFile.save

    def save_and_stop(self: StateFile, **changes: object) -> None:
        save(self, **changes)
        raise KeyboardInterrupt

    monkeypatch.setattr(StateFile, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_widths(checkpoint, samples, WIDTHS, PLAN, bar, state=tmp_path / "state")
    monkeypatch.undo()
    again = train_widths(checkpoint, samples, WIDTHS, PLAN, bar, state=tmp_path / "state")
    assert again.to_json() == found.to_json()
    with pytest.raises(ConfigError):
        train_widths(checkpoint, samples, (1.0, 0.5), PLAN, bar, state=tmp_path / "state")


@pytest.mark.parametrize("widths", [[], [1.0], [0.0, 1.0], [0.5, 0.5], [2.0], [-1.0, 0.5], [float("nan")]])
def test_widths_that_cannot_be_are_refused(widths: list[float]) -> None:
    with pytest.raises(ConfigError, match="--widths"):
        check_widths(widths)


def test_a_width_that_the_file_lacks_is_refused(path: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.5, 0\.25"):
        at(path, 0.75)
    checkpoint.save(tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="--width"):
        at(tmp_path / "w.safetensors", 0.5)
