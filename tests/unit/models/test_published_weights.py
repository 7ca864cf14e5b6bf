"""Weights that other projects published: they load, and weights that do not fit are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from helpers.small_checkpoints import (
    IMAGES,
    load_error,
    randomize_norms,
)
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError
from reid.models.checkpoint import load_checkpoint
from reid.models.embedder import NetworkSpec
from reid.models.networks.osnet import OSNet
from reid.models.weights.tensor_tables import table_of


class TestPublished:
    """Files of other projects, which hold nothing but tensors."""

    def osnet(self, width: float = 0.25, classes: int = 10) -> dict[str, Tensor]:
        torch.manual_seed(0)
        trunk = randomize_norms(OSNet(width))
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
        assert "resnet18, resnet34, " in load_error(tmp_path / "w.pth")

    def test_an_unknown_backbone_names_the_nearest(self, tmp_path: Path) -> None:
        torch.save(self.osnet(), tmp_path / "w.pth")
        with pytest.raises(ConfigError, match='did you mean "osnet_x0_25"'):
            load_checkpoint(tmp_path / "w.pth", "osnet_x025")

    def test_wrong_sizes_are_named(self, tmp_path: Path) -> None:
        torch.save(self.osnet(), tmp_path / "w.pth")
        message = load_error(tmp_path / "w.pth", "osnet_x0_5")
        assert "into osnet_x0_5" in message
        assert "backbone.conv1.conv.weight (expected (32, 3, 7, 7), got (16, 3, 7, 7))" in message

    def test_missing_and_unexpected_keys_are_named(self, tmp_path: Path) -> None:
        table = self.osnet() | {"attention.weight": torch.zeros(1)}
        del table["conv5.conv.weight"]
        torch.save(table, tmp_path / "w.pth")
        message = load_error(tmp_path / "w.pth", "osnet_x0_25")
        assert "1 missing: backbone.conv5.conv.weight" in message
        assert "1 unexpected: backbone.attention.weight" in message

    def test_weights_of_another_network_are_named(self, tmp_path: Path) -> None:
        torch.save(self.osnet(), tmp_path / "w.pth")
        message = load_error(tmp_path / "w.pth", "resnet18")
        assert "missing: backbone." in message
        assert "unexpected: backbone." in message
        assert len(message) - len(str(tmp_path)) < 500
