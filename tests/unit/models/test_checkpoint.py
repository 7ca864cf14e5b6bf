"""Checkpoints: what is saved comes back to the bit, others' weights load, and misfits say why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from reid.data.transforms import EvaluationTransform
from reid.errors import ConditionError, ConfigError, WeightsError
from reid.models.checkpoint import FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.networks.osnet import OSNet
from reid.models.weights.tensor_tables import read_table, table_of
from reid.norm import Given, Profiles, calibrate, camera_batchnorm, convert_norm, domain_batchnorm

SPEC = NetworkSpec("osnet_x0_25", "gem", "bnneck")
TRANSFORM = EvaluationTransform(height=64, width=32, interpolation="bicubic")
IMAGES = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 1, 0])
CAMERAS = ("a1", "a2")


def lively(network: nn.Module) -> nn.Module:
    """The network with statistics and affines that differ from place to place, and row to row."""
    for key, tensor in network.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif key.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.7, 1.4)
        elif key.endswith("num_batches_tracked"):
            tensor.fill_(5)
    return network.eval()


def plain() -> nn.Module:
    torch.manual_seed(0)
    return lively(Embedder(SPEC))


def by_camera() -> nn.Module:
    return lively(convert_norm(plain(), camera_batchnorm(CAMERAS)))


def saved(folder: Path, network: nn.Module, domain_fields: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Path:
    path = folder / "w.safetensors"
    save_checkpoint(path, network, SPEC, TRANSFORM, domain_fields, names, {"seed": "3"})
    return path


def test_numbers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    """A layer without variance is fine, for eps; a network whose numbers overflow is not."""
    network = plain()
    network.state_dict()["neck.running_var"].zero_()
    flat = torch.zeros(2, 3, 64, 32)
    assert load_checkpoint(saved(tmp_path, network)).embed(flat).isfinite().all()
    with torch.no_grad():
        next(network.parameters()).fill_(1e38)
    path = saved(tmp_path, network)
    with pytest.raises(WeightsError, match=rf"{path}: gives numbers that are not finite; its training diverged"):
        load_checkpoint(path).embed(IMAGES)


def outputs(network: nn.Module, labels: Tensor | None) -> Tensor:
    with torch.inference_mode():
        return Given(network)(IMAGES, labels)


def misfit(path: Path, backbone: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(path, backbone)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


class TestOurs:
    """Files written by save_checkpoint."""

    def test_a_plain_network_comes_back_to_the_bit(self, tmp_path: Path) -> None:
        network = plain()
        path = saved(tmp_path, network)
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
        network = lively(convert_norm(Embedder(spec), domain_batchnorm(["x/1", "y/1", "x/2"], affine)))
        domain_fields = ("category", "camera")
        path = tmp_path / "w.safetensors"
        save_checkpoint(path, network, spec, TRANSFORM, domain_fields, ("x/1", "y/1", "x/2"), {})
        checkpoint = load_checkpoint(path)
        labels = torch.tensor([0, 2, 1, 2])
        assert torch.equal(checkpoint.embed(IMAGES, labels), outputs(network, labels))
        assert not torch.equal(checkpoint.embed(IMAGES, 0), checkpoint.embed(IMAGES, 1))
        assert (checkpoint.domain_fields, checkpoint.domains) == (domain_fields, ("x/1", "y/1", "x/2"))

    def test_one_domain_stays_a_domain(self, tmp_path: Path) -> None:
        network = lively(convert_norm(plain(), camera_batchnorm(["only"])))
        checkpoint = load_checkpoint(saved(tmp_path, network, ("camera",), ("only",)))
        labels = torch.zeros(4, dtype=torch.int64)
        assert checkpoint.domains == ("only",)
        assert torch.equal(checkpoint.embed(IMAGES, labels), outputs(network, labels))

    def test_a_converted_network_wants_to_know_the_camera(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, by_camera(), ("camera",), CAMERAS))
        with pytest.raises(ConditionError):
            checkpoint.embed(IMAGES)

    def test_embeddings_carry_no_gradient(self, tmp_path: Path) -> None:
        embeddings = load_checkpoint(saved(tmp_path, plain())).embed(IMAGES)
        assert embeddings.is_inference()
        assert embeddings.dtype == torch.float32

    def test_frozen_parameters_stay_frozen(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, by_camera(), ("camera",), CAMERAS))
        frozen = [name for name, p in checkpoint.network.named_parameters() if not p.requires_grad]
        assert frozen == ["neck.bias"]

    def test_the_file_holds_no_pickle(self, tmp_path: Path) -> None:
        path = saved(tmp_path, by_camera(), ("camera",), CAMERAS)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == FORMAT
        assert json.loads(metadata["network"])["names"] == list(CAMERAS)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors"]

    def test_loading_leaves_the_random_stream_where_it_was(self, tmp_path: Path) -> None:
        path = saved(tmp_path, plain())
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        load_checkpoint(path)
        assert torch.equal(torch.rand(3), expected)

    def test_a_size_may_be_asked_for(self, tmp_path: Path) -> None:
        path = saved(tmp_path, plain())
        checkpoint = load_checkpoint(path, size=(128, 48))
        assert checkpoint.transform == replace(TRANSFORM, height=128, width=48)
        assert checkpoint.fingerprint != load_checkpoint(path).fingerprint
        assert load_checkpoint(path, size=(64, 32)).fingerprint == load_checkpoint(path).fingerprint

    def test_names_that_are_not_the_networks_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"\['a1', 'a2'\], not \['a2', 'a1'\] named by \['camera'\]"):
            saved(tmp_path, by_camera(), ("camera",), ("a2", "a1"))
        with pytest.raises(ConfigError, match=r"not .* named by"):
            saved(tmp_path, by_camera(), (), CAMERAS)
        with pytest.raises(ConfigError, match=r"not .* named by"):
            saved(tmp_path, plain(), ("camera",), CAMERAS)
        assert list(tmp_path.iterdir()) == []

    def test_another_backbone_is_refused(self, tmp_path: Path) -> None:
        path = saved(tmp_path, plain())
        assert 'these weights are of backbone "osnet_x0_25", not "resnet18"' in misfit(path, "resnet18")
        assert load_checkpoint(path, "osnet_x0_25").spec == SPEC

    def test_changed_tensors_are_noticed(self, tmp_path: Path) -> None:
        path = saved(tmp_path, plain())
        whole = bytearray(path.read_bytes())
        whole[-1] ^= 1
        path.write_bytes(whole)
        assert "its tensors are not those that were saved" in misfit(path)

    @pytest.mark.parametrize("share", [0.3, 0.999])
    def test_a_truncated_file_is_refused(self, tmp_path: Path, share: float) -> None:
        path = saved(tmp_path, plain())
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "damaged or cut off" in misfit(path)

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
        path = saved(tmp_path, plain())
        tensors, metadata = read_table(path)
        save_file(tensors, path, metadata={**metadata, key: value})
        assert "header of this weights file is damaged" in misfit(path)

    def test_a_file_of_profiles_is_not_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "p.safetensors"
        Profiles(("c",), (3,), {"bn": torch.zeros(1, 2)}, {"bn": torch.ones(1, 2)}).save(path)
        assert 'got a file of kind "reid-profiles-1"' in misfit(path)


class TestFingerprint:
    """It names the numbers a checkpoint gives."""

    def fingerprint(self, folder: Path, network: nn.Module, names: tuple[str, ...] = ()) -> str:
        return load_checkpoint(saved(folder, network, ("camera",) if names else (), names)).fingerprint

    def test_it_is_short_and_the_same_every_time(self, tmp_path: Path) -> None:
        first = self.fingerprint(tmp_path, plain())
        assert first == self.fingerprint(tmp_path, plain())
        assert len(first) == 16
        assert int(first, 16) >= 0

    def test_counters_do_not_matter(self, tmp_path: Path) -> None:
        network = plain()
        before = self.fingerprint(tmp_path, network)
        for key, buffer in network.named_buffers():
            if key.endswith("num_batches_tracked"):
                buffer.add_(1)
        assert self.fingerprint(tmp_path, network) == before

    @pytest.mark.parametrize("key", ["running_mean", "conv1.conv.weight", "neck.weight", "pooling.power"])
    def test_one_changed_number_matters(self, tmp_path: Path, key: str) -> None:
        network = plain()
        before = self.fingerprint(tmp_path, network)
        with torch.no_grad():
            next(t for name, t in network.state_dict().items() if name.endswith(key)).view(-1)[0] += 1e-3
        assert self.fingerprint(tmp_path, network) != before

    def test_transform_and_domains_matter(self, tmp_path: Path) -> None:
        network, path = by_camera(), tmp_path / "w.safetensors"
        found = {self.fingerprint(tmp_path, network, CAMERAS)}
        for domain_fields, transform in ((("modality",), TRANSFORM), (("camera",), replace(TRANSFORM, width=48))):
            save_checkpoint(path, network, SPEC, transform, domain_fields, CAMERAS, {})
            found.add(load_checkpoint(path).fingerprint)
        renamed = lively(convert_norm(plain(), camera_batchnorm(["b1", "b2"])))
        renamed.load_state_dict({k: v for k, v in network.state_dict().items() if not k.endswith("extra_state")})
        found.add(self.fingerprint(tmp_path, renamed, ("b1", "b2")))
        assert len(found) == 4


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
        checkpoint = load_checkpoint(saved(tmp_path, plain()))
        before = checkpoint.embed(IMAGES)
        new = checkpoint.with_profiles(self.profiles(checkpoint, ("b1", "b2")))
        assert (new.domain_fields, new.domains) == (("camera",), ("b1", "b2"))
        assert new.fingerprint != checkpoint.fingerprint == new.weights
        assert not torch.equal(new.embed(IMAGES, 0), new.embed(IMAGES, 1))
        assert torch.equal(checkpoint.embed(IMAGES), before)
        assert (new.source, new.extra, new.transform) == (checkpoint.source, checkpoint.extra, TRANSFORM)

    def test_known_cameras_stay_and_profiles_add_up(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, by_camera(), ("camera",), CAMERAS))
        first, second = self.profiles(checkpoint, ("b1",)), self.profiles(checkpoint, ("c1", "c2"))
        both = checkpoint.with_profiles(first).with_profiles(second)
        assert both.domains == (*CAMERAS, "b1", "c1", "c2")
        torch.testing.assert_close(both.embed(IMAGES, LABELS), checkpoint.embed(IMAGES, LABELS))
        assert len({checkpoint.fingerprint, checkpoint.with_profiles(first).fingerprint, both.fingerprint}) == 3

    def test_it_can_be_saved_and_comes_back(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, plain()))
        new = checkpoint.with_profiles(self.profiles(checkpoint, ("b1", "b2")))
        again = load_checkpoint(saved(tmp_path, new.network, new.domain_fields, new.domains))
        assert again.fingerprint == new.fingerprint
        assert torch.equal(again.embed(IMAGES, LABELS), new.embed(IMAGES, LABELS))

    def test_profiles_of_other_weights_are_refused(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, plain()))
        unknown_domain = replace(self.profiles(checkpoint, ("b1",)), weights="0123456789abcdef")
        with pytest.raises(WeightsError, match="measured on 0123456789abcdef; calibrate again"):
            checkpoint.with_profiles(unknown_domain)

    def test_profiles_of_another_kind_of_domain_are_refused(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, by_camera(), ("camera",), CAMERAS))
        with pytest.raises(WeightsError, match="named by camera, those of the profiles by category/camera"):
            checkpoint.with_profiles(self.profiles(checkpoint, ("b1",), ("category", "camera")))


class TestUnseenDomains:
    """Domains nobody measured: the mixture of all known statistics stands in."""

    def test_known_domains_stay_and_new_ones_get_the_mixture(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, by_camera(), ("camera",), CAMERAS))
        new = checkpoint.with_domains(["b1", "b2"])
        assert (new.domain_fields, new.domains, new.weights) == (
            ("camera",),
            (*CAMERAS, "b1", "b2"),
            checkpoint.weights,
        )
        assert new.fingerprint != checkpoint.fingerprint
        torch.testing.assert_close(new.embed(IMAGES, LABELS), checkpoint.embed(IMAGES, LABELS))
        first = new.network.get_submodule("backbone.conv1.bn").running_mean
        torch.testing.assert_close(first[2], first[:2].mean(0))

    def test_it_can_be_saved_and_answers_the_same(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, by_camera(), ("camera",), CAMERAS)).with_domains(["b1"])
        checkpoint.save(tmp_path / "again.safetensors")
        again = load_checkpoint(tmp_path / "again.safetensors")
        assert (again.fingerprint, again.domains, again.extra) == (
            checkpoint.fingerprint,
            checkpoint.domains,
            checkpoint.extra,
        )
        assert torch.equal(again.embed(IMAGES, 2), checkpoint.embed(IMAGES, 2))


class TestPublished:
    """Weights of other people, which say nothing but tensors."""

    def osnet(self, width: float = 0.25, classes: int = 10) -> dict[str, Tensor]:
        torch.manual_seed(0)
        trunk = lively(OSNet(width))
        layer = nn.Sequential(nn.Linear(trunk.channels, 512), nn.BatchNorm1d(512), nn.ReLU())
        head = nn.Linear(512, classes)
        parts = (("", trunk), ("fc.", layer), ("classifier.", head))
        return {prefix + key: tensor for prefix, part in parts for key, tensor in table_of(part).items()}

    def test_an_osnet_with_its_neck(self, tmp_path: Path) -> None:
        table = self.osnet()
        torch.save({"state_dict": {f"module.{k}": v for k, v in table.items()}, "epoch": 9}, tmp_path / "w.pth.tar")
        checkpoint = load_checkpoint(tmp_path / "w.pth.tar", "osnet_x0_25")
        assert checkpoint.spec == NetworkSpec("osnet_x0_25", "average", "fc")
        assert checkpoint.transform == EvaluationTransform(256, 128)
        loaded = table_of(checkpoint.network)
        assert torch.equal(loaded["backbone.conv2.0.conv2b.1.bn.bias"], table["conv2.0.conv2b.1.bn.bias"])
        assert torch.equal(loaded["neck.0.weight"], table["fc.0.weight"])
        assert len(loaded) == len(table) - 2  # all but the classifier's weight and bias

    def test_an_osnet_without_its_neck(self, tmp_path: Path) -> None:
        torch.save({k: v for k, v in self.osnet().items() if not k.startswith("fc.")}, tmp_path / "w.pth")
        assert load_checkpoint(tmp_path / "w.pth", "osnet_x0_25").spec.neck == "none"

    @pytest.mark.parametrize(
        ("name", "network", "dimension"),
        [("resnet18", models.resnet18, 512), ("mobilenet_v2", models.mobilenet_v2, 1280)],
    )
    def test_torchvisions_without_their_classifier(
        self, tmp_path: Path, name: str, network: type[nn.Module], dimension: int
    ) -> None:
        torch.manual_seed(0)
        theirs = network(weights=None, num_classes=7)  # type: ignore[call-arg]
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        checkpoint = load_checkpoint(tmp_path / "w.pth", name, size=(64, 32))
        assert checkpoint.spec.neck == "none"
        assert checkpoint.embed(IMAGES).shape == (4, dimension)

    def test_a_resnet_with_a_512_wide_neck(self, tmp_path: Path) -> None:
        theirs = models.resnet18(weights=None)
        theirs.fc = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU())
        torch.save(theirs.state_dict() | {"classifier.weight": torch.ones(3, 512)}, tmp_path / "w.pth")
        assert load_checkpoint(tmp_path / "w.pth", "resnet18").spec.neck == "fc"

    def test_timms_from_safetensors(self, tmp_path: Path) -> None:
        timm = pytest.importorskip("timm", reason='the extra "timm" is not installed')
        torch.manual_seed(0)
        theirs = timm.create_model("resnet10t", pretrained=False, num_classes=5).eval()
        save_file(theirs.state_dict(), tmp_path / "w.safetensors")
        checkpoint = load_checkpoint(tmp_path / "w.safetensors", "timm:resnet10t", size=(64, 32))
        with torch.inference_mode():
            features = theirs.forward_head(theirs.forward_features(IMAGES), pre_logits=True)
        torch.testing.assert_close(checkpoint.embed(IMAGES), nn.functional.normalize(features))

    def test_half_width_weights_are_computed_with_in_float32(self, tmp_path: Path) -> None:
        table = {k: v.half() if v.is_floating_point() else v for k, v in self.osnet().items()}
        torch.save(table, tmp_path / "w.pth")
        checkpoint = load_checkpoint(tmp_path / "w.pth", "osnet_x0_25", size=(64, 32))
        assert checkpoint.embed(IMAGES).dtype == torch.float32

    def test_without_a_backbone_the_message_lists_them(self, tmp_path: Path) -> None:
        torch.save(self.osnet(), tmp_path / "w.pth")
        assert "name the backbone, one of resnet18, " in misfit(tmp_path / "w.pth")

    def test_an_unknown_backbone_names_the_nearest(self, tmp_path: Path) -> None:
        torch.save(self.osnet(), tmp_path / "w.pth")
        with pytest.raises(ConfigError, match='did you mean "osnet_x0_25"'):
            load_checkpoint(tmp_path / "w.pth", "osnet_x025")

    def test_wrong_sizes_are_told(self, tmp_path: Path) -> None:
        torch.save(self.osnet(), tmp_path / "w.pth")
        message = misfit(tmp_path / "w.pth", "osnet_x0_5")
        assert "into osnet_x0_5" in message
        assert "of another size: backbone.conv1.conv.weight (expected (32, 3, 7, 7), got (16, 3, 7, 7))" in message

    def test_missing_and_unexpected_keys_are_told(self, tmp_path: Path) -> None:
        table = self.osnet() | {"attention.weight": torch.zeros(1)}
        del table["conv5.conv.weight"]
        torch.save(table, tmp_path / "w.pth")
        message = misfit(tmp_path / "w.pth", "osnet_x0_25")
        assert "1 missing: backbone.conv5.conv.weight" in message
        assert "1 unexpected: backbone.attention.weight" in message

    def test_weights_of_another_network_are_told(self, tmp_path: Path) -> None:
        torch.save(self.osnet(), tmp_path / "w.pth")
        message = misfit(tmp_path / "w.pth", "resnet18")
        assert "missing: backbone." in message
        assert "unexpected: backbone." in message
        assert len(message) - len(str(tmp_path)) < 500


def flipped_by_hand(network: nn.Module, labels: Tensor | None) -> Tensor:
    """The mean of two unit vectors, one picture at a time, each column of pixels put in its place by hand."""
    rows = []
    for i in range(len(IMAGES)):
        picture = IMAGES[i : i + 1]
        mirror = torch.stack([picture[..., 31 - x] for x in range(32)], dim=-1)
        label = None if labels is None else labels[i : i + 1]
        with torch.inference_mode():
            both = [Given(network)(image, label)[0].double() for image in (picture, mirror)]
        mean = (both[0] + both[1]) / 2
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("camera", [False, True])
def test_flip_averages_a_picture_and_its_mirror_image(tmp_path: Path, camera: bool) -> None:
    """Wrong variants it catches: upside down, the mirror image alone, labels lost, no unit length, no flip."""
    network, labels = (by_camera(), LABELS) if camera else (plain(), None)
    naming = (("camera",), CAMERAS) if camera else ((), ())
    once = load_checkpoint(saved(tmp_path, network, *naming))
    both = once.with_flip()
    expected = flipped_by_hand(network, labels)
    torch.testing.assert_close(both.embed(IMAGES, labels).double(), expected, atol=1e-5, rtol=0)
    wrong = {
        "none": once.embed(IMAGES, labels),
        "mirror alone": once.embed(IMAGES.flip(-1), labels),
        "upside down": nn.functional.normalize(once.embed(IMAGES, labels) + once.embed(IMAGES.flip(-2), labels), dim=1),
        "not of unit length": (once.embed(IMAGES, labels) + once.embed(IMAGES.flip(-1), labels)) / 2,
    }
    for name, vectors in wrong.items():
        with pytest.raises(AssertionError):
            torch.testing.assert_close(vectors.double(), expected, atol=1e-5, rtol=0, msg=name)


def test_flip_has_a_fingerprint_and_stays_with_the_network(tmp_path: Path) -> None:
    once = load_checkpoint(saved(tmp_path, by_camera(), ("camera",), CAMERAS))
    both = once.with_flip()
    assert both.fingerprint != once.fingerprint
    assert both.weights == once.weights
    both.save(tmp_path / "flip.safetensors")
    again = load_checkpoint(tmp_path / "flip.safetensors")
    assert again.transform.flip
    assert again.fingerprint == both.fingerprint
    assert "flip" not in once.transform.to_dict()  # so files and fingerprints from before stay what they were
    assert again.with_domains(["a3"]).transform.flip
