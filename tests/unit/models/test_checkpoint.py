"""Checkpoints: what is saved is loaded again to the bit, and the fingerprint names the numbers it gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from helpers.small_checkpoints import (
    CAMERAS,
    IMAGES,
    SPEC,
    TRANSFORM,
    camera_network,
    load_error,
    outputs,
    plain_network,
    randomize_norms,
    save_network,
)
from reid.errors import ConditionError, ConfigError, WeightsError
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.checkpoint_files import FORMAT
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.weights.tensor_tables import read_table
from reid.norm import Profiles, camera_batchnorm, convert_norm, domain_batchnorm


class TestOurs:
    """Files written by save_checkpoint."""

    def test_a_plain_network_comes_back_to_the_bit(self, tmp_path: Path) -> None:
        network = plain_network()
        path = save_network(tmp_path, network)
        checkpoint = load_checkpoint(path)
        assert torch.equal(checkpoint.embed(IMAGES), outputs(network, None))
        assert (checkpoint.spec, checkpoint.transform) == (SPEC, TRANSFORM)
        assert (checkpoint.domain_fields, checkpoint.domains) == ((), ())
        assert (checkpoint.source, dict(checkpoint.extra)) == (str(path), {"seed": "3"})
        assert not any(module.training for module in checkpoint.network.modules())

    @pytest.mark.parametrize("neck", ["bnneck", "fc", "none"])
    @pytest.mark.parametrize("affine", ["shared", "domain"])
    def test_a_converted_network_comes_back_to_the_bit(self, tmp_path: Path, neck: str, affine: str) -> None:
        torch.manual_seed(0)
        spec = NetworkSpec("osnet_x0_25", neck=neck)
        network = randomize_norms(convert_norm(Embedder(spec), domain_batchnorm(["x/1", "y/1", "x/2"], affine)))
        domain_fields = ("category", "camera")
        path = tmp_path / "w.safetensors"
        save_checkpoint(path, network, spec, TRANSFORM, domain_fields, ("x/1", "y/1", "x/2"), {})
        checkpoint = load_checkpoint(path)
        domain = torch.tensor([0, 2, 1, 2])
        assert torch.equal(checkpoint.embed(IMAGES, domain), outputs(network, domain))
        assert not torch.equal(checkpoint.embed(IMAGES, 0), checkpoint.embed(IMAGES, 1))
        assert (checkpoint.domain_fields, checkpoint.domains) == (domain_fields, ("x/1", "y/1", "x/2"))

    def test_one_domain_stays_a_domain(self, tmp_path: Path) -> None:
        network = randomize_norms(convert_norm(plain_network(), camera_batchnorm(["only"])))
        checkpoint = load_checkpoint(save_network(tmp_path, network, ("camera",), ("only",)))
        domain = torch.zeros(4, dtype=torch.int64)
        assert checkpoint.domains == ("only",)
        assert torch.equal(checkpoint.embed(IMAGES, domain), outputs(network, domain))

    def test_a_converted_network_needs_the_camera(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))
        with pytest.raises(ConditionError):
            checkpoint.embed(IMAGES)

    def test_embeddings_carry_no_gradient(self, tmp_path: Path) -> None:
        embeddings = load_checkpoint(save_network(tmp_path, plain_network())).embed(IMAGES)
        assert embeddings.is_inference()
        assert embeddings.dtype == torch.float32

    def test_frozen_parameters_stay_frozen(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_network(tmp_path, camera_network(), ("camera",), CAMERAS))
        frozen = [name for name, p in checkpoint.network.named_parameters() if not p.requires_grad]
        assert frozen == ["neck.bias"]

    def test_the_file_is_safetensors_with_a_header(self, tmp_path: Path) -> None:
        path = save_network(tmp_path, camera_network(), ("camera",), CAMERAS)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == FORMAT
        assert json.loads(metadata["network"])["names"] == list(CAMERAS)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors"]

    def test_loading_leaves_the_random_stream_where_it_was(self, tmp_path: Path) -> None:
        path = save_network(tmp_path, plain_network())
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        load_checkpoint(path)
        assert torch.equal(torch.rand(3), expected)

    def test_a_size_may_be_asked_for(self, tmp_path: Path) -> None:
        path = save_network(tmp_path, plain_network())
        checkpoint = load_checkpoint(path, size=(128, 48))
        assert checkpoint.transform == replace(TRANSFORM, height=128, width=48)
        assert checkpoint.fingerprint != load_checkpoint(path).fingerprint
        assert load_checkpoint(path, size=(64, 32)).fingerprint == load_checkpoint(path).fingerprint

    def test_names_that_are_not_the_networks_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"\['a1', 'a2'\], not \['a2', 'a1'\]"):
            save_network(tmp_path, camera_network(), ("camera",), ("a2", "a1"))
        with pytest.raises(ConfigError, match=r"saving .*w\.safetensors"):
            save_network(tmp_path, camera_network(), (), CAMERAS)
        with pytest.raises(ConfigError, match=r"saving .*w\.safetensors"):
            save_network(tmp_path, plain_network(), ("camera",), CAMERAS)
        assert list(tmp_path.iterdir()) == []

    def test_another_backbone_is_refused(self, tmp_path: Path) -> None:
        path = save_network(tmp_path, plain_network())
        message = load_error(path, "resnet18")
        assert '"osnet_x0_25"' in message
        assert '"resnet18"' in message
        assert load_checkpoint(path, "osnet_x0_25").spec == SPEC

    def test_changed_tensors_are_noticed(self, tmp_path: Path) -> None:
        path = save_network(tmp_path, plain_network())
        whole = bytearray(path.read_bytes())
        whole[-1] ^= 1
        path.write_bytes(whole)
        assert "damaged" in load_error(path)

    @pytest.mark.parametrize("share", [0.3, 0.999])
    def test_a_truncated_file_is_refused(self, tmp_path: Path, share: float) -> None:
        path = save_network(tmp_path, plain_network())
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "damaged" in load_error(path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("network", "{"),
            ("network", "[]"),
            ("network", '{"spec": {"trunk": "resnet18"}}'),
            ("network", '{"spec": {"backbone": "osnet_x0_25"}, "transform": {"hight": 3}}'),
            ("extra", "nonsense"),
        ],
    )
    def test_a_damaged_header_is_refused(self, tmp_path: Path, key: str, value: str) -> None:
        path = save_network(tmp_path, plain_network())
        tensors, metadata = read_table(path)
        save_file(tensors, path, metadata={**metadata, key: value})
        assert "header of this weights file" in load_error(path)

    def test_a_file_of_profiles_is_not_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "p.safetensors"
        Profiles(("c",), (3,), {"bn": torch.zeros(1, 2)}, {"bn": torch.ones(1, 2)}).save(path)
        assert "reid-profiles-1" in load_error(path)


class TestFingerprint:
    """It changes with anything that changes embeddings, and with nothing else."""

    def fingerprint_of(self, folder: Path, network: nn.Module, names: tuple[str, ...] = ()) -> str:
        return load_checkpoint(save_network(folder, network, ("camera",) if names else (), names)).fingerprint

    def test_it_is_short_and_the_same_every_time(self, tmp_path: Path) -> None:
        first = self.fingerprint_of(tmp_path, plain_network())
        assert first == self.fingerprint_of(tmp_path, plain_network())
        assert len(first) == 16
        assert int(first, 16) >= 0

    def test_counters_do_not_matter(self, tmp_path: Path) -> None:
        network = plain_network()
        before = self.fingerprint_of(tmp_path, network)
        for key, buffer in network.named_buffers():
            if key.endswith("num_batches_tracked"):
                buffer.add_(1)
        assert self.fingerprint_of(tmp_path, network) == before

    @pytest.mark.parametrize("key", ["running_mean", "conv1.conv.weight", "neck.weight", "pooling.power"])
    def test_one_changed_number_matters(self, tmp_path: Path, key: str) -> None:
        network = plain_network()
        before = self.fingerprint_of(tmp_path, network)
        with torch.no_grad():
            next(t for name, t in network.state_dict().items() if name.endswith(key)).view(-1)[0] += 1e-3
        assert self.fingerprint_of(tmp_path, network) != before

    def test_transform_and_domains_matter(self, tmp_path: Path) -> None:
        network, path = camera_network(), tmp_path / "w.safetensors"
        found = {self.fingerprint_of(tmp_path, network, CAMERAS)}
        for domain_fields, transform in ((("modality",), TRANSFORM), (("camera",), replace(TRANSFORM, width=48))):
            save_checkpoint(path, network, SPEC, transform, domain_fields, CAMERAS, {})
            found.add(load_checkpoint(path).fingerprint)
        renamed = randomize_norms(convert_norm(plain_network(), camera_batchnorm(["b1", "b2"])))
        renamed.load_state_dict({k: v for k, v in network.state_dict().items() if not k.endswith("extra_state")})
        found.add(self.fingerprint_of(tmp_path, renamed, ("b1", "b2")))
        assert len(found) == 4


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """A layer without variance is fine, for eps; a network whose numbers overflow is not."""
    network = plain_network()
    network.state_dict()["neck.running_var"].zero_()
    flat = torch.zeros(2, 3, 64, 32)
    assert load_checkpoint(save_network(tmp_path, network)).embed(flat).isfinite().all()
    with torch.no_grad():
        next(network.parameters()).fill_(1e38)
    path = save_network(tmp_path, network)
    with pytest.raises(WeightsError, match=rf"^{path}: .*not finite"):
        load_checkpoint(path).embed(IMAGES)


@pytest.mark.parametrize("backbone", ["resnet18_x0_25", "osnet_x0_25", "mobilenetv2_x1_0"])
def test_loading_gives_every_weight_and_draws_no_random_number(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = NetworkSpec(backbone, "gem", "fc")
    network = randomize_norms(Embedder(spec)).eval()
    save_checkpoint(tmp_path / "w.safetensors", network, spec, TRANSFORM, (), (), {})
    before = torch.get_rng_state()
    loaded = load_checkpoint(tmp_path / "w.safetensors").network
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded(IMAGES), network(IMAGES))
